"""A small data set, raw and prepared, for the tests of preparation and of shards; hypothesis, for this package alone."""

import numpy as np
import pytest
from hypothesis import Phase, settings

from crmuons.data import reader
from crmuons.data import shards as data_shards
from crmuons.data.prepare import build, shuffle
from tests.unit.data.prepared import make

# The same examples in every run, and no minutes of shrinking where one fails.
settings.register_profile("unit", deadline=None, derandomize=True, database=None, phases=[Phase.generate])
settings.load_profile("unit")


@pytest.fixture(scope="module")
def raw(tmp_path_factory, toy_events, write_toy):
    """1200 events of 400 showers in four files; the depths of a shower are neighbours."""
    root = tmp_path_factory.mktemp("raw")
    events = toy_events(400)
    for i in range(4):
        write_toy(root / f"{i}" / "events.parquet", reader.take(events, np.arange(300 * i, 300 * (i + 1))))
    return root


@pytest.fixture(scope="module")
def small_sizes():
    """A group for each file, several shards for each split, several batches for each shard."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(build, "GROUP_BYTES", 1)
        patch.setattr(shuffle, "SHARD_BYTES", 40_000)
        patch.setattr(data_shards, "EVENTS_PER_BATCH", 64)
        yield


@pytest.fixture(scope="module")
def done(raw, small_sizes, tmp_path_factory):
    """The data of `raw`, prepared."""
    out = tmp_path_factory.mktemp("done") / "set"
    make(raw, out)
    return out
