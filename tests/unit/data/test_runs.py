"""Events that lie in several places are the events that a copy of all of them would be, however they are cut and joined."""

import os
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crmuons import config
from crmuons.data import sampler, shards
from crmuons.data.batcher import Batcher
from crmuons.data.events import EventArrays, concat, slice_events
from crmuons.data.runs import EventRuns, chain, shuffle_runs
from crmuons.training.batch import TrainingBatch
from crmuons.training.packed import PackedBatch
from tests.unit.data.test_events import numbered

PARTS = st.lists(st.lists(st.integers(0, 9), max_size=6), min_size=1, max_size=4)
FIELDS = ("ids", "primaries", "counts", "muons")


def parts_of(counts):
    starts = np.cumsum([0, *map(len, counts)])
    return [numbered(each, first) for each, first in zip(counts, starts, strict=False)]


def turned_by_hand(events, shifts):
    """A copy of the events, each rotated by its shift, one after the other."""
    muons, ends = events.muons.copy(), np.cumsum(events.counts)
    for start, end, shift in zip(ends - events.counts, ends, shifts, strict=True):
        muons[start:end] = np.roll(muons[start:end], -shift, axis=0)
    return replace(events, muons=muons)


def assert_equal(events, expected):
    for name in FIELDS:
        np.testing.assert_array_equal(getattr(events, name), getattr(expected, name))


def first_muons(events, most):
    muons = np.split(events.muons, np.cumsum(events.counts)[:-1]) if len(events.counts) else [events.muons]
    return np.concatenate([each[:most] for each in muons])


# Counts of the events of each part, and a number for each event, from which its shift is made.
DRAWN = st.tuples(PARTS, st.lists(st.integers(0, 8), min_size=24, max_size=24))


def runs_and_copy(drawn):
    counts, numbers = drawn
    parts = parts_of(counts)
    whole = concat(parts)
    shifts = np.asarray(numbers, np.int64)[: len(whole.counts)] % np.maximum(whole.counts, 1)
    turned = np.flatnonzero(shifts)
    return EventRuns(parts, turned, shifts[turned]), turned_by_hand(whole, shifts)


@settings(max_examples=60)
@given(DRAWN, st.one_of(st.none(), st.integers(1, 10)), st.data())
def test_runs_are_their_events_however_they_are_cut(drawn, most, data):
    runs, copy = runs_and_copy(drawn)
    assert runs.num_events == len(copy.counts)
    np.testing.assert_array_equal(runs.first_muons(most), first_muons(copy, most))
    start, stop = sorted(data.draw(st.integers(0, runs.num_events)) for _ in range(2))
    part = slice_events(runs, start, stop)
    np.testing.assert_array_equal(part.first_muons(most), first_muons(slice_events(copy, start, stop), most))
    assert_equal(chain([slice_events(runs, 0, start), part, slice_events(runs, stop, runs.num_events)]), copy)
    assert_equal(part, slice_events(copy, start, stop))


@settings(max_examples=40)
@given(st.lists(DRAWN, min_size=1, max_size=3), st.integers(1, 4), st.one_of(st.none(), st.integers(9, 20)))
def test_batches_of_runs_are_batches_of_their_copies(drawn, number, max_muons):
    batchers = Batcher(), Batcher()
    for each in drawn:
        for batcher, events in zip(batchers, runs_and_copy(each), strict=True):
            batcher.add(events)
    while (expected := batchers[1].next_batch(number, max_muons)) is not None:
        assert_equal(batchers[0].next_batch(number, max_muons), expected)
    assert batchers[0].next_batch(number, max_muons) is None


@pytest.mark.parametrize("cap", [None, 3, 5, 40])
def test_training_batches_of_runs_are_those_of_a_copy(cap):
    parts = parts_of([[0, 7, 4], [5, 5], [], [30, 0, 1]])
    runs = shuffle_runs(parts, 4, np.random.default_rng(2))
    assert any(runs.shifts)
    copy = EventArrays(*(getattr(runs, name).copy() for name in FIELDS))
    train = config.from_dict({"train": {"steps": 1, "muons_per_event": cap, "events_per_worker": 10}}).train
    packed, expected = (PackedBatch.from_events(events, train, pin_memory=False) for events in (runs, copy))
    assert packed.sizes == expected.sizes
    for value, other in zip(packed.values(), expected.values(), strict=True):
        np.testing.assert_array_equal(value, other)
    batch, plain = (TrainingBatch.from_events(events, train) for events in (runs, copy))
    for name in ("primaries", "counts", "nonempty", "muons", "weights"):
        np.testing.assert_array_equal(getattr(batch, name), getattr(plain, name))
    np.testing.assert_array_equal(batch.muons, first_muons(copy, cap))


def test_packing_reads_no_muon_that_the_step_does_not_take():
    # Of large bundles, which hold most muons, and with a copy on the way each muon was moved twice.
    runs = shuffle_runs(parts_of([[50, 3], [2, 60]]), 4, np.random.default_rng(0))
    train = config.from_dict({"train": {"steps": 1, "muons_per_event": 4}}).train
    assert (
        PackedBatch.from_events(runs, train, pin_memory=False).sizes.muons
        == sum(map(len, runs.views_of_muons(4)))
        == 13
    )
    assert not {"ids", "primaries", "muons"} & set(vars(runs))  # Nothing was joined.
    for view in runs.views_of_muons(4):
        assert any(np.shares_memory(view, run.muons) for run in runs.runs) or not len(view)


@pytest.fixture
def shard(tmp_path):
    """Returns a function that writes a shard, and lists it."""

    def write(name, number, first=0):
        path = tmp_path / f"{name}.arrow"
        path.unlink(missing_ok=True)
        shards.write_shard(path, numbered([2] * number, first), (0.0, 1.0))
        os.utime(path, ns=(first, first))  # Two files of one clock tick would have the same.
        state = path.stat()
        return shards.File(str(path), state.st_size, stamp=str(state.st_mtime_ns))

    return write


def read(file):
    (events,), _ = shards.read_shard_rows(sampler.FileSlice(file, 0, 1))
    return events


def test_a_shard_is_opened_once_while_it_is_the_same(shard, monkeypatch):
    opened = []
    open_file = shards.pa.ipc.open_file
    monkeypatch.setattr(shards.pa.ipc, "open_file", lambda source: opened.append(1) or open_file(source))
    file = shard("a", 20)
    for _ in range(3):
        assert_equal(read(file), numbered([2] * 20))
    assert len(opened) == 1
    # Another file of the same name is another one, and takes the place of the old one.
    again = shard("a", 20, first=100)
    assert_equal(read(again), numbered([2] * 20, first=100))
    assert [url for url, _, _ in shards._open].count(file.url) == 1


def test_shards_stay_open_up_to_a_number_of_bytes(shard, monkeypatch):
    files = [shard(name, 20) for name in "abcd"]
    monkeypatch.setattr(shards, "_open", {})
    monkeypatch.setattr(shards, "OPEN_BYTES", 3 * files[0].size)
    for file in (*files[:3], files[0], files[3]):
        read(file)
    assert [url for url, _, _ in shards._open] == [files[number].url for number in (2, 0, 3)]  # b was not used longest.
    monkeypatch.setattr(shards, "OPEN_BYTES", files[0].size - 1)
    read(files[1])
    assert not shards._open
