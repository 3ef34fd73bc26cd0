"""Convert EventArrays to Arrow tables and back, in the nested layout of the contract's files or in a flat one.

The flat layout (FLAT_SCHEMA) holds primaries and muons as fixed-size lists, and both shower ids in one column. Only the
muon lists of events have offsets, so converting needs no pass over the muons. Ray moves events in this layout, and
prepared shards hold it.
"""

import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Float32, UInt64

from crmuons.data.events import EventArrays
from crmuons.data.features import BASE, MuonFeature, look_like_seconds, metadata_of, wrong_rows
from crmuons.data.parquet import parquet_writer
from crmuons.data.schema import (
    EVENT_SCHEMA,
    ID_COLUMNS,
    MIN_DEPTH_M,
    MUONS_COLUMN,
    PRIMARY_COLUMN,
    PRIMARY_FEATURES,
    float32_values,
    list_lengths,
    one_array,
)
from crmuons.machine import num_threads
from crmuons.storage.atomic import atomic_file

# Arrow counts the CPUs of the machine. In Ray's tasks, Ray's OMP_NUM_THREADS limits it: one thread for one CPU.
if "RAY_RAYLET_PID" not in os.environ:
    pa.set_cpu_count(num_threads().number)

IDS_COLUMN = "primary_ids"
ORIGIN_KEY = b"crmuons"  # Key in a Parquet file's metadata: how the file was made, as JSON.


def flat_schema(muon_width: int) -> pa.Schema:
    """Return the flat layout of events whose muons have this many features."""
    return pa.schema(
        [
            pa.field(IDS_COLUMN, pa.list_(pa.uint64(), len(ID_COLUMNS)), nullable=False),
            pa.field(PRIMARY_COLUMN, pa.list_(pa.float32(), len(PRIMARY_FEATURES)), nullable=False),
            pa.field(MUONS_COLUMN, pa.list_(pa.list_(pa.float32(), muon_width)), nullable=False),
        ]
    )


FLAT_SCHEMA = flat_schema(len(BASE))


def event_schema(features: Sequence[MuonFeature] = BASE) -> pa.Schema:
    """Return the contract's columns, with the features of the muons in the metadata if there are more than three."""
    return EVENT_SCHEMA.with_metadata(metadata_of(features) or None)


def to_table(events: EventArrays, features: Sequence[MuonFeature] = BASE) -> pa.Table:
    """Convert events to a table in `event_schema`."""
    num_events, num_muons = len(events.counts), len(events.muons)
    primary = _lists(np.arange(num_events + 1) * len(PRIMARY_FEATURES), pa.array(events.primaries.ravel()))
    width = len(features)
    if events.muons.shape[1] != width:
        names = ", ".join(feature.name for feature in features)
        msg = f"the muons have {events.muons.shape[1]} numbers, but {width} are declared ({names}); declare the numbers of the data"
        raise ValueError(msg)
    inner = _lists(np.arange(num_muons + 1) * width, pa.array(events.muons.ravel()))
    muons = _lists(np.concatenate([[0], np.cumsum(events.counts)]), inner)
    columns = [pa.array(events.ids[:, 0]), pa.array(events.ids[:, 1]), primary, muons]
    return pa.Table.from_arrays(columns, schema=event_schema(features))


def legal_arrays(
    table: pa.Table,
    missing_ids: UInt64[np.ndarray, "events 2"] | None = None,
    features: Sequence[MuonFeature] = BASE,
) -> EventArrays | None:
    """Convert a table to events if every row is legal; return None if not (`schema.faults` then says which rows).

    This checks the lowest and highest value of each column and takes 4 ns a muon; `faults` checks each value and takes
    16 ns.

    Args:
        table: rows of a file that passed `schema.check_schema`.
        missing_ids: shower ids for a table without id columns.
        features: the numbers of a muon that the file declares.
    """
    primary, muons = one_array(table[PRIMARY_COLUMN]), one_array(table[MUONS_COLUMN])
    inner = muons.flatten()
    lists = (primary, muons, inner, primary.flatten(), inner.flatten())
    if any(array.null_count for array in lists) or any(
        table[name].null_count for name in ID_COLUMNS if name in table.column_names
    ):
        return None
    if not (_all_wide(primary, len(PRIMARY_FEATURES)) and _all_wide(inner, len(features))):
        return None
    events = _flat_arrays(table, primary, muons, missing_ids, len(features))
    return events if _all_in_range(events, features) else None


