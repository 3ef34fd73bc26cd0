"""The data contract: column names, types, units, and what a legal event is. No other module knows a column.

One row is one event: a primary seen at one slant depth. See docs/data-contract.md.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Bool, Float32, Int64, UInt8, UInt64

PRIMARY_FEATURES = ("energy_gev", "zenith_rad", "mass_gev", "depth_m")
MUON_FEATURES = ("energy_gev", "x_m", "y_m")
ID_COLUMNS = ("primary_major_id", "primary_minor_id")
PRIMARY_COLUMN = "primary"
MUONS_COLUMN = "muons"

EVENT_SCHEMA = pa.schema(
    [
        pa.field(ID_COLUMNS[0], pa.uint64(), nullable=False),
        pa.field(ID_COLUMNS[1], pa.uint64(), nullable=False),
        pa.field(PRIMARY_COLUMN, pa.list_(pa.float32()), nullable=False),
        pa.field(MUONS_COLUMN, pa.list_(pa.list_(pa.float32())), nullable=False),
    ]
)

MIN_DEPTH_M = 10.0  # No detector is shallower; a smaller value is a depth in kilometres.

# Why a row cannot be used; 0 is a legal row. The order is the order of the checks: the first that applies names it.
FAULTS = (
    "",
    f"column '{PRIMARY_COLUMN}' is not {len(PRIMARY_FEATURES)} wide ({', '.join(PRIMARY_FEATURES)})",
    f"column '{MUONS_COLUMN}' has a muon that is not {len(MUON_FEATURES)} wide ({', '.join(MUON_FEATURES)})",
    "primary holds NaN or infinity",
    "primary energy_gev is not positive",
    "primary mass_gev is not positive (it is a mass in GeV: proton 0.938)",
    "primary zenith_rad is outside [0, pi/2]",
    f"primary depth_m is below {MIN_DEPTH_M:.0f} m: depths are in metres, this looks like kilometres",
    "a muon holds NaN or infinity",
    "a muon's energy_gev is not positive",
    "a shower id is null",
)


@dataclass(frozen=True)
class EventArrays:
    """Events as flat arrays: the muons of event i are the rows sum(counts[:i]) .. sum(counts[:i + 1])."""

    ids: UInt64[np.ndarray, "events 2"]
    primaries: Float32[np.ndarray, "events 4"]
    counts: Int64[np.ndarray, " events"]
    muons: Float32[np.ndarray, "muons 3"]

    def to_table(self) -> pa.Table:
        """The same events as a table in EVENT_SCHEMA."""
        num_events, num_muons = len(self.counts), len(self.muons)
        primary = _lists(np.arange(num_events + 1) * len(PRIMARY_FEATURES), pa.array(self.primaries.ravel()))
        inner = _lists(np.arange(num_muons + 1) * len(MUON_FEATURES), pa.array(self.muons.ravel()))
        muons = _lists(np.concatenate([[0], np.cumsum(self.counts)]), inner)
        columns = [pa.array(self.ids[:, 0]), pa.array(self.ids[:, 1]), primary, muons]
        return pa.Table.from_arrays(columns, schema=EVENT_SCHEMA)


def check_schema(schema: pa.Schema, source: str) -> bool:
    """Check that a Parquet file's schema is the contract's.

    Args:
        schema: the file's Arrow schema.
        source: the file, for the error.

    Returns:
        Whether the file carries shower ids. Without them every row is its own shower.

    Raises:
        ValueError: naming the file, the column, the type found and the type wanted.
    """
    for name, depth, what in ((PRIMARY_COLUMN, 1, "list<float32>"), (MUONS_COLUMN, 2, "list<list<float32>>")):
        if name not in schema.names:
            msg = f"{source}: no column '{name}' (found {', '.join(schema.names) or 'none'}); wanted {what}"
            raise ValueError(msg)
        found = schema.field(name).type
        if not _is_nested_float(found, depth):
            msg = f"{source}: column '{name}' has type {found}, wanted {what}"
            raise ValueError(msg)
    present = [name for name in ID_COLUMNS if name in schema.names]
    for name in present:
        found = schema.field(name).type
        if not pa.types.is_integer(found):
            msg = f"{source}: column '{name}' has type {found}, wanted uint64"
            raise ValueError(msg)
    if len(present) == 1:
        missing = next(name for name in ID_COLUMNS if name not in present)
        msg = f"{source}: column '{present[0]}' without '{missing}'; a shower is named by both, or by neither"
        raise ValueError(msg)
    return bool(present)


def columns_to_read(has_ids: bool) -> list[str]:
    """The columns that reading needs, without whatever else a file carries."""
    return [*(ID_COLUMNS if has_ids else ()), PRIMARY_COLUMN, MUONS_COLUMN]


def faults(table: pa.Table) -> UInt8[np.ndarray, " events"]:
    """The fault of each row, as an index into FAULTS; 0 where the row is a legal event."""
    num_rows = table.num_rows
    primary, muons = _one_array(table[PRIMARY_COLUMN]), _one_array(table[MUONS_COLUMN])
    fault = np.zeros(num_rows, np.uint8)

    def blame(rows: Any, reason: int) -> None:  # numpy types `array == array` as possibly one bool
        fault[rows & (fault == 0)] = reason

    width = len(PRIMARY_FEATURES)
    good: Bool[np.ndarray, " events"] = _list_lengths(primary) == width
    child = primary.flatten()
    good_values = _float32(child).reshape(-1, width) if good.all() else _ragged_rows(primary, good, width)
    blame(~good, 1)
    values = np.ones((num_rows, width), np.float32)
    values[good] = good_values

    counts = _list_lengths(muons)
    blame(counts < 0, 2)  # A null where a list is due.
    inner = muons.flatten()
    widths = _list_lengths(inner)
    floats = _float32(inner.flatten())
    lengths = np.maximum(widths, 0)
    energies = floats[:: len(MUON_FEATURES)]
    if not (lengths == len(MUON_FEATURES)).all():
        energies = np.ones(len(widths), np.float32)
        energies[lengths > 0] = floats[(np.cumsum(lengths) - lengths)[lengths > 0]]

    blame(_rows_with(widths != len(MUON_FEATURES), counts), 2)
    blame(~np.isfinite(values).all(axis=1), 3)
    energy, zenith, mass, depth = values.T
    blame(good & ~(energy > 0), 4)
    blame(good & ~(mass > 0), 5)
    blame(good & ~((zenith >= 0) & (zenith <= np.float32(np.pi / 2))), 6)
    blame(good & ~(depth >= MIN_DEPTH_M), 7)
    blame(_rows_with(_rows_with(~np.isfinite(floats), lengths), counts), 8)
    blame(_rows_with(~(energies > 0), counts), 9)
    for name in set(ID_COLUMNS).intersection(table.column_names):
        blame(table[name].is_null().to_numpy(), 10)
    return fault


def legal_arrays(table: pa.Table, missing_ids: UInt64[np.ndarray, "events 2"] | None = None) -> EventArrays | None:
    """Flatten a table if every row is a legal event; None if not, and `faults` says which rows.

    It asks for the lowest and the highest values, where `faults` looks at each: 4 ns a muon instead of 16.

    Args:
        table: rows of a file that `check_schema` took.
        missing_ids: shower ids for a table without id columns.
    """
    primary, muons = _one_array(table[PRIMARY_COLUMN]), _one_array(table[MUONS_COLUMN])
    inner = muons.flatten()
    lists = (primary, muons, inner, primary.flatten(), inner.flatten())
    if any(array.null_count for array in lists) or any(
        table[name].null_count for name in ID_COLUMNS if name in table.column_names
    ):
        return None
    if not (_all_wide(primary, len(PRIMARY_FEATURES)) and _all_wide(inner, len(MUON_FEATURES))):
        return None
    events = _flat_arrays(table, primary, muons, missing_ids)
    return events if _all_in_range(events) else None


def to_arrays(table: pa.Table, missing_ids: UInt64[np.ndarray, "events 2"] | None = None) -> EventArrays:
    """Flatten a table of legal events, by offsets and without Python objects.

    Args:
        table: rows for which `faults` is 0.
        missing_ids: shower ids for a table without id columns.

    Raises:
        ValueError: if a row's width is wrong, naming column and row.
    """
    primary, muons = _one_array(table[PRIMARY_COLUMN]), _one_array(table[MUONS_COLUMN])
    _check_widths(primary, len(PRIMARY_FEATURES), PRIMARY_COLUMN, PRIMARY_FEATURES)
    _check_widths(muons.flatten(), len(MUON_FEATURES), MUONS_COLUMN, MUON_FEATURES)
    return _flat_arrays(table, primary, muons, missing_ids)


def _flat_arrays(
    table: pa.Table, primary: pa.Array, muons: pa.Array, missing_ids: UInt64[np.ndarray, "events 2"] | None
) -> EventArrays:
    """Lists of the right widths, without them."""
    if ID_COLUMNS[0] in table.column_names:
        ids = np.empty((table.num_rows, len(ID_COLUMNS)), np.uint64)
        for place, name in enumerate(ID_COLUMNS):
            ids[:, place] = _uint64(table[name])
    elif missing_ids is None:
        msg = f"the table has no columns {' and '.join(ID_COLUMNS)}, and no ids were given in their place"
        raise ValueError(msg)
    else:
        ids = missing_ids
    return EventArrays(
        ids=ids,
        primaries=_float32(primary.flatten()).reshape(table.num_rows, len(PRIMARY_FEATURES)),
        counts=_list_lengths(muons),
        muons=_float32(muons.flatten().flatten()).reshape(-1, len(MUON_FEATURES)),
    )


def write_events(path: Path, tables: Sequence[pa.Table], *, row_group_rows: int = 16_384) -> None:
    """Write one Parquet file of events; it appears under its name only once it is whole."""
    partial = path.with_name(f".{path.name}.partial")
    with pq.ParquetWriter(partial, EVENT_SCHEMA, compression="zstd") as writer:
        for table in tables:
            writer.write_table(table, row_group_size=row_group_rows)
    partial.replace(path)


def _all_wide(array: pa.Array, width: int) -> bool:
    return bool((np.diff(array.offsets.to_numpy()) == width).all())


def _all_in_range(events: EventArrays) -> bool:
    """Whether all numbers are finite and within the contract's limits."""
    if not (_all_finite(events.primaries) and _all_finite(events.muons)):
        return False
    energy, zenith, mass, depth = events.primaries.T
    return not len(energy) or bool(
        energy.min() > 0
        and mass.min() > 0
        and zenith.min() >= 0
        and zenith.max() <= np.float32(np.pi / 2)
        and depth.min() >= MIN_DEPTH_M
        and (not len(events.muons) or events.muons[:, 0].min() > 0)
    )


