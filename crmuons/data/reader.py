"""Reading items of the plan: files to shuffled, legal events of one split.

Rows that cannot be used go to the quarantine data set with the reason, events above the cap to the outliers data set.
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
    rotate_muons,
    shuffle,
    shuffle_runs,
    slice_events,
    take,
)
from crmuons.data.geometry import with_slant_depth
from crmuons.data.manifest import is_shard
from crmuons.data.parquet import Rows, read_rows
from crmuons.data.prefetch import ordered_map
from crmuons.data.quarantine import ReadCounts, keep_outliers, keep_quarantined
from crmuons.data.sampler import MAX_SLICE_BYTES, FileSlice, Segment
from crmuons.data.selection import Selection, within_bounds
from crmuons.data.shards import read_shard_rows
from crmuons.data.staged_reading import with_own_stager
from crmuons.storage.files import is_remote

T = TypeVar("T")
READS_AT_ONCE = 16  # Of remote files: a small one is one or two round trips, in which nothing else happens.


ReadResult = ReadCounts | EventArrays  # Each item of the plan: what became of its rows, then its events.


@dataclass(frozen=True)
class _Part:
    """Legal events of a unit, which of them are wanted, and what became of the rows."""

    events: EventArrays
    wanted: Int64[np.ndarray, " wanted"]
    tally: ReadCounts


def read_in_process(items: Iterator[Segment], selection: Selection) -> Iterator[ReadResult]:
    """Read items in this process; ray_data.read_with_ray does the same in Ray tasks."""
    for item, staging in with_own_stager(items, selection.staging):
        tally, events = read_segment(item, replace(selection, staging=staging))
        yield tally
        if len(events.counts):
            yield events


def read_segment(item: Segment, selection: Selection) -> tuple[ReadCounts, EventArrays]:
    """Read one segment: its events in their shuffled order, without those taken before.

    Files may have the muons of an event sorted, and training takes the first ones of a large event: see
    `Selection.muons_per_event`.
    """
    if selection.staging is not None:
        selection.staging.begin()
    parts = [part for read in read_ordered(_read_parts, item.units, selection) for part in read]
    # A position inside an item was saved with a tally that holds the item's rows: they are not counted twice.
    tally = ReadCounts() if item.start else sum((part.tally for part in parts), ReadCounts())
    random = np.random.default_rng([item.seed, item.epoch, item.segment])
    in_random_order = all(is_shard(unit.file) for unit in item.units)
    if in_random_order:
        events = shuffle_runs([_wanted(part) for part in parts], random)
    else:
        events = shuffle([(part.events, part.wanted) for part in parts], random)
    if selection.muons_per_event is not None:
        (rotate_muons if in_random_order else partial_shuffle)(events, selection.muons_per_event, random)
    return tally, slice_events(events, item.start, len(events.counts))


def _wanted(part: _Part) -> EventArrays:
    return part.events if len(part.wanted) == len(part.events.counts) else take(part.events, part.wanted)


def read_ordered(
    read: Callable[[FileSlice, Selection], T], units: Sequence[FileSlice], selection: Selection
) -> Iterator[T]:
    """What reading units gives, in their order: remote ones several at once, as far as they take no more memory than one may."""
    # Staged files are local, and a stager brings them several at once.
    far = selection.staging is None and any(is_remote(unit.file.url) for unit in units)
    at_once = min(READS_AT_ONCE, MAX_SLICE_BYTES // max(1, *(unit.size for unit in units)), len(units)) if far else 1
    if at_once < 2:
        return (read(unit, selection) for unit in units)
    return ordered_map(lambda unit: read(unit, selection), units, at_once, "read")


def read_slice(unit: FileSlice, selection: Selection) -> tuple[EventArrays, ReadCounts]:
    """Read one unit: its legal events of the split, and what became of its rows.

    Raises:
        ValueError: if the file is not Parquet, or its columns are not the contract's, or it is a damaged shard; the message
            names the file.
    """
    parts = _read_parts(unit, selection)
    return concat([_wanted(part) for part in parts]), sum((part.tally for part in parts), ReadCounts())


def _read_parts(unit: FileSlice, selection: Selection) -> list[_Part]:
    if is_shard(unit.file):
        pieces, places_between = read_shard_rows(unit, selection.staging)
        return [_select(events, ReadCounts(len(events.counts)), places_between, unit, selection) for events in pieces]
    pieces, tally = _read_raw(unit, selection)
    parts = [_select(events, ReadCounts(), (0.0, 1.0), unit, selection) for events in pieces]
    return [_Part(NO_EVENTS, np.empty(0, np.int64), tally), *parts]


def _select(
    events: EventArrays, tally: ReadCounts, places_between: tuple[float, float], unit: FileSlice, selection: Selection
) -> _Part:
    """Which of some legal events are of the split and below the cap."""
    wanted = within_bounds(events.ids, selection.bounds, places_between)
    if selection.max_muons is not None and (above := events.counts > selection.max_muons).any():
        outliers = take(events, np.flatnonzero(above & wanted))
        keep_outliers(outliers, unit, selection.outliers)
        tally += ReadCounts(outliers=len(outliers.counts), outlier_muons=len(outliers.muons))
        wanted &= ~above
    return _Part(events, np.flatnonzero(wanted), tally)


def _read_raw(unit: FileSlice, selection: Selection) -> tuple[list[EventArrays], ReadCounts]:
    """The legal events of a Parquet file's rows in pieces, and what became of the others."""
    rows = read_rows(unit, selection.staging)
    legal = _all_legal(rows)
    quarantined = 0
    if legal is None:
        fault = schema.faults(rows.table)
        quarantined = int((fault > 0).sum())
        keep_quarantined(rows.table, fault, rows.first, unit, selection.quarantine)
        kept = rows.table.filter(pa.array(fault == 0))
        legal = [arrow.to_arrays(kept, missing_ids=rows.ids(np.flatnonzero(fault == 0)))]
    if selection.vertical_depth:
        legal = [with_slant_depth(events) for events in legal]
    return legal, ReadCounts(rows.table.num_rows, quarantined)


def _all_legal(rows: Rows) -> list[EventArrays] | None:
    """The events of each row group, whose memory is one; None if a row is not legal."""
    pieces: list[EventArrays] = []
    first = 0
    for batch in rows.table.to_batches():
        ids = rows.ids(np.arange(first, first + batch.num_rows))
        events = arrow.legal_arrays(pa.Table.from_batches([batch]), missing_ids=ids)
        if events is None:
            return None
        pieces.append(events)
        first += batch.num_rows
    return pieces