def to_arrays(
    table: pa.Table,
    missing_ids: UInt64[np.ndarray, "events 2"] | None = None,
    features: Sequence[MuonFeature] = BASE,
) -> EventArrays:
    """Convert a table of legal events.

    Args:
        table: rows for which `schema.faults` is 0.
        missing_ids: shower ids for a table without id columns.
        features: the numbers of a muon that the file declares.

    Raises:
        ValueError: if a list has a wrong width; the message names the column and the list.
    """
    primary, muons = one_array(table[PRIMARY_COLUMN]), one_array(table[MUONS_COLUMN])
    _check_widths(primary, len(PRIMARY_FEATURES), PRIMARY_COLUMN, PRIMARY_FEATURES)
    _check_widths(muons.flatten(), len(features), MUONS_COLUMN, tuple(feature.name for feature in features))
    return _flat_arrays(table, primary, muons, missing_ids, len(features))


def _flat_arrays(
    table: pa.Table,
    primary: pa.Array,
    muons: pa.Array,
    missing_ids: UInt64[np.ndarray, "events 2"] | None,
    muon_width: int,
) -> EventArrays:
    """Convert columns whose lists have the right widths."""
    if ID_COLUMNS[0] in table.column_names:
        ids = np.empty((table.num_rows, len(ID_COLUMNS)), np.uint64)
        for column, name in enumerate(ID_COLUMNS):
            ids[:, column] = shower_ids(table[name])
    elif missing_ids is None:
        msg = f"the table has no columns {' and '.join(ID_COLUMNS)}, and `missing_ids` is None"
        raise ValueError(msg)
    else:
        ids = missing_ids
    return EventArrays(
        ids=ids,
        primaries=float32_values(primary.flatten()).reshape(table.num_rows, len(PRIMARY_FEATURES)),
        counts=list_lengths(muons),
        muons=float32_values(muons.flatten().flatten()).reshape(-1, muon_width),
    )


def write_events(
    path: Path,
    tables: Iterable[pa.Table],
    *,
    row_group_rows: int = 16_384,
    origin: Callable[[], Mapping[str, object]] | None = None,
    features: Sequence[MuonFeature] = BASE,
    columns: Sequence[pa.Field] = (),
) -> None:
    """Write one Parquet file of events. It gets its name only when it is complete.

    Args:
        path: the file.
        tables: the events, in `event_schema`.
        row_group_rows: most rows of a row group.
        origin: called after the last table; returns how the file was made, for its metadata. `read_origin` reads it.
        features: the numbers of a muon.
        columns: columns of the tables after the columns of the contract.
    """
    schema = event_schema(features)
    for column in columns:
        schema = schema.append(column)
    with atomic_file(path) as partial, parquet_writer(partial, schema, compression="zstd") as writer:
        for table in tables:
            writer.write_table(table, row_group_size=row_group_rows)
        if origin is not None:
            writer.add_key_value_metadata({ORIGIN_KEY.decode(): json.dumps(origin())})


def read_origin(metadata: pq.FileMetaData) -> dict[str, object] | None:
    """Return how a file was made, as its metadata say, or None if they say nothing."""
    text = (metadata.metadata or {}).get(ORIGIN_KEY)
    return None if text is None else json.loads(text)


def _all_wide(array: pa.Array, width: int) -> bool:
    return bool((np.diff(array.offsets.to_numpy()) == width).all())


def _all_in_range(events: EventArrays, features: Sequence[MuonFeature]) -> bool:
    """Return whether all numbers are finite and within the contract's limits."""
    legal = (
        are_legal_primaries(events.primaries)
        and _all_finite(events.muons)
        and (not len(events.muons) or bool(events.muons[:, 0].min() > 0))
    )
    if not legal or len(features) == len(BASE):
        return legal
    times = [at for at, feature in enumerate(features) if feature.name == "t_ns"]
    in_seconds = bool(times) and look_like_seconds(events.muons[:, times[0]])
    return not in_seconds and not any(rows.any() for _, rows in wrong_rows(events.muons, features))


