"""Reading items of the plan: Parquet rows to shuffled tables of legal events of one split.

Rows that cannot be used go to the quarantine data set with the reason, events above the cap to the outliers data set; both are
written once per unit, under a name made from it, so that reading a unit again adds nothing.
"""

import hashlib
import json
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Bool, Float32, UInt64

from crmuons import files, schema
from crmuons.plan import Item, Unit, cut, permutation
from crmuons.schema import EventArrays

logger = logging.getLogger(__name__)

Split = Literal["train", "validation", "test", "all"]
TABLE_ROWS = 8192  # Rows of a table that leaves the reader: large against the cost of a table, small against memory.
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
    """

    split: Split = "all"
    validation_share: float = 0.0
    test_share: float = 0.0
    vertical_depth: bool = False
    max_muons: int | None = None
    quarantine: str | None = None
    outliers: str | None = None


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


Piece = Tally | EventArrays  # Each item of the plan: what became of its rows, then its events in pieces.


def read_item(item: Item, selection: Selection) -> tuple[Tally, Iterator[EventArrays]]:
    """Read one segment: its events in their shuffled order, without those taken before, in pieces of TABLE_ROWS.

    The muons of an event are shuffled too: files may have them sorted, and training takes the first ones of a large event.
    """
    parts = [read_unit(unit, selection) for unit in item.units]
    # A position inside an item was saved with a tally that holds the item's rows: they are not counted twice.
    tally = Tally() if item.start else sum((tally for _, tally in parts), Tally())
    events = concat([events for events, _ in parts])
    random = np.random.default_rng([item.seed, item.epoch, item.segment])
    order = random.permutation(len(events.counts))
    muon_keys = random.random(len(events.muons), dtype=np.float32)
    events = take(shuffle_muons(events, muon_keys), order[item.start :])
    return tally, (slice_events(events, low, low + TABLE_ROWS) for low in range(0, len(events.counts), TABLE_ROWS))


def sample_events(
    urls: str | Sequence[str], wanted: Sequence[tuple[Selection, int]], seed: int = 0
) -> tuple[list[EventArrays], Tally]:
    """Up to so many events of several selections, in one pass over units in random order.

    Args:
        urls: paths, directories, globs or URLs.
        wanted: selections, and how many events of each.
        seed: of the order.

    Returns:
        The events of each selection, fewer where the files hold fewer, and what became of the rows read.

    Raises:
        FileNotFoundError: if there is nothing to read.
        ValueError: if a file is not one of events.
    """
    units = permutation(cut(files.list_files(urls)), seed, 0)
    parts: list[list[EventArrays]] = [[] for _ in wanted]
    tally = Tally()
    for unit in units:
        missing = [limit - sum(len(part.counts) for part in got) for (_, limit), got in zip(wanted, parts, strict=True)]
        if max(missing) <= 0:
            break
        events, read = read_unit(unit, replace(wanted[0][0], split="all"))
        tally += read
        for (selection, _), got, number in zip(wanted, parts, missing, strict=True):
            got.append(take(events, np.flatnonzero(in_split(events.ids, selection))[: max(number, 0)]))
    return [concat(got) for got in parts], tally


def read_unit(unit: Unit, selection: Selection) -> tuple[EventArrays, Tally]:
    """Read one unit: its legal events of the split, and what became of its rows.

    Raises:
        ValueError: if the file is not Parquet, or its columns are not the contract's; the message names the file.
    """
    table, first_row = read_rows(unit)
    fault = schema.faults(table)
    if fault.any():
        _quarantine(table, fault, first_row, unit, selection)
        table = table.filter(pa.array(fault == 0))
    rows = first_row + np.flatnonzero(fault == 0)
    events = schema.to_arrays(table, missing_ids=ids_of_rows(unit, rows))
    if selection.vertical_depth:
        events = with_slant_depth(events)
    events = take(events, np.flatnonzero(in_split(events.ids, selection)))
    events, outliers = _without_outliers(events, unit, selection)
    tally = Tally(len(fault), int((fault > 0).sum()), len(outliers.counts), len(outliers.muons))
    return events, tally


def in_split(ids: UInt64[np.ndarray, "events 2"], selection: Selection) -> Bool[np.ndarray, " events"]:
    """Which events belong to the split: by shower, the same on every machine and in every order of the files."""
    if selection.split == "all":
        return np.ones(len(ids), bool)
    place = (_mix(_mix(ids[:, 0]) ^ ids[:, 1]) >> np.uint64(11)).astype(np.float64) * 2.0**-53  # Uniform on [0, 1).
    test = place < selection.test_share
    validation = ~test & (place < selection.test_share + selection.validation_share)
    return {"test": test, "validation": validation, "train": ~test & ~validation}[selection.split]


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


def take(events: EventArrays, chosen: np.ndarray) -> EventArrays:
    """The chosen events in the order given, each with its muons."""
    starts = np.cumsum(events.counts) - events.counts
    counts = events.counts[chosen]
    ends = np.cumsum(counts)
    rows = np.arange(ends[-1] if len(ends) else 0) + np.repeat(starts[chosen] - (ends - counts), counts)
    return EventArrays(events.ids[chosen], events.primaries[chosen], counts, events.muons[rows])


def slice_events(events: EventArrays, start: int, stop: int) -> EventArrays:
    """Events start .. stop - 1, as views."""
    first, last = int(events.counts[:start].sum()), int(events.counts[:stop].sum())
    return EventArrays(
        events.ids[start:stop], events.primaries[start:stop], events.counts[start:stop], events.muons[first:last]
    )


def shuffle_muons(events: EventArrays, keys: Float32[np.ndarray, " muons"]) -> EventArrays:
    """Put the muons of each event in the order of random keys in [0, 1)."""
    event = np.repeat(np.arange(len(events.counts)), events.counts)
    # One sort: whole numbers keep the events apart, and a double holds 20 bits of key beside 2^32 events.
    muons = events.muons[np.argsort(event + keys.astype(np.float64))]
    return EventArrays(events.ids, events.primaries, events.counts, muons)


def concat(parts: Sequence[EventArrays]) -> EventArrays:
    """The events of several parts, in order."""
    return EventArrays(
        np.concatenate([part.ids for part in parts]),
        np.concatenate([part.primaries for part in parts]),
        np.concatenate([part.counts for part in parts]),
        np.concatenate([part.muons for part in parts]),
    )


def read_rows(unit: Unit) -> tuple[pa.Table, int]:
    """The unit's rows, and the number of the first in its file."""
    url = unit.file.url
    with files.open_file(url, unit.file.size) as opened, named_if_damaged(url):
        parquet = pq.ParquetFile(opened, pre_buffer=True)
        columns = schema.columns_to_read(schema.check_schema(parquet.schema_arrow, url))
        rows = unit.rows(parquet.metadata.num_rows)
        groups, first = _row_groups(parquet.metadata, rows)
        table = parquet.read_row_groups(groups, columns=columns, use_threads=False)
    return table.slice(rows.start - first, len(rows)), rows.start


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


