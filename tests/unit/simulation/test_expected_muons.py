"""Primaries for a wanted number of muons: flat in its logarithm, and weights that undo the choice."""

import dataclasses

import numpy as np
import pyarrow.parquet as pq
import pytest

from crmuons import cli
from crmuons.data import arrow
from crmuons.data.reader import read_slice
from crmuons.data.sampler import cut_files
from crmuons.data.selection import Selection
from crmuons.simulation import primaries as primaries_module
from crmuons.simulation.primaries import undoing_weights
from crmuons.simulation.simulate import SimulationSettings, draw_block
from crmuons.storage.files import list_files

SETTINGS = SimulationSettings(expected_muons=(1.0, 1000.0), max_zenith_deg=85.0)


def test_events_have_about_as_many_muons_as_expected():
    events = draw_block(
        dataclasses.replace(SETTINGS, expected_muons=(10.0, 100.0), depths_per_shower=1), seed=1, block=0
    )
    assert 0.9 < np.log10(events.counts + 1).mean() / 1.5 < 1.15


def test_the_rows_of_a_shower_have_one_weight():
    events = draw_block(dataclasses.replace(SETTINGS, expected_muons=(1.0, 10.0)), seed=1, block=0)
    weights = undoing_weights(dataclasses.replace(SETTINGS, expected_muons=(1.0, 10.0)), events.primaries[:-1])
    assert len(weights) == len(events.counts) - 1
    assert (weights > 0).all()
    assert (weights[:-2].reshape(-1, 3) == weights[:-2:3, None]).all()


def test_the_command_writes_the_weight_and_the_files_are_read_as_any(tmp_path, capsys):
    words = ["--events", "60", "--expected-muons", "5", "50", "--max-zenith-deg", "85", "--out", str(tmp_path / "new")]
    assert cli.main(["simulate", *words]) == 0, capsys.readouterr().err
    (file,) = list_files([str(tmp_path / "new")])
    parquet = pq.ParquetFile(file.url)
    assert (parquet.read()["weight"].to_numpy() > 0).all()
    origin = arrow.read_origin(parquet.metadata)
    assert origin["settings"]["expected_muons"] == [5.0, 50.0]
    events, counts = read_slice(cut_files([file])[0], Selection("all", 0.0, 0.0))
    assert (len(events.counts), counts.quarantined) == (60, 0)
    assert cli.main(["simulate", *words]) == 0  # Nothing is left to do, and the files are known again.


def test_without_the_option_files_are_those_of_before(tmp_path):
    assert cli.main(["simulate", "--events", "30", "--out", str(tmp_path / "new")]) == 0
    (path,) = (tmp_path / "new").glob("*.parquet")
    table = pq.read_table(path)
    assert "weight" not in table.column_names
    assert not any(b"expected_muons" in text for text in pq.read_metadata(path).metadata.values())


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"expected_muons": (100.0, 10.0)}, "--expected-muons 100 10: expected LOW < HIGH"),
        ({"expected_muons": (0.0, 10.0)}, "--expected-muons 0: expected a number of muons, 0.001 to 1e7"),
        ({"expected_muons": (1.0, float("nan"))}, "--expected-muons .*nan.*: expected a number of muons"),
    ],
)
def test_ranges_that_cannot_be_are_refused_with_their_value(changed, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(SimulationSettings(), **changed)


def test_a_range_that_no_primary_reaches_is_refused_and_leaves_no_file(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(primaries_module, "MOST_ROUNDS", 20)  # Each takes 10 CPU-milliseconds.
    words = ["--energy-range", "1e3", "1e4", "--expected-muons", "1000", "2000", "--depths-per-shower", "1"]
    assert cli.main(["simulate", "--events", "5", *words, "--out", str(tmp_path / "new")]) == 1
    assert (
        "--expected-muons 1000 2000: hardly any primary of 1000 to 10000 GeV sends such a number"
        in capsys.readouterr().err
    )
    assert not list((tmp_path / "new").glob("*"))
