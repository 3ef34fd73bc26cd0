"""Define the data contract: the columns, their types and units, and what makes a row a legal event.

One row is one event: a primary, and its muons at one slant depth. docs/data-contract.md describes the contract, and
says what else changes with a new column. This module reads no file: `check_schema` checks a file's columns, and `faults`
the rows of a table.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from jaxtyping import Bool, Int64, UInt8

from crmuons.data.features import BASE, WRONG, MuonFeature, look_like_seconds, wrong_rows

PRIMARY_FEATURES = ("energy_gev", "zenith_rad", "mass_gev", "depth_m")
MUON_FEATURES = tuple(feature.name for feature in BASE)  # Every file has these; data/features.py has the others.
ID_COLUMNS = ("primary_major_id", "primary_minor_id")
PRIMARY_COLUMN = "primary"
MUONS_COLUMN = "muons"
COUNT_COLUMN = "num_muons"  # N of each event; only files of primaries have it.

EVENT_SCHEMA = pa.schema(
    [
        pa.field(ID_COLUMNS[0], pa.uint64(), nullable=False),
        pa.field(ID_COLUMNS[1], pa.uint64(), nullable=False),
        pa.field(PRIMARY_COLUMN, pa.list_(pa.float32()), nullable=False),
        pa.field(MUONS_COLUMN, pa.list_(pa.list_(pa.float32())), nullable=False),
    ]
)

MAX_NAMED = 20  # Columns in a message.
MIN_DEPTH_M = 10.0  # No detector is shallower; a smaller value is a depth in kilometres.

IN_SECONDS = "all t_ns are below 1e-5: times are in ns, these look like seconds"
# Why a row cannot be used; index 0 is a legal row. The checks run in this order, and a row gets
# the first fault that applies.
FAULTS = (
    "",
    (
        f"column '{PRIMARY_COLUMN}' is not {len(PRIMARY_FEATURES)} wide ({', '.join(PRIMARY_FEATURES)}); wider rows: "
        "crmuons convert parquet"
    ),
    (
        f"column '{MUONS_COLUMN}' has a muon that is not {len(MUON_FEATURES)} wide ({', '.join(MUON_FEATURES)}), or not as "
        "wide as the file's metadata declare"
    ),
    "primary holds NaN or infinity",
    "primary energy_gev is not positive",
    "primary mass_gev is not positive (it is a mass in GeV: proton 0.938)",
    "primary zenith_rad is outside [0, pi/2]",
    f"primary depth_m is below {MIN_DEPTH_M:.0f} m: depths are in metres, this looks like kilometres",
    "a muon holds NaN or infinity",
    "a muon's energy_gev is not positive",
    "a shower id is null",
    IN_SECONDS,
    *WRONG.values(),
)


def fault_of(table: pa.Table, row: int, fault: np.integer[Any]) -> str:
    """Return the fault of a row in words: one of FAULTS, and for wrong widths the widths that were found."""
    if fault not in (1, 2):
        return FAULTS[fault]
    value = table[(PRIMARY_COLUMN, MUONS_COLUMN)[fault - 1]][row].as_py() or ()
    widths = sorted({len(numbers or ()) for numbers in ([value] if fault == 1 else value)})
    return f"{FAULTS[fault]} (found {' and '.join(map(str, widths)) or 'nothing'})"


def check_schema(schema: pa.Schema, source: str) -> bool:
    """Check that a Parquet file's schema follows the contract.

    Args:
        schema: the file's Arrow schema.
        source: the file's name, for the error.

    Returns:
        Whether the file has shower ids. Without them every row is its own shower.

    Raises:
        ValueError: if a column is missing or has a wrong type; the message names the file, the column, its type and the
            expected type.
    """
    check_names(schema, source)
    for name, depth, expected in ((PRIMARY_COLUMN, 1, "list<float32>"), (MUONS_COLUMN, 2, "list<list<float32>>")):
        if name not in schema.names:
            msg = f"{source}: no column '{name}' (found {names_shown(schema.names)}); expected {expected}"
            raise ValueError(msg)
        type_ = schema.field(name).type
        if not _is_nested_float(type_, depth):
            msg = f"{source}: column '{name}' has type {type_}, expected {expected}"
            raise ValueError(msg)
    present = [name for name in ID_COLUMNS if name in schema.names]
    for name in present:
        type_ = schema.field(name).type
        if not pa.types.is_integer(type_):
            msg = f"{source}: column '{name}' has type {type_}, expected uint64"
            raise ValueError(msg)
    if len(present) == 1:
        missing = next(name for name in ID_COLUMNS if name not in present)
        msg = f"{source}: column '{present[0]}' without '{missing}'; give both id columns, or neither"
        raise ValueError(msg)
    return bool(present)


def names_shown(names: Sequence[str]) -> str:
    """Return the names of columns for a message: the first ones, each of limited length."""
    shown = [name if len(name) <= 80 else f"{name[:80]}..." for name in names[:MAX_NAMED]]
    return ", ".join(shown) + (f" and {len(names) - MAX_NAMED} more" if len(names) > MAX_NAMED else "") or "none"


def check_names(schema: pa.Schema, source: str) -> None:
    """Refuse a file in which two columns have the same name, if crmuons reads this name: either could be meant.

    Raises:
        ValueError: with the file and the column.
    """
    for name in (*ID_COLUMNS, PRIMARY_COLUMN, MUONS_COLUMN, *PRIMARY_FEATURES, COUNT_COLUMN):
        if (number := schema.names.count(name)) > 1:
            msg = f"{source}: {number} columns have the name '{name}'; keep one of them"
            raise ValueError(msg)


def columns_to_read(has_ids: bool) -> list[str]:
    """Return the names of the columns to read; a file may have others."""
    return [*(ID_COLUMNS if has_ids else ()), PRIMARY_COLUMN, MUONS_COLUMN]


def faults(table: pa.Table, features: Sequence[MuonFeature] = BASE) -> UInt8[np.ndarray, " events"]:
    """Return the fault of each row as an index into FAULTS; 0 means that the row is a legal event.

    Args:
        table: the rows.
        features: the numbers of a muon that the file declares.
    """
    num_rows = table.num_rows
    primary, muons = one_array(table[PRIMARY_COLUMN]), one_array(table[MUONS_COLUMN])
    fault = np.zeros(num_rows, np.uint8)

    # Set the fault of rows. `reason` is an index into FAULTS; a row keeps its first fault.
    def blame(rows: Any, reason: int) -> None:  # numpy types `array == array` as possibly one bool
        fault[rows & (fault == 0)] = reason

    width = len(PRIMARY_FEATURES)
    good: Bool[np.ndarray, " events"] = list_lengths(primary) == width
    child = primary.flatten()
    good_values = float32_values(child).reshape(-1, width) if good.all() else _ragged_rows(primary, good, width)
    blame(~good, 1)
    # Ones pass all checks below. Rows of a wrong width have their fault already.
    values = np.ones((num_rows, width), np.float32)
    values[good] = good_values

    counts = list_lengths(muons)
    blame(counts < 0, 2)  # A null instead of a list.
    inner = muons.flatten()
    widths = list_lengths(inner)
    floats = float32_values(inner.flatten())
    lengths = np.maximum(widths, 0)
    # The energy is the first number of each muon.
    muon_width = len(features)
    energies = floats[::muon_width]
    all_wide = bool((lengths == muon_width).all())
    if not all_wide:
        energies = np.ones(len(widths), np.float32)
        energies[lengths > 0] = floats[(np.cumsum(lengths) - lengths)[lengths > 0]]

    blame(_rows_with(widths != muon_width, counts), 2)
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
    if muon_width > len(BASE):
        wide = floats.reshape(-1, muon_width) if all_wide else _ragged_rows(inner, widths == muon_width, muon_width)
        bad = np.zeros(len(widths), bool)
        for reason, rows in wrong_rows(wide, features):
            bad[widths == muon_width] = rows
            blame(_rows_with(bad, counts), FAULTS.index(WRONG[reason]))
        times = [at for at, feature in enumerate(features) if feature.name == "t_ns"]
        if times and look_like_seconds(wide[:, times[0]]):
            blame(counts > 0, FAULTS.index(IN_SECONDS))
    return fault


def _is_nested_float(type_: pa.DataType, depth: int) -> bool:
    for _ in range(depth):
        if not (pa.types.is_list(type_) or pa.types.is_large_list(type_) or pa.types.is_fixed_size_list(type_)):
            return False
        type_ = type_.value_type
    return bool(pa.types.is_floating(type_))


def one_array(column: pa.ChunkedArray) -> pa.Array:
    """Return a column as one array of variable-size lists; the contract also allows fixed-size lists."""
    # combine_chunks would copy a single chunk, too.
    array = column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()
    if isinstance(array, pa.ChunkedArray):  # The column has no chunk, or more than one array can hold.
        array = pa.concat_arrays(array.chunks) if array.num_chunks else pa.array([], array.type)
    expected = _variable_size(array.type)
    return array if expected == array.type else array.cast(expected)


def _variable_size(type_: pa.DataType) -> pa.DataType:
    if pa.types.is_list(type_) or pa.types.is_fixed_size_list(type_):
        return pa.list_(_variable_size(type_.value_type))
    if pa.types.is_large_list(type_):
        return pa.large_list(_variable_size(type_.value_type))
    return type_


def list_lengths(array: pa.Array) -> Int64[np.ndarray, " rows"]:
    """Return the length of each list; -1 for a null."""
    lengths = np.diff(array.offsets.to_numpy()).astype(np.int64)
    if array.null_count:
        lengths[~array.is_valid().to_numpy(zero_copy_only=False)] = -1
    return lengths


def float32_values(array: pa.Array) -> np.ndarray:
    """Return numbers as float32; a null becomes NaN, and a number too large for float32 becomes infinity."""
    with np.errstate(over="ignore"):
        return array.to_numpy(zero_copy_only=False).astype(np.float32, copy=False)


def _ragged_rows(array: pa.Array, rows: np.ndarray, width: int) -> np.ndarray:
    return float32_values(array.take(pa.array(np.flatnonzero(rows))).flatten()).reshape(-1, width)


def _rows_with(bad: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Return which lists, of the given lengths, hold a bad value. It is fast in the usual case, without a bad value."""
    hit = np.zeros(len(lengths), bool)
    values = np.flatnonzero(bad)
    if values.size:
        hit[np.searchsorted(np.cumsum(np.maximum(lengths, 0)), values, side="right")] = True
    return hit