def _row_groups(metadata: pq.FileMetaData, rows: range) -> tuple[list[int], int]:
    """The row groups that hold some rows, and the number of the first row in the first of them."""
    ends = np.cumsum([metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)], dtype=np.int64)
    starts = np.concatenate([[0], ends[:-1]]) if len(ends) else ends
    groups = np.flatnonzero((ends > rows.start) & (starts < rows.stop))
    return groups.tolist(), int(starts[groups[0]]) if len(groups) else rows.start


def ids_of_rows(unit: Unit, rows: np.ndarray) -> UInt64[np.ndarray, "rows 2"]:
    """Ids for rows without any: the file's name and the row's number. Every row is then its own shower."""
    name = hashlib.sha256(Path(unit.file.url).name.encode()).digest()[:8]
    ids = np.empty((len(rows), 2), np.uint64)
    ids[:, 0] = int.from_bytes(name, "little")
    ids[:, 1] = rows
    return ids


def _quarantine(table: pa.Table, fault: np.ndarray, first_row: int, unit: Unit, selection: Selection) -> None:
    bad = np.flatnonzero(fault)
    logger.warning(
        "%s: %d of %d rows cannot be used, the first of them row %d: %s",
        unit.file.url, len(bad), len(fault), first_row + bad[0], schema.FAULTS[fault[bad[0]]],
    )  # fmt: skip
    if selection.quarantine is None:
        return
    rows = table.take(pa.array(bad))
    rows = rows.append_column("source", pa.array([unit.file.url] * len(bad)))
    rows = rows.append_column("row", pa.array(first_row + bad))
    rows = rows.append_column("reason", pa.array([schema.FAULTS[code] for code in fault[bad]]))
    _write_once(rows, selection.quarantine, unit)


def _without_outliers(events: EventArrays, unit: Unit, selection: Selection) -> tuple[EventArrays, EventArrays]:
    if selection.max_muons is None:
        return events, take(events, np.empty(0, np.int64))
    above = events.counts > selection.max_muons
    outliers = take(events, np.flatnonzero(above))
    if above.any() and selection.outliers is not None:
        _write_once(outliers.to_table(), selection.outliers, unit)
    return take(events, np.flatnonzero(~above)), outliers


def _write_once(table: pa.Table, directory: str, unit: Unit) -> None:
    name = hashlib.sha256(json.dumps([unit.file.url, unit.part, unit.parts]).encode()).hexdigest()[:16]
    target = Path(directory) / f"{Path(unit.file.url).stem}-{name}.parquet"
    if target.exists():
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.name}.{np.random.SeedSequence().entropy:x}.partial")
    pq.write_table(table, partial)
    partial.replace(target)


def _mix(values: UInt64[np.ndarray, " n"]) -> UInt64[np.ndarray, " n"]:
    """The finaliser of SplitMix64: 64 bits to 64 bits, every input bit moves every output bit (Steele et al. 2014)."""
    with np.errstate(over="ignore"):
        values = values + np.uint64(0x9E3779B97F4A7C15)
        values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
