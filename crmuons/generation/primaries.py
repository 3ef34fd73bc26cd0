"""Read primaries for generation from Parquet: files of the data contract, or one flat column for each quantity."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Float32, Int64, UInt64

from crmuons.data import arrow, geometry, schema
from crmuons.data.parquet import open_parquet
from crmuons.data.schema import COUNT_COLUMN, ID_COLUMNS, MUONS_COLUMN, PRIMARY_COLUMN, PRIMARY_FEATURES
from crmuons.storage import files
from crmuons.storage.identity import open_listed

ROWS_AT_ONCE = 65_536
MAX_COUNT = 2**62


@dataclass(frozen=True)
class Primaries:
    """Checked primaries, in the order of their numbers.

    Attributes:
        ids: shower ids.
        values: energy_gev, zenith_rad, mass_gev, depth_m (slant).
        counts: N of each event, or None if the source has none.
    """

    ids: UInt64[np.ndarray, "events 2"]
    values: Float32[np.ndarray, "events 4"]
    counts: Int64[np.ndarray, " events"] | None = None

    def __len__(self) -> int:
        return len(self.values)

    def slice(self, start: int, stop: int) -> "Primaries":
        """Return events start .. stop - 1 as views."""
        counts = None if self.counts is None else self.counts[start:stop]
        return Primaries(self.ids[start:stop], self.values[start:stop], counts)


class PrimarySource(Protocol):
    """A source of primaries. Every iteration over it gives the same primaries."""

    def __iter__(self) -> Iterator[Primaries]: ...

    def about(self) -> dict[str, object]:
        """Return the origin of the primaries, for _request.json."""


class PrimaryFiles:
    """Primaries of Parquet files.

    A file has the contract's column `primary` (with or without `muons`), or the flat columns energy_gev, zenith_rad,
    mass_gev, depth_m. If it lacks the two id columns, the number of the event is its id.

    Args:
        urls: paths, directories, globs or URLs.
        with_counts: also read N, from the column num_muons if present, otherwise from the lengths of the lists of muons.
        count_column: read N from the column of this name instead: integers, or lists whose lengths count.
        vertical_depth: depth_m is the vertical depth.
    """

    def __init__(
        self,
        urls: list[str],
        *,
        with_counts: bool = False,
        count_column: str | None = None,
        vertical_depth: bool = False,
    ) -> None:
        self.files = files.list_files(urls)
        self.with_counts, self.vertical_depth = with_counts or count_column is not None, vertical_depth
        self.count_columns = (COUNT_COLUMN, MUONS_COLUMN) if count_column is None else (count_column,)

    def about(self) -> dict[str, object]:
        """Return the files."""
        about: dict[str, object] = {"files": [file.url for file in self.files], "vertical_depth": self.vertical_depth}
        return about | ({"count_columns": self.count_columns} if self.with_counts else {})

    def __iter__(self) -> Iterator[Primaries]:
        """Read the files in order.

        Raises:
            ValueError: if a file is not Parquet, a column is missing or has the wrong type, or a row breaks the
                contract. The message names file, column, row and remedy.
        """
        first, had_ids = 0, None
        for file in self.files:
            with open_listed(file) as opened, open_parquet(opened, file.url) as parquet:
                columns = _Columns.of(parquet.schema_arrow, file.url, self.count_columns if self.with_counts else ())
                if had_ids not in (None, columns.has_ids):
                    msg = f"{file.url}: some files have {' and '.join(ID_COLUMNS)}, others do not; give all, or none"
                    raise ValueError(msg)
                had_ids = columns.has_ids
                for row, table in _tables(parquet.iter_batches(ROWS_AT_ONCE, columns=columns.names, use_threads=False)):
                    yield self._primaries(table, columns, file.url, row, first)
                    first += table.num_rows

    def _primaries(self, table: pa.Table, columns: "_Columns", url: str, row: int, first: int) -> Primaries:
        events = _events(table, columns, url, row)
        fault = schema.faults(events)
        if fault.any():
            bad = int(np.flatnonzero(fault)[0])
            value = events[PRIMARY_COLUMN][bad].as_py()
            msg = (
                f"{url}, row {row + bad}: {schema.FAULTS[fault[bad]]} (found {value}); correct the row or leave it out"
            )
            raise ValueError(msg)
        numbers = np.arange(first, first + table.num_rows, dtype=np.uint64)
        arrays = arrow.to_arrays(events, np.stack([numbers, np.zeros_like(numbers)], axis=1))
        if self.vertical_depth:
            arrays = geometry.with_slant_depth(arrays)
        counts = _counts(table, columns, url, row) if self.with_counts else None
        return Primaries(arrays.ids, arrays.primaries, counts)


@dataclass(frozen=True)
class _Columns:
    """The columns to read from a file."""

    nested: bool
    has_ids: bool
    count: str | None

    @property
    def names(self) -> list[str]:
        ids = ID_COLUMNS if self.has_ids else ()
        return [*ids, *((PRIMARY_COLUMN,) if self.nested else PRIMARY_FEATURES), *([self.count] if self.count else [])]

    @classmethod
    def of(cls, columns: pa.Schema, url: str, count_columns: Sequence[str]) -> "_Columns":
        nested = PRIMARY_COLUMN in columns.names
        schema.check_names(columns, url)
        missing = [] if nested else [name for name in PRIMARY_FEATURES if name not in columns.names]
        if missing:
            msg = (
                f"{url}: no column '{PRIMARY_COLUMN}' and no column '{missing[0]}' (found {schema.names_shown(columns.names)}); "
                f"expected '{PRIMARY_COLUMN}', or {', '.join(PRIMARY_FEATURES)}"
            )
            raise ValueError(msg)
        _check_types(columns, url, nested)
        present = [name for name in ID_COLUMNS if name in columns.names]
        if len(present) == 1:
            msg = f"{url}: column '{present[0]}' stands alone; give both {' and '.join(ID_COLUMNS)}, or neither"
            raise ValueError(msg)
        return cls(nested, bool(present), _count_column(columns, url, count_columns) if count_columns else None)


def _check_types(columns: pa.Schema, url: str, nested: bool) -> None:
    if nested:
        kind = columns.field(PRIMARY_COLUMN).type
        if not (_is_list(kind) and pa.types.is_floating(kind.value_type)):
            msg = f"{url}: column '{PRIMARY_COLUMN}' has type {kind}, expected list<float32>"
            raise ValueError(msg)
        return
    for name in PRIMARY_FEATURES:
        kind = columns.field(name).type
        if not (pa.types.is_floating(kind) or pa.types.is_integer(kind)):
            msg = f"{url}: column '{name}' has type {kind}, expected a number (float32 or float64)"
            raise ValueError(msg)


def _count_column(columns: pa.Schema, url: str, candidates: Sequence[str]) -> str:
    for name in candidates:
        if name in columns.names:
            kind = columns.field(name).type
            good, expected = (_is_list, "list<list<float32>>") if name == MUONS_COLUMN else (_is_count, "an integer")
            if not good(kind):
                msg = f"{url}: column '{name}' has type {kind}, expected {expected}"
                raise ValueError(msg)
            return name
    wanted = " and no ".join(f"'{name}'" for name in candidates)
    msg = (
        f"{url}: no column {wanted} to read N from (found {schema.names_shown(columns.names)}); add one, name another with "
        "--count-column, or use --counts predict"
    )
    raise ValueError(msg)


def _is_count(kind: pa.DataType) -> bool:
    """Return whether a column of this type can hold N: integers, or one list for each event."""
    return bool(pa.types.is_integer(kind)) or _is_list(kind)


def _is_list(kind: pa.DataType) -> bool:
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind))


def _tables(batches: Iterator[pa.RecordBatch]) -> Iterator[tuple[int, pa.Table]]:
    """Yield tables of the file's rows, each with the number of its first row."""
    row = 0
    for batch in batches:
        yield row, pa.Table.from_batches([batch])
        row += batch.num_rows