def are_legal_primaries(primaries: Float32[np.ndarray, "events 4"]) -> bool:
    """Return whether all primaries are finite and within the contract's limits."""
    if not len(primaries):
        return True
    # A copy, because reductions of a strided column take four times longer.
    energy, zenith, mass, depth = np.ascontiguousarray(primaries.T)
    return _all_finite(primaries) and bool(
        energy.min() > 0
        and mass.min() > 0
        and zenith.min() >= 0
        and zenith.max() <= np.float32(np.pi / 2)
        and depth.min() >= MIN_DEPTH_M
    )


def _all_finite(values: np.ndarray) -> bool:
    with np.errstate(invalid="ignore", over="ignore"):
        # A sum is one fast pass. It may overflow although all values are finite; then each value is checked.
        return bool(np.isfinite(values.sum()) or np.isfinite(values).all())


def shower_ids(column: pa.ChunkedArray) -> UInt64[np.ndarray, " rows"]:
    """Return a column of shower ids. 2^64 is added to a negative id, so that signed and unsigned hashes with equal bits agree.

    Raises:
        ValueError: if an id is null.
    """
    values = column.to_numpy()
    if values.dtype.kind not in "iu":  # Nulls turn integers into floats.
        msg = "a shower id is null; give both ids in every row, or neither column"
        raise ValueError(msg)
    return values.astype(np.uint64, copy=False)


def _check_widths(array: pa.Array, width: int, column: str, names: tuple[str, ...]) -> None:
    lengths = list_lengths(array)
    wrong = np.flatnonzero(lengths != width)
    if wrong.size:
        msg = f"column '{column}', list {wrong[0]}: width {lengths[wrong[0]]}, expected {width} ({', '.join(names)})"
        raise ValueError(msg)


def _lists(offsets: np.ndarray, values: pa.Array) -> pa.ListArray:
    if offsets[-1] > np.iinfo(np.int32).max:
        msg = f"{offsets[-1]} values in one table; a list column holds at most 2^31: write smaller tables"
        raise ValueError(msg)
    return pa.ListArray.from_arrays(pa.array(offsets.astype(np.int32)), values)


def to_flat(events: EventArrays) -> pa.RecordBatch:
    """Convert events to FLAT_SCHEMA, without copying contiguous arrays.

    Raises:
        ValueError: if there are too many muons for the 32-bit offsets of a list column.
    """
    if len(events.muons) > np.iinfo(np.int32).max:
        msg = f"{len(events.muons)} muons in one table; a list column holds at most 2^31: write smaller tables"
        raise ValueError(msg)
    offsets = np.zeros(len(events.counts) + 1, np.int32)
    np.cumsum(events.counts, out=offsets[1:])
    columns = [
        _fixed(events.ids),
        _fixed(events.primaries),
        pa.ListArray.from_arrays(pa.array(offsets), _fixed(events.muons)),
    ]
    width = events.muons.shape[1]
    return pa.RecordBatch.from_arrays(columns, schema=FLAT_SCHEMA if width == len(BASE) else flat_schema(width))


def from_flat(batch: pa.RecordBatch) -> EventArrays:
    """Convert columns that `to_flat` made back to events, without copying; the arrays are read-only."""
    muons = batch[MUONS_COLUMN]
    offsets = muons.offsets.to_numpy()
    return EventArrays(
        ids=_rows(batch[IDS_COLUMN], 0, batch.num_rows),
        primaries=_rows(batch[PRIMARY_COLUMN], 0, batch.num_rows),
        counts=np.subtract(
            offsets[1:], offsets[:-1], dtype=np.int64
        ),  # The offsets have 32 bits; one pass converts them.
        muons=_rows(muons.values, *offsets[[0, -1]].tolist()),
    )


def _fixed(rows: np.ndarray) -> pa.FixedSizeListArray:
    return pa.FixedSizeListArray.from_arrays(pa.array(np.ascontiguousarray(rows).reshape(-1)), rows.shape[1])


def _rows(array: pa.FixedSizeListArray, start: int, stop: int) -> np.ndarray:
    """Return lists start to stop - 1 as the rows of an array."""
    # `flatten` gives the same, but takes 20 us instead of 2.
    rows = array.values.to_numpy().reshape(-1, array.type.list_size)
    return rows[array.offset + start : array.offset + stop]
