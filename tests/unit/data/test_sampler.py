"""The read plan: every slice once an epoch, for any number of ranks and any changes of this number."""

from collections import Counter
from itertools import islice, takewhile

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crmuons.data import sampler
from crmuons.data.sampler import FileSlice, ReadPlan
from crmuons.storage.files import File

FILES = st.lists(st.integers(0, 200), min_size=1, max_size=90).map(
    lambda sizes: [File(f"f{i:03}.parquet", size) for i, size in enumerate(sizes)]
)


def small_plan(world, *, slices=24, seed=0):
    """Slices of one byte in segments of two: 12 segments an epoch."""
    cut = tuple(FileSlice(File(f"f{i}", 1), 0, 1) for i in range(slices))
    return ReadPlan(cut, seed, 2, world)


def segments_before(reading, rank, epoch):
    return list(
        takewhile(lambda segment: segment.epoch < epoch or is_backlog(reading, segment), reading.segments_of_rank(rank))
    )


def is_backlog(reading, segment):
    return segment.epoch < reading.base_epoch


@settings(max_examples=30)
@given(FILES, st.integers(1, 400), st.integers(0, 5))
def test_every_slice_is_in_exactly_one_segment_of_every_epoch(files, segment_bytes, epoch):
    slices = sampler.cut_files(files)
    segments = ReadPlan(tuple(slices), 3, segment_bytes, 1).segments(epoch)
    assert Counter(part for segment in segments for part in segment) == Counter(slices)
    assert all(segments)  # A segment without slices would be read for nothing.


@settings(max_examples=30)
@given(FILES, st.integers(1, 20), st.integers(0, 10_000))
def test_slices_cover_every_row_of_every_file_once(files, segment_bytes, rows):
    slices = sampler.cut_files(files)
    for file in files[:3]:
        assert [row for part in slices if part.file == file for row in part.rows(rows)] == list(range(rows))


def test_few_files_are_cut_but_not_into_crumbs():
    (part,) = sampler.cut_files([File("small", sampler.MIN_SLICE_BYTES)])
    assert part.parts == 1
    # 8 files of 40 MB: 64 / 8 = 8 parts each, of 5 MB.
    assert len(sampler.cut_files([File(f"f{i}", 10 * sampler.MIN_SLICE_BYTES) for i in range(8)])) == sampler.MIN_SLICES


def test_large_files_are_cut_into_slices_that_fit_in_memory():
    slices = sampler.cut_files([File("big", 10 * sampler.MAX_SLICE_BYTES + 1)] + [File(f"f{i}", 10) for i in range(64)])
    assert Counter(part.file.url for part in slices)["big"] == 11
    assert all(part.size <= sampler.MAX_SLICE_BYTES for part in slices)


@settings(max_examples=30)
@given(st.integers(1, 15), st.integers(1, 40), st.integers(0, 3))
def test_ranks_share_every_epoch_out_between_them(world, slices, seed):
    reading = small_plan(world, slices=slices, seed=seed)
    read = [segment for rank in range(world) for segment in segments_before(reading, rank, 3)]
    once = {(epoch, i) for epoch in range(3) for i in range(len(reading.segments(epoch)))}
    assert Counter((segment.epoch, segment.number) for segment in read) == Counter(once)
    for segment in read:
        assert segment.slices == reading.segments(segment.epoch)[segment.number]
        assert segment.start == 0


def test_every_rank_reads_although_segments_are_fewer_than_ranks():
    reading = small_plan(5, slices=2)
    assert len(reading.segments(0)) == 2
    for rank in range(5):
        assert len(list(islice(reading.segments_of_rank(rank), 3))) == 3


def test_epochs_and_seeds_differ_in_order_and_repeat_exactly():
    reading = small_plan(1)
    assert reading.segments(0) != reading.segments(1)
    assert reading.segments(0) != small_plan(1, seed=1).segments(0)
    assert reading.segments(7) == small_plan(1).segments(7)
    assert reading.segments(0) == small_plan(4).segments(0)  # Segments do not depend on the number of ranks.