def _events(table: pa.Table, columns: _Columns, url: str, row: int) -> pa.Table:
    """Convert rows to events without muons, so that the contract's checks apply."""
    none = pa.array(np.zeros(table.num_rows + 1, np.int32))
    empty = pa.ListArray.from_arrays(none, pa.array([], schema.EVENT_SCHEMA.field(MUONS_COLUMN).type.value_type))
    if columns.nested:
        primary = table[PRIMARY_COLUMN]
    else:
        flat = [table[name].to_numpy().astype(np.float32) for name in PRIMARY_FEATURES]  # A null becomes NaN.
        values = pa.array(np.stack(flat, axis=1).ravel())
        primary = pa.ListArray.from_arrays(pa.array(np.arange(table.num_rows + 1, dtype=np.int32) * 4), values)
    kept = {name: _checked_ids(table[name], f"{url}: column '{name}'", row) for name in ID_COLUMNS if columns.has_ids}
    return pa.table(kept | {PRIMARY_COLUMN: primary, MUONS_COLUMN: empty})


def _checked_ids(column: pa.ChunkedArray, what: str, row: int) -> pa.ChunkedArray:
    _refuse(column.is_null(), what, row, "is null; give every row an id, or leave out both id columns")
    if not pa.types.is_integer(column.type):
        msg = f"{what} has type {column.type}, expected uint64"
        raise ValueError(msg)
    return column


def _counts(table: pa.Table, columns: _Columns, url: str, row: int) -> Int64[np.ndarray, " events"]:
    column = table[columns.count]
    if _is_list(column.type):
        column = pc.list_value_length(column)
    what = f"{url}: column '{columns.count}'"
    _refuse(column.is_null(), what, row, "is null; write 0 for an event without muons")
    _refuse(column.to_numpy() < 0, what, row, "is negative; N is 0 or more")
    _refuse(column.to_numpy() > MAX_COUNT, what, row, f"is more than {MAX_COUNT}, which no event has")
    counts: np.ndarray = column.cast(pa.int64()).to_numpy()
    return counts


def _refuse(bad: pa.ChunkedArray | np.ndarray, what: str, first_row: int, why: str) -> None:
    rows = np.flatnonzero(np.asarray(bad))
    if rows.size:
        msg = f"{what}, row {first_row + rows[0]}, {why}"
        raise ValueError(msg)


def cut(source: PrimarySource, size: int) -> Iterator[Primaries]:
    """Cut primaries into parts of `size`; the last one may be shorter."""
    waiting: list[Primaries] = []
    num_waiting = 0
    for primaries in source:
        waiting.append(primaries)
        num_waiting += len(primaries)
        if num_waiting >= size:
            joined = _concat(waiting)
            full = num_waiting // size * size
            yield from (joined.slice(start, start + size) for start in range(0, full, size))
            waiting, num_waiting = [joined.slice(full, num_waiting)], num_waiting - full
    if num_waiting:
        yield _concat(waiting)


def _concat(parts: list[Primaries]) -> Primaries:
    counts = [part.counts for part in parts if part.counts is not None]
    return Primaries(
        np.concatenate([part.ids for part in parts]),
        np.concatenate([part.values for part in parts]),
        np.concatenate(counts) if counts else None,
    )
