"""Read dumps of Muonitron, IceCube's propagation of CORSIKA showers to many depths, for `crmuons convert hdf5|parquet`.

The predecessor's scripts write these layouts (https://github.com/briedel/cr_muons, utils/dump_muonitron_data.py and its
versions, convert_to_parquet.py):

    HDF5     primaries [events, 7]   major_id, minor_id, energy, zenith, mass, time, depth     (6 wide: without time)
             muons     [muons, 6]    major_id, minor_id, energy, x, y, time                    (5 wide: without time)
             counts    [events]      number of muons of each event
    Parquet  primary, muons          the same rows as lists

Energies and masses are in GeV, angles in rad, lengths in m; the depth is vertical. An event without muons has one muon
of energy 0. Ids are single precision, exact up to 2^24.
"""

import hashlib
import os
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from crmuons.data import arrow, geometry, schema
from crmuons.data.events import EventArrays, take
from crmuons.data.parquet import open_parquet
from crmuons.simulation import content
from crmuons.simulation.columns import IDS, MUON, PRIMARY, Columns, layout_of
from crmuons.storage import files

MUONS_AT_ONCE = 2**20
EVENTS_AT_ONCE = 65_536
DATASETS = ("primaries", "muons", "counts")


@dataclass(frozen=True)
class _Rows:
    """Events as they are in the file.

    Attributes:
        primary: the primaries, [events, numbers].
        counts: number of muons of each event.
        muons: the muons, [muons, numbers].
        ids: ids from separate columns, [events, 2]; None if there are none.
    """

    primary: np.ndarray
    counts: np.ndarray
    muons: np.ndarray
    ids: np.ndarray | None = None

    def layout(self, columns: Mapping[str, tuple[str, ...]]) -> Columns:
        """Return the meaning of each number."""
        return layout_of(self.primary.shape[1], self.muons.shape[1] if len(self.muons) else None, columns)


class _Dump(ABC):
    """An open dump."""

    @abstractmethod
    def rows(self) -> Iterator[_Rows]:
        """Read the events in order."""

    @abstractmethod
    def primaries(self) -> Iterator[np.ndarray]:
        """Read the primaries alone, in order."""


def read_events(
    url: str, size: int, columns: Mapping[str, tuple[str, ...]], vertical: bool, notes: Counter[str]
) -> Iterator[EventArrays]:
    """Yield the events of a dump.

    Args:
        url: an HDF5 or a Parquet file.
        size: its size in bytes.
        columns: from `parse_columns`; rows that it does not name must have a width that the predecessor wrote.
        vertical: whether the depths are vertical; events get the slant depth.
        notes: counts events whose dummy muon was removed, and rows that break the contract for each reason.

    Raises:
        ValueError: if the file is neither, is damaged, or has rows of a width that is not known.
    """
    with _opened(url, size) as dump:
        numbering = _numbering(dump, url, columns, notes)
        for rows in dump.rows():
            events = _legal(_to_events(rows, rows.layout(columns), numbering, notes), notes)
            yield geometry.with_slant_depth(events) if vertical else events


@contextmanager
def _opened(url: str, size: int) -> Iterator[_Dump]:
    start = content.head(url, size)
    with files.open_file(url, size) as opened:
        if start.startswith(content.PARQUET):
            with open_parquet(opened, url) as parquet:
                yield _ParquetDump(parquet)
        elif start.startswith(content.HDF5):
            try:
                import h5py  # noqa: PLC0415  # an optional package
            except ImportError as error:
                msg = "reading HDF5 needs the package h5py: pip install 'crmuons[hdf5]'"
                raise ImportError(msg) from error
            try:
                with h5py.File(opened, "r") as file:
                    yield _Hdf5Dump(file)
            except (KeyError, RuntimeError, TypeError) as error:  # h5py raises these for damaged objects.
                msg = f"the HDF5 file is damaged ({error})"
                raise ValueError(msg) from error
        else:
            msg = f"neither HDF5 nor Parquet but {content.foreign(start) or 'of an unknown format'}"
            raise ValueError(msg)


