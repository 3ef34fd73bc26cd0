"""Simulated events and their rows, made once for all files of tests: 30,000 showers take seconds."""

import pyarrow.parquet as pq
import pytest

from crmuons.data import arrow
from crmuons.simulation.simulate import simulate
from tests.unit.evaluation.nature.samples import SETTINGS, rows_of


@pytest.fixture(scope="session")
def simulated(tmp_path_factory):
    """30,000 vertical showers at two depths."""
    out = tmp_path_factory.mktemp("nature") / "sim"
    simulate(SETTINGS, num_events=60_000, out=out, seed=3)
    return out


@pytest.fixture(scope="session")
def events(simulated):
    return arrow.to_arrays(pq.read_table(simulated))


@pytest.fixture(scope="session")
def rows(events):
    return rows_of(events)