def _all_finite(values: np.ndarray) -> bool:
    with np.errstate(invalid="ignore", over="ignore"):  # A NaN among the values is the answer, not a warning.
        # A sum is one pass; that of huge numbers is infinite, and then the numbers themselves are looked at.
        return bool(np.isfinite(values.sum()) or np.isfinite(values).all())


def _is_nested_float(found: pa.DataType, depth: int) -> bool:
    for _ in range(depth):
        if not (pa.types.is_list(found) or pa.types.is_large_list(found) or pa.types.is_fixed_size_list(found)):
            return False
        found = found.value_type
    return bool(pa.types.is_floating(found))


def _one_array(column: pa.ChunkedArray) -> pa.Array:
    """A column as one variable-size list array (fixed-size lists are the same contract)."""
    array = column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()  # Which copies a single one, too.
    if isinstance(array, pa.ChunkedArray):  # No chunk at all, or more than one array can hold.
        array = pa.concat_arrays(array.chunks) if array.num_chunks else pa.array([], array.type)
    wanted = _variable_size(array.type)
    return array if wanted == array.type else array.cast(wanted)


def _variable_size(found: pa.DataType) -> pa.DataType:
    if pa.types.is_list(found) or pa.types.is_fixed_size_list(found):
        return pa.list_(_variable_size(found.value_type))
    if pa.types.is_large_list(found):
        return pa.large_list(_variable_size(found.value_type))
    return found


