"""Reading items of the plan: files to shuffled, legal events of one split.

Rows that cannot be used go to the quarantine data set with the reason, events above the cap to the outliers data set.
"""

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Literal, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Bool, Float64, Int64, UInt64

from crmuons.data import schema
from crmuons.data.events import NONE, concat, draw_first, shuffle, shuffle_runs, slice_events, take, turn
from crmuons.data.prefetch import in_order
from crmuons.data.quarantine import outliers as quarantine_outliers
from crmuons.data.quarantine import quarantine as quarantine_quarantine
from crmuons.data.sampler import MAX_UNIT_BYTES, Item, Unit, cut, permutation
from crmuons.data.schema import EventArrays
from crmuons.data.shards import is_shard
from crmuons.data.shards import read_rows as shards_read_rows
from crmuons.storage.files import File, is_remote
from crmuons.storage.staging.download import Staging, open_unit
from crmuons.storage.staging.stager import with_own_stager

Read = TypeVar("Read")
Split = Literal["train", "validation", "test", "all"]
READS_AT_ONCE = 16  # Of remote files: a small one is one or two round trips, in which nothing else happens.
SAMPLE_SHARD_BYTES = 8 * 2**20  # Of shards in a sample: the driver takes 229 MB for it, and 327 with units of 64 MB.
EARTH_RADIUS_M = 6_374_134.0  # To the surface of the ice at the South Pole, as Muonitron takes it.


@dataclass(frozen=True)
class Selection:
    """Which events are wanted, and where those that cannot be used go.

    Attributes:
        split: of the showers, by a hash of their ids.
        validation_share, test_share: shares of the showers.
        vertical_depth: the files' depth_m is the vertical depth.
        max_muons: events with more go to `outliers`.
        quarantine, outliers: directories; None to count without keeping.
        muons_drawn: so many muons of an event that has more are drawn at random and come first. None: the file's order.
        staging: where remote files are copied to before they are read; None to read them where they lie.
    """

    split: Split = "all"
    validation_share: float = 0.0
    test_share: float = 0.0
    vertical_depth: bool = False
    max_muons: int | None = None
    quarantine: str | None = None
    outliers: str | None = None
    muons_drawn: int | None = None
    staging: Staging | None = None

    @property
    def bounds(self) -> tuple[float, float]:
        """The places of the split's showers, from the lower up to but not including the upper; see `places`."""
        test, held_out = self.test_share, self.test_share + self.validation_share
        return {"test": (0.0, test), "validation": (test, held_out), "train": (held_out, 1.0), "all": (0.0, 1.0)}[
            self.split
        ]


@dataclass(frozen=True)
class Tally:
    """What became of the rows read."""

    rows: int = 0
    quarantined: int = 0
    outliers: int = 0
    outlier_muons: int = 0

    def __add__(self, other: "Tally") -> "Tally":
        return Tally(
            self.rows + other.rows,
            self.quarantined + other.quarantined,
            self.outliers + other.outliers,
            self.outlier_muons + other.outlier_muons,
        )


Piece = Tally | EventArrays  # Each item of the plan: what became of its rows, then its events.


@dataclass(frozen=True)
class Rows:
    """Rows of a Parquet file as they are in it.

    Attributes:
        first: the number of the first one in the file.
        file_id: stands for the file in the ids of its rows; None where these have ids of their own.
    """

    table: pa.Table
    first: int
    file_id: int | None

    def ids(self, rows: np.ndarray) -> UInt64[np.ndarray, "rows 2"] | None:
        """Ids for some of the rows where the file has none: the file and the row's number in it, a shower for each row."""
        if self.file_id is None:
            return None
        ids = np.empty((len(rows), 2), np.uint64)
        ids[:, 0] = self.file_id
        ids[:, 1] = self.first + rows
        return ids


@dataclass(frozen=True)
class _Part:
    """Legal events of a unit, which of them are wanted, and what became of the rows."""

    events: EventArrays
    wanted: Int64[np.ndarray, " wanted"]
    tally: Tally


def read_here(items: Iterator[Item], selection: Selection) -> Iterator[Piece]:
    """Read items in this process; ray_data.read_with_ray does the same in Ray tasks."""
    for item, staging in with_own_stager(items, selection.staging):
        tally, events = read_item(item, replace(selection, staging=staging))
        yield tally
        if len(events.counts):
            yield events