def test_the_order_of_the_files_is_the_seeds_on_every_machine():
    # A checkpoint's position means something only in this order: it must never change between versions.
    names = [part.file.url for part in sampler.permutation(small_plan(1, slices=8).slices, seed=1, epoch=2)]
    assert names == ["f6", "f0", "f7", "f5", "f1", "f4", "f3", "f2"]


def test_the_same_number_of_ranks_goes_on_with_the_same_plan_where_it_was():
    reading, positions = small_plan(2), [(3, 1), (5, 0)]
    assert reading.continued(2, positions) == (reading, positions)


@settings(max_examples=15)
@given(st.data())
def test_events_of_begun_epochs_are_read_exactly_once_however_often_the_number_of_ranks_changes(data):
    sizes = data.draw(st.lists(st.integers(0, 3), min_size=12, max_size=12))  # Events of each segment.
    reading, positions, seen = small_plan(data.draw(st.integers(1, 5))), None, Counter()
    for _ in range(data.draw(st.integers(1, 4))):
        positions = positions or [(0, 0)] * reading.world
        stops = [
            read_some(reading.segments_of_rank(rank), start, sizes, seen, data) for rank, start in enumerate(positions)
        ]
        reading, positions = reading.continued(data.draw(st.integers(1, 5)), stops)
        reading = ReadPlan.from_state(reading.slices, reading.seed, reading.segment_bytes, reading.state())
    last = max((epoch for epoch, _, _ in seen), default=0) + 1
    for rank, start in enumerate(positions or []):
        for i, segment in enumerate(reading.segments_of_rank(rank)):
            if segment.epoch > last and i >= len(reading.backlog):
                break
            taken = segment.start + (start[1] if i == start[0] else 0)
            if i >= start[0]:
                seen.update((segment.epoch, segment.number, event) for event in range(taken, sizes[segment.number]))
    expected = {
        (epoch, segment, event) for epoch in range(last + 1) for segment in range(12) for event in range(sizes[segment])
    }
    assert {event: number for event, number in seen.items() if event[0] <= last} == dict.fromkeys(expected, 1)


def read_some(segments, start, sizes, seen, data):
    """Read some of a rank's segments; return where it stopped. `taken` counts events from the segment's start."""
    stop_at = start[0] + data.draw(st.integers(0, 30))
    for i, segment in islice(enumerate(segments), start[0], None):
        before = start[1] if i == start[0] else 0
        left = max(0, sizes[segment.number] - segment.start - before)
        read = left if i < stop_at else data.draw(st.integers(0, left))
        first = segment.start + before
        seen.update((segment.epoch, segment.number, event) for event in range(first, first + read))
        if i >= stop_at:
            return i, before + read
    raise AssertionError


def test_epochs_already_in_the_backlog_are_not_read_whole_again():
    # Rank 1 is in epoch 1 when rank 0 still is in epoch 0: the backlog then spans both, and whole epochs begin with 2.
    once, positions = small_plan(2).continued(3, [(0, 1), (8, 1)])
    assert once.base_epoch == 2
    assert positions == [(0, 0)] * 3
    twice, _ = once.continued(4, positions)  # Stopped again at once: nothing of epoch 1 was read meanwhile.
    assert twice.base_epoch == 2
    assert twice.backlog == once.backlog


@pytest.mark.parametrize("world", [1, 3])
def test_a_plan_survives_its_state(world):
    reading, _ = small_plan(2).continued(world, [(2, 1), (9, 0)])
    again = ReadPlan.from_state(reading.slices, reading.seed, reading.segment_bytes, reading.state())
    assert again == reading


def test_a_position_in_other_segments_is_refused():
    slices = sampler.cut_files([File("f", 40 * sampler.MIN_SLICE_BYTES)])
    state = ReadPlan(tuple(slices), 0, 2**20, 1).state()
    for others, segment_bytes in ((slices[1:], 2**20), (slices, 2**21)):
        with pytest.raises(ValueError, match="continue with the version of crmuons that began the run"):
            ReadPlan.from_state(others, 0, segment_bytes, state)