def _list_lengths(array: pa.Array) -> Int64[np.ndarray, " rows"]:
    """The length of each list, -1 for a null."""
    lengths = np.diff(array.offsets.to_numpy()).astype(np.int64)
    if array.null_count:
        lengths[~array.is_valid().to_numpy(zero_copy_only=False)] = -1
    return lengths


def _float32(array: pa.Array) -> np.ndarray:
    """Flat values; a null number reads as NaN, one that single precision cannot hold as infinity."""
    with np.errstate(over="ignore"):
        return array.to_numpy(zero_copy_only=False).astype(np.float32, copy=False)


def _uint64(column: pa.ChunkedArray) -> UInt64[np.ndarray, " rows"]:
    values = column.to_numpy()
    if values.dtype.kind not in "iu":  # Nulls turn integers into floats.
        msg = "a shower id is null; every row carries both ids, or the file carries neither column"
        raise ValueError(msg)
    return values.astype(np.uint64, copy=False)


def _ragged_rows(array: pa.Array, rows: np.ndarray, width: int) -> np.ndarray:
    return _float32(array.take(pa.array(np.flatnonzero(rows))).flatten()).reshape(-1, width)


def _rows_with(bad: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Which lists, of the given lengths, hold a bad value. Cheap where there is none, which is the rule."""
    hit = np.zeros(len(lengths), bool)
    found = np.flatnonzero(bad)
    if found.size:
        hit[np.searchsorted(np.cumsum(np.maximum(lengths, 0)), found, side="right")] = True
    return hit


def _check_widths(array: pa.Array, width: int, column: str, names: tuple[str, ...]) -> None:
    wrong = np.flatnonzero(_list_lengths(array) != width)
    if wrong.size:
        found = _list_lengths(array)[wrong[0]]
        msg = f"column '{column}', list {wrong[0]}: width {found}, expected {width} ({', '.join(names)})"
        raise ValueError(msg)


def _lists(offsets: np.ndarray, values: pa.Array) -> pa.ListArray:
    if offsets[-1] > np.iinfo(np.int32).max:
        msg = f"{offsets[-1]} values in one table; a list column holds 2^31 at most: write in smaller tables"
        raise ValueError(msg)
    return pa.ListArray.from_arrays(pa.array(offsets.astype(np.int32)), values)
