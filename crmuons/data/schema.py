"""The data contract: column names, types, units, and what a legal event is. No other module knows a column.

One row is one event: a primary seen at one slant depth. See docs/data-contract.md.
"""

from typing import Any

import numpy as np
import pyarrow as pa
from jaxtyping import Bool, Int64, UInt8

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
    primary, muons = one_array(table[PRIMARY_COLUMN]), one_array(table[MUONS_COLUMN])
    fault = np.zeros(num_rows, np.uint8)

    def blame(rows: Any, reason: int) -> None:  # numpy types `array == array` as possibly one bool
        fault[rows & (fault == 0)] = reason

    width = len(PRIMARY_FEATURES)
    good: Bool[np.ndarray, " events"] = list_lengths(primary) == width
    child = primary.flatten()
    good_values = float32_values(child).reshape(-1, width) if good.all() else _ragged_rows(primary, good, width)
    blame(~good, 1)
    values = np.ones((num_rows, width), np.float32)
    values[good] = good_values

    counts = list_lengths(muons)
    blame(counts < 0, 2)  # A null where a list is due.
    inner = muons.flatten()
    widths = list_lengths(inner)
    floats = float32_values(inner.flatten())
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


def _is_nested_float(found: pa.DataType, depth: int) -> bool:
    for _ in range(depth):
        if not (pa.types.is_list(found) or pa.types.is_large_list(found) or pa.types.is_fixed_size_list(found)):
            return False
        found = found.value_type
    return bool(pa.types.is_floating(found))


def one_array(column: pa.ChunkedArray) -> pa.Array:
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


def list_lengths(array: pa.Array) -> Int64[np.ndarray, " rows"]:
    """The length of each list, -1 for a null."""
    lengths = np.diff(array.offsets.to_numpy()).astype(np.int64)
    if array.null_count:
        lengths[~array.is_valid().to_numpy(zero_copy_only=False)] = -1
    return lengths


def float32_values(array: pa.Array) -> np.ndarray:
    """Flat values; a null number reads as NaN, one that single precision cannot hold as infinity."""
    with np.errstate(over="ignore"):
        return array.to_numpy(zero_copy_only=False).astype(np.float32, copy=False)


def _ragged_rows(array: pa.Array, rows: np.ndarray, width: int) -> np.ndarray:
    return float32_values(array.take(pa.array(np.flatnonzero(rows))).flatten()).reshape(-1, width)


def _rows_with(bad: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Which lists, of the given lengths, hold a bad value. Cheap where there is none, which is the rule."""
    hit = np.zeros(len(lengths), bool)
    found = np.flatnonzero(bad)
    if found.size:
        hit[np.searchsorted(np.cumsum(np.maximum(lengths, 0)), found, side="right")] = True
    return hit
