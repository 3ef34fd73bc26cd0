"""Read the Segments of a ReadPlan: from files to shuffled, legal events of one split.

The Loader's thread calls `read_in_process`, or ray_backend.data calls `read_segment` in Ray tasks; both give the same
events. Raw Parquet rows are checked against the contract. Rows that cannot be used go to the quarantine data set with
the reason, and events above the muon cap go to the outliers data set. Prepared shards were checked when they were
written.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
import pyarrow as pa
from jaxtyping import Int64

from crmuons.data import arrow, schema
from crmuons.data.events import (
    NO_EVENTS,
    EventArrays,
    concat,
    partial_shuffle,
    shuffle,
    slice_events,
    take,
    with_columns,
)
from crmuons.data.features import columns_of
from crmuons.data.geometry import with_slant_depth
from crmuons.data.manifest import HashRange, is_shard
from crmuons.data.parquet import DamagedError, Rows, read_rows
from crmuons.data.prefetch import ordered_map
from crmuons.data.quarantine import ReadCounts, keep_outliers, keep_quarantined, keep_skipped
from crmuons.data.runs import shuffle_runs
from crmuons.data.sampler import MAX_SLICE_BYTES, FileSlice, Segment
from crmuons.data.selection import Selection, chosen
from crmuons.data.shards import read_shard_rows
from crmuons.data.staged_reading import with_own_stager
from crmuons.storage.changed import ChangedError
from crmuons.storage.files import is_remote
from crmuons.storage.identity import REMEDY

T = TypeVar("T")
READS_AT_ONCE = 16  # Remote files read at once. A small file needs one or two round trips, which take most of the time.
UNUSABLE = (FileNotFoundError, ChangedError, DamagedError)  # Errors of files that Selection.skip_missing leaves out.


ReadResult = ReadCounts | EventArrays  # For each segment: the counts of its rows, then its events if there are any.


@dataclass(frozen=True)
class _Part:
    """Legal events of a slice, the indices of the selected events (None: all), and the counts of the rows."""

    events: EventArrays
    chosen: Int64[np.ndarray, " chosen"] | None
    read_counts: ReadCounts

    @property
    def indices(self) -> Int64[np.ndarray, " chosen"]:
        return np.arange(len(self.events.counts)) if self.chosen is None else self.chosen


def read_in_process(segments: Iterator[Segment], selection: Selection) -> Iterator[ReadResult]:
    """Read segments in this process; ray_backend.data.read_with_ray does the same in Ray tasks.

    Yields:
        For each segment its ReadCounts, then its events if it has any.
    """
    for segment, staging in with_own_stager(segments, selection.staging):
        read_counts, events = read_segment(segment, replace(selection, staging=staging))
        yield read_counts
        if events.num_events:
            yield events


def read_segment(segment: Segment, selection: Selection) -> tuple[ReadCounts, EventArrays]:
    """Read one segment.

    Files may hold the muons of an event in sorted order, and training takes the first muons of a large event. Therefore
    `Selection.muons_per_event` brings random muons to the front.

    Returns:
        The counts of its rows, and its selected events in shuffled order, without the first `segment.start`.

    Raises:
        ValueError: see `read_slice`.
    """
    if selection.staging is not None:
        selection.staging.begin()
    # The parts have the order of the segment's slices, whatever the number of threads, so the shuffle is always the same.
    parts = [part for read in read_ordered(_read_parts, segment.slices, selection) for part in read]
    # A checkpoint taken inside a segment already counts all rows of the segment: do not count them twice.
    read_counts = ReadCounts() if segment.start else sum((part.read_counts for part in parts), ReadCounts())
    # The seed depends only on the segment: every process that reads it, and every repetition, draws the same numbers.
    random = np.random.default_rng([segment.seed, segment.epoch, segment.number])
    # Shards are shuffled already, so mixing their runs is enough. They are copied now, just after the check of the files: if
    # someone cuts a mapped file later, reading it ends the process with a bus error and no message.
    if all(is_shard(part.file) for part in segment.slices):
        runs = shuffle_runs([_chosen_events(part) for part in parts], selection.muons_per_event, random)
        events = runs.copied()
    else:
        events = shuffle([(part.events, part.indices) for part in parts], random)
        if selection.muons_per_event is not None:
            partial_shuffle(events, selection.muons_per_event, random)
    return read_counts, slice_events(events, segment.start, events.num_events)


def _chosen_events(part: _Part) -> EventArrays:
    return part.events if part.chosen is None else take(part.events, part.chosen)


def read_ordered(
    read: Callable[[FileSlice, Selection], T], slices: Sequence[FileSlice], selection: Selection
) -> Iterator[T]:
    """Apply `read` to slices and yield the results in order.

    Remote slices are read in several threads; the slices that are read at the same time have at most MAX_SLICE_BYTES.
    """
    # Staged files are local, and the stager downloads several at once.
    remote = selection.staging is None and any(is_remote(part.file.url) for part in slices)
    at_once = (
        min(READS_AT_ONCE, MAX_SLICE_BYTES // max(1, *(part.size for part in slices)), len(slices)) if remote else 1
    )
    if at_once < 2:
        return (read(part, selection) for part in slices)
    return ordered_map(lambda part: read(part, selection), slices, at_once, "read")


def read_slice(file_slice: FileSlice, selection: Selection) -> tuple[EventArrays, ReadCounts]:
    """Read the legal, selected events of one slice, in the file's order.

    Returns:
        The events, and the counts of the slice's rows.

    Raises:
        ValueError: if the file is not Parquet, its columns are not the contract's, or it is a damaged shard; the
            message names the file.
    """
    parts = _read_parts(file_slice, selection)
    events = concat([_chosen_events(part) for part in parts])
    return events, sum((part.read_counts for part in parts), ReadCounts())


def _read_parts(file_slice: FileSlice, selection: Selection) -> list[_Part]:
    try:
        return _read_usable_parts(file_slice, selection)
    except UNUSABLE as error:
        if not selection.skip_missing:
            raise
        keep_skipped(file_slice.file, str(error).partition(f": {REMEDY}")[0], selection.quarantine)
        return [_Part(NO_EVENTS, None, ReadCounts(skipped_slices=1))]


def _read_usable_parts(file_slice: FileSlice, selection: Selection) -> list[_Part]:
    if is_shard(file_slice.file):
        batches, hash_range = read_shard_rows(
            file_slice, selection.staging, selection.digests, features=selection.muon_features
        )
        return [
            _select(events, ReadCounts(len(events.counts)), hash_range, file_slice, selection) for events in batches
        ]
    # The first part has the counts and no events: a slice that has only bad rows must be counted too.
    groups, read_counts = _read_raw(file_slice, selection)
    parts = [_select(events, ReadCounts(), (0.0, 1.0), file_slice, selection) for events in groups]
    return [_Part(NO_EVENTS, None, read_counts), *parts]


def _select(
    events: EventArrays, read_counts: ReadCounts, hash_range: HashRange, file_slice: FileSlice, selection: Selection
) -> _Part:
    """Choose the events of the split that are below the muon cap; keep and count those above it."""
    kept = chosen(events.ids, selection, hash_range)
    if selection.max_muons is not None and (above := events.counts > selection.max_muons).any():
        # Only large events of this split are kept: the others do not belong to this run.
        outliers = take(events, np.flatnonzero(above & kept))
        keep_outliers(outliers, file_slice, selection.outliers, selection.muon_features)
        read_counts += ReadCounts(outliers=len(outliers.counts), outlier_muons=len(outliers.muons))
        kept &= ~above
    return _Part(events, None if kept.all() else np.flatnonzero(kept), read_counts)


def _read_raw(file_slice: FileSlice, selection: Selection) -> tuple[list[EventArrays], ReadCounts]:
    """Return the legal events of a Parquet slice in a few parts, and the counts of its rows."""
    rows = read_rows(file_slice, selection.staging, selection.digests)
    # First a cheap check of all rows. Only if it fails, an expensive check finds the bad rows and the reasons.
    legal = _all_legal(rows)
    quarantined = 0
    if legal is None:
        fault = schema.faults(rows.table, rows.features)
        quarantined = int((fault > 0).sum())
        keep_quarantined(rows.table, fault, rows.first, file_slice, selection.quarantine)
        good_rows = rows.table.filter(pa.array(fault == 0))
        legal = [arrow.to_arrays(good_rows, rows.ids(np.flatnonzero(fault == 0)), rows.features)]
    columns = columns_of(rows.features, selection.muon_features, file_slice.file.url)
    if columns is not None:
        legal = [with_columns(events, columns) for events in legal]
    if selection.vertical_depth:
        legal = [with_slant_depth(events) for events in legal]
    return legal, ReadCounts(rows.table.num_rows, quarantined)


def _all_legal(rows: Rows) -> list[EventArrays] | None:
    """Return the events of each row group, without copying row groups together; None if any row is not legal."""
    groups: list[EventArrays] = []
    first = 0
    # Each row group has its columns in one piece; joining row groups would copy all of them.
    for batch in rows.table.to_batches():
        ids = rows.ids(np.arange(first, first + batch.num_rows))
        events = arrow.legal_arrays(pa.Table.from_batches([batch]), ids, rows.features)
        if events is None:
            return None
        groups.append(events)
        first += batch.num_rows
    return groups