class _Hdf5Dump(_Dump):
    def __init__(self, file: Any) -> None:
        missing = [name for name in DATASETS if name not in file]
        if missing:
            msg = f"no data set '{missing[0]}' (found {', '.join(file) or 'none'}); expected {', '.join(DATASETS)}"
            raise ValueError(msg)
        self.primary, self.muons, counts = (file[name] for name in DATASETS)
        self.counts = counts[:].astype(np.int64).reshape(-1)
        shapes = f"primaries {self.primary.shape}, muons {self.muons.shape}, counts {counts.shape}"
        if self.primary.ndim != 2 or self.muons.ndim != 2 or len(self.counts) != len(self.primary):
            msg = f"{shapes}: expected [events, numbers], [muons, numbers] and [events]"
            raise ValueError(msg)
        if (self.counts < 0).any() or self.counts.sum() != len(self.muons):
            msg = f"{shapes}: the counts add up to {self.counts.sum()} muons; the file is damaged or cut short"
            raise ValueError(msg)

    def rows(self) -> Iterator[_Rows]:
        ends = np.cumsum(self.counts)
        first = 0
        while first < len(ends):
            before = int(ends[first] - self.counts[first])
            last = int(np.searchsorted(ends, before + MUONS_AT_ONCE, side="right"))
            last = min(max(last, first + 1), first + EVENTS_AT_ONCE)
            yield _Rows(self.primary[first:last], self.counts[first:last], self.muons[before : int(ends[last - 1])])
            first = last

    def primaries(self) -> Iterator[np.ndarray]:
        for first in range(0, len(self.counts), EVENTS_AT_ONCE):
            yield self.primary[first : first + EVENTS_AT_ONCE]