def read_item(item: Item, selection: Selection) -> tuple[Tally, EventArrays]:
    """Read one segment: its events in their shuffled order, without those taken before.

    Files may have the muons of an event sorted, and training takes the first ones of a large event: see
    `Selection.muons_drawn`.
    """
    if selection.staging is not None:
        selection.staging.begin()
    parts = [part for read in in_turn(_read_parts, item.units, selection) for part in read]
    # A position inside an item was saved with a tally that holds the item's rows: they are not counted twice.
    tally = Tally() if item.start else sum((part.tally for part in parts), Tally())
    random = np.random.default_rng([item.seed, item.epoch, item.segment])
    in_random_order = all(is_shard(unit.file) for unit in item.units)
    if in_random_order:
        events = shuffle_runs([_wanted(part) for part in parts], random)
    else:
        events = shuffle([(part.events, part.wanted) for part in parts], random)
    if selection.muons_drawn is not None:
        (turn if in_random_order else draw_first)(events, selection.muons_drawn, random)
    return tally, slice_events(events, item.start, len(events.counts))


def _wanted(part: _Part) -> EventArrays:
    return part.events if len(part.wanted) == len(part.events.counts) else take(part.events, part.wanted)


def in_turn(read: Callable[[Unit, Selection], Read], units: Sequence[Unit], selection: Selection) -> Iterator[Read]:
    """What reading units gives, in their order: remote ones several at once, as far as they take no more memory than one may."""
    # Staged files are local, and a stager brings them several at once.
    far = selection.staging is None and any(is_remote(unit.file.url) for unit in units)
    at_once = min(READS_AT_ONCE, MAX_UNIT_BYTES // max(1, *(unit.size for unit in units)), len(units)) if far else 1
    if at_once < 2:
        return (read(unit, selection) for unit in units)
    return in_order(lambda unit: read(unit, selection), units, at_once, "read")


@dataclass
class Limit:
    """Whether more of all rows there are than a given share cannot be used, told before all are read.

    One bad file read early does not make it so: the bad rows are held against all rows, whose number follows from the rows
    and bytes read and from all bytes.

    Attributes:
        share: what may be unusable.
        total_bytes: of the files.
    """

    share: float
    total_bytes: int
    _rows: int = 0
    _bytes: int = 0

    def count(self, rows: int, size: int) -> None:
        """Some rows were read from so many bytes."""
        self._rows, self._bytes = self._rows + rows, self._bytes + size

    def is_exceeded(self, tally: Tally) -> bool:
        """Whether the bad rows of a tally are too many, even if none is bad among those not read yet."""
        expected = self._rows * self.total_bytes / self._bytes if self._bytes else 0
        return tally.quarantined > self.share * max(tally.rows, expected)


def sample_events(
    found: Sequence[File],
    wanted: Sequence[tuple[Selection, int]],
    seed: int = 0,
    max_quarantined_share: float = 1.0,
) -> tuple[list[EventArrays], Tally]:
    """Up to so many events of several selections, in one pass over units in random order.

    Args:
        found: the files.
        wanted: selections, and how many events of each.
        seed: of the order.
        max_quarantined_share: of all rows there are.

    Returns:
        The events of each selection, fewer where the files hold fewer, and what became of the rows read.

    Raises:
        ValueError: if a file is not one of events, or too many rows cannot be used.
    """
    shards = [file for file in found if is_shard(file)]
    # Raw files may be one row group, which is decoded for each unit: they are not cut more finely.
    units = [*cut([file for file in found if not is_shard(file)]), *cut(shards, SAMPLE_SHARD_BYTES)]
    units = permutation(units, seed, 0)
    limit = Limit(max_quarantined_share, sum(unit.size for unit in units))
    parts: list[list[EventArrays]] = [[] for _ in wanted]
    tally = Tally()
    for unit, (events, read) in zip(units, in_turn(read_unit, units, replace(wanted[0][0], split="all")), strict=False):
        tally += read
        limit.count(read.rows, unit.size)
        _check_sample(limit, tally)
        for (selection, number), got in zip(wanted, parts, strict=True):
            missing = max(number - _num_events(got), 0)
            got.append(take(events, np.flatnonzero(in_split(events.ids, selection))[:missing]))
        if all(_num_events(got) >= number for (_, number), got in zip(wanted, parts, strict=True)):
            break
    return [concat(got) for got in parts], tally


def _num_events(parts: Sequence[EventArrays]) -> int:
    return sum(len(part.counts) for part in parts)


def _check_sample(limit: Limit, tally: Tally) -> None:
    if limit.is_exceeded(tally):
        msg = (
            f"{tally.quarantined} of the first {tally.rows} rows read cannot be used, more than data.max_quarantined_share = "
            f"{limit.share:g} of all rows; the warnings above name files, rows and reasons"
        )
        raise ValueError(msg)


def read_unit(unit: Unit, selection: Selection) -> tuple[EventArrays, Tally]:
    """Read one unit: its legal events of the split, and what became of its rows.

    Raises:
        ValueError: if the file is not Parquet, or its columns are not the contract's, or it is a damaged shard; the message
            names the file.
    """
    parts = _read_parts(unit, selection)
    return concat([_wanted(part) for part in parts]), sum((part.tally for part in parts), Tally())


def _read_parts(unit: Unit, selection: Selection) -> list[_Part]:
    if is_shard(unit.file):
        pieces, places_between = shards_read_rows(unit, selection.staging)
        return [_select(events, Tally(len(events.counts)), places_between, unit, selection) for events in pieces]
    pieces, tally = _read_raw(unit, selection)
    parts = [_select(events, Tally(), (0.0, 1.0), unit, selection) for events in pieces]
    return [_Part(NONE, np.empty(0, np.int64), tally), *parts]


def _select(
    events: EventArrays, tally: Tally, places_between: tuple[float, float], unit: Unit, selection: Selection
) -> _Part:
    """Which of some legal events are of the split and below the cap."""
    wanted = _in_bounds(events.ids, selection.bounds, places_between)
    if selection.max_muons is not None and (above := events.counts > selection.max_muons).any():
        outliers = take(events, np.flatnonzero(above & wanted))
        quarantine_outliers(outliers, unit, selection.outliers)
        tally += Tally(outliers=len(outliers.counts), outlier_muons=len(outliers.muons))
        wanted &= ~above
    return _Part(events, np.flatnonzero(wanted), tally)


def _read_raw(unit: Unit, selection: Selection) -> tuple[list[EventArrays], Tally]:
    """The legal events of a Parquet file's rows in pieces, and what became of the others."""
    rows = read_rows(unit, selection.staging)
    legal = _all_legal(rows)
    quarantined = 0
    if legal is None:
        fault = schema.faults(rows.table)
        quarantined = int((fault > 0).sum())
        quarantine_quarantine(rows.table, fault, rows.first, unit, selection.quarantine)
        kept = rows.table.filter(pa.array(fault == 0))
        legal = [schema.to_arrays(kept, missing_ids=rows.ids(np.flatnonzero(fault == 0)))]
    if selection.vertical_depth:
        legal = [with_slant_depth(events) for events in legal]
    return legal, Tally(rows.table.num_rows, quarantined)


def _all_legal(rows: Rows) -> list[EventArrays] | None:
    """The events of each row group, whose memory is one; None if a row is not legal."""
    pieces: list[EventArrays] = []
    first = 0
    for batch in rows.table.to_batches():
        ids = rows.ids(np.arange(first, first + batch.num_rows))
        events = schema.legal_arrays(pa.Table.from_batches([batch]), missing_ids=ids)
        if events is None:
            return None
        pieces.append(events)
        first += batch.num_rows
    return pieces


def in_split(ids: UInt64[np.ndarray, "events 2"], selection: Selection) -> Bool[np.ndarray, " events"]:
    """Which events belong to the split: by shower, the same on every machine and in every order of the files."""
    return _in_bounds(ids, selection.bounds, (0.0, 1.0))


def _in_bounds(
    ids: UInt64[np.ndarray, "events 2"], bounds: tuple[float, float], places_between: tuple[float, float]
) -> Bool[np.ndarray, " events"]:
    """Which showers have their places within bounds; they need not be computed where those of all lie in or outside."""
    (first, last), (low, high) = bounds, places_between
    if first <= low and high <= last:
        return np.ones(len(ids), bool)
    if high <= first or last <= low:
        return np.zeros(len(ids), bool)
    place = places(ids)
    return (place >= first) & (place < last)


def places(ids: UInt64[np.ndarray, "events 2"]) -> Float64[np.ndarray, " events"]:
    """The places of showers, uniform on [0, 1): from 0 up come those to test with, then to validate, then to train."""
    return (_mix(_mix(ids[:, 0]) ^ ids[:, 1]) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def with_slant_depth(events: EventArrays) -> EventArrays:
    """Turn vertical depths into slant depths, through a spherical Earth.

    The path from the surface at radius R to depth d under the detector's zenith: with r = R - d,
    slant = sqrt(R^2 - r^2 sin^2) - r cos.
    """
    primaries = events.primaries.copy()
    zenith, depth = primaries[:, 1].astype(np.float64), primaries[:, 3].astype(np.float64)
    radius = EARTH_RADIUS_M - depth
    # R^2 - r^2 sin^2 = r^2 cos^2 + d (2 R - d): written so that nothing large cancels.
    square = (radius * np.cos(zenith)) ** 2 + depth * (2 * EARTH_RADIUS_M - depth)
    primaries[:, 3] = np.sqrt(square) - radius * np.cos(zenith)
    return EventArrays(events.ids, primaries, events.counts, events.muons)


def read_rows(unit: Unit, staging: Staging | None = None) -> Rows:
    """The unit's rows of a Parquet file.

    Raises:
        ValueError: if the file is not Parquet, or its columns are not the contract's; the message names the file.
    """
    url = unit.file.url
    with open_unit(unit, staging) as opened, named_if_damaged(url):
        parquet = pq.ParquetFile(opened, pre_buffer=True)
        has_ids = schema.check_schema(parquet.schema_arrow, url)
        file_id = None if has_ids else _file_id(opened, url, parquet.metadata.serialized_size)
        rows, groups, first = _row_groups(parquet.metadata, unit)
        table = parquet.read_row_groups(groups, columns=schema.columns_to_read(has_ids), use_threads=False)
    return Rows(table.slice(rows.start - first, len(rows)), rows.start, file_id)


@contextmanager
def named_if_damaged(url: str) -> Iterator[None]:
    """Name the file when Arrow cannot make sense of it. An error of the storage names itself, and passes."""
    try:
        yield
    except (pa.ArrowInvalid, OSError) as error:
        # Arrow says OSError too when a page does not decode; those of the storage are subclasses, or have a number.
        if isinstance(error, OSError) and (type(error) is not OSError or error.errno is not None):
            raise
        msg = f"{url} is not a Parquet file, or is damaged or cut short ({error}); convert it again, or leave it out"
        raise ValueError(msg) from error


def _file_id(opened: IO[bytes], url: str, footer_bytes: int) -> int:
    """What stands for a file in its rows' ids: its name and its footer, which knows sizes and ranges of all columns.

    Files of one name in several folders differ in it; a file that was moved, or a copy of it, does not.
    """
    opened.seek(-8 - footer_bytes, os.SEEK_END)
    digest = hashlib.sha256(Path(url).name.encode() + opened.read(footer_bytes)).digest()
    return int.from_bytes(digest[:8], "little")


def _row_groups(metadata: pq.FileMetaData, unit: Unit) -> tuple[range, list[int], int]:
    """The unit's rows, the row groups that hold some of them, and the number of the first row in the first of these.

    A unit ends where the nearest row group does, so that none is decoded twice, unless row groups are larger than units.
    """
    sizes = [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)]
    bounds = np.cumsum([0, *sizes], dtype=np.int64)
    rows = unit.rows(metadata.num_rows)
    start, stop = (_group_bound(bounds, row, metadata.num_rows // unit.parts) for row in (rows.start, rows.stop))
    groups = np.flatnonzero((bounds[1:] > start) & (bounds[:-1] < stop))
    return range(start, stop), groups.tolist(), int(bounds[groups[0]]) if len(groups) else start


def _group_bound(bounds: Int64[np.ndarray, " bounds"], row: int, largest: int) -> int:
    """The bound of row groups nearest to a row, or the row where its group holds more rows than `largest`."""
    above = int(np.searchsorted(bounds, row))
    if bounds[above] == row:
        return row
    low, high = int(bounds[above - 1]), int(bounds[above])
    if high - low > largest:
        return row
    return low if row - low <= high - row else high


def _mix(values: UInt64[np.ndarray, " n"]) -> UInt64[np.ndarray, " n"]:
    """The finaliser of SplitMix64: 64 bits to 64 bits, every input bit moves every output bit (Steele et al. 2014)."""
    with np.errstate(over="ignore"):
        values = values + np.uint64(0x9E3779B97F4A7C15)
        values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