class _ParquetDump(_Dump):
    def __init__(self, file: Any) -> None:
        self.file = file
        has_ids = schema.check_schema(file.schema_arrow, "the file")
        self.id_columns = list(schema.ID_COLUMNS) if has_ids else []

    def rows(self) -> Iterator[_Rows]:
        columns = [*self.id_columns, schema.PRIMARY_COLUMN, schema.MUONS_COLUMN]
        for table in self._tables(columns):
            muons = schema.one_array(table[schema.MUONS_COLUMN])
            ids = [arrow.shower_ids(table[name]) for name in self.id_columns]
            yield _Rows(
                _matrix(schema.one_array(table[schema.PRIMARY_COLUMN]), "primary"),
                np.maximum(schema.list_lengths(muons), 0),  # A null is an event without muons.
                _matrix(muons.flatten(), "muons"),
                np.stack(ids, axis=1) if ids else None,
            )

    def primaries(self) -> Iterator[np.ndarray]:
        for table in self._tables([schema.PRIMARY_COLUMN]):
            yield _matrix(schema.one_array(table[schema.PRIMARY_COLUMN]), "primary")

    def _tables(self, columns: list[str]) -> Iterator[pa.Table]:
        for batch in self.file.iter_batches(EVENTS_AT_ONCE // 8, columns=columns, use_threads=False):
            yield pa.Table.from_batches([batch])


def _matrix(lists: pa.Array, name: str) -> np.ndarray:
    """Return lists of equal length as rows."""
    widths = np.unique(schema.list_lengths(lists))
    if len(widths) > 1:
        msg = f"column '{name}' has rows of widths {', '.join(map(str, widths.tolist()))}; expected one width"
        raise ValueError(msg)
    width = int(widths[0]) if len(widths) else 0
    return schema.float32_values(lists.flatten()).reshape(len(lists), width)


@dataclass
class _Numbering:
    """Gives showers new numbers if their ids were rounded.

    Attributes:
        major: first id of all showers.
        last: the numbers of the last event so far that distinguish showers.
        number: number of the last shower so far.
    """

    major: int
    last: np.ndarray | None = None
    number: int = -1

    def ids(self, shower: np.ndarray) -> np.ndarray:
        """Return ids for events; neighbours with the same ids, energy, zenith and mass belong to one shower."""
        before = np.full_like(shower[:1], np.nan) if self.last is None else self.last[None]
        new = (np.concatenate([before, shower[:-1]]) != shower).any(axis=1)
        numbers = self.number + np.cumsum(new)
        self.last, self.number = shower[-1], int(numbers[-1])
        return np.stack([np.full(len(shower), self.major), numbers], axis=1).astype(np.uint64)


def _numbering(dump: _Dump, url: str, columns: Mapping[str, tuple[str, ...]], notes: Counter[str]) -> _Numbering | None:
    """Return an object that numbers the showers if their ids are rounded or missing; None if the ids are good."""
    if isinstance(dump, _ParquetDump) and dump.id_columns:
        return None
    for primary in dump.primaries():
        layout = layout_of(primary.shape[1], None, columns)
        ids = _chosen(primary, layout.primary, IDS) if IDS[0] in layout.primary else np.full((1, 2), np.nan)
        exact = 2.0 ** (np.finfo(ids.dtype).nmant + 1)
        if not ((ids >= 0) & (ids <= exact) & (ids == np.floor(ids))).all():
            notes["files whose shower ids are rounded or missing: their showers are numbered instead"] += 1
            return _Numbering(int.from_bytes(hashlib.sha256(os.fsencode(url)).digest()[:7], "big"))
    return None


def _chosen(rows: np.ndarray, names: tuple[str, ...], chosen: Sequence[str]) -> np.ndarray:
    return rows[:, [names.index(name) for name in chosen]]


def _to_events(rows: _Rows, layout: Columns, numbering: _Numbering | None, notes: Counter[str]) -> EventArrays:
    _check_ids(rows, layout)
    counts, muons = rows.counts.copy(), np.empty((0, len(MUON)), np.float32)
    if len(rows.muons):
        muons = _chosen(rows.muons, layout.muons, MUON).astype(np.float32)
    # The dump writes one muon of energy 0 for an event without muons.
    single = np.flatnonzero(counts == 1)
    rows_of_single = (np.cumsum(counts) - counts)[single]
    dummy = muons[rows_of_single, 0] == 0
    muons = np.delete(muons, rows_of_single[dummy], axis=0)
    counts[single[dummy]] = 0
    if dummy.any():
        notes["events without muons, which had a dummy muon of energy 0: it is left out"] += int(dummy.sum())
    if rows.ids is not None:
        ids = rows.ids
    elif numbering is not None:
        known = (*(IDS if IDS[0] in layout.primary else ()), *PRIMARY[:3])
        ids = numbering.ids(_chosen(rows.primary, layout.primary, known))
    else:
        ids = _chosen(rows.primary, layout.primary, IDS).astype(np.uint64)
    primaries = _chosen(rows.primary, layout.primary, PRIMARY).astype(np.float32)
    return EventArrays(ids, primaries, counts.astype(np.int64), muons)


def _check_ids(rows: _Rows, layout: Columns) -> None:
    """Refuse muons that have other ids than their primary: the counts are shifted, or the columns are wrong."""
    if not (len(rows.muons) and IDS[0] in layout.primary and IDS[0] in layout.muons):
        return
    expected = np.repeat(_chosen(rows.primary, layout.primary, IDS), rows.counts, axis=0)
    found = _chosen(rows.muons, layout.muons, IDS)
    wrong = np.flatnonzero((expected != found).any(axis=1))
    if wrong.size:
        at = wrong[0]
        msg = (
            f"a muon has the shower ids {found[at].tolist()}, its primary {expected[at].tolist()}: the rows are not "
            f"primary={','.join(layout.primary)} and muons={','.join(layout.muons)}; give --columns"
        )
        raise ValueError(msg)


def _legal(events: EventArrays, notes: Counter[str]) -> EventArrays:
    """Leave out the rows that break the contract, as training would, and count them by reason."""
    fault = schema.faults(arrow.to_table(events))
    if not fault.any():
        return events
    notes.update(f"rows left out: {schema.FAULTS[code]}" for code in fault[fault > 0].tolist())
    return take(events, np.flatnonzero(fault == 0))
