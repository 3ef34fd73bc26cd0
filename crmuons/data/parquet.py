"""Rows of a Parquet file, by row groups."""

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Int64, UInt64

from crmuons.data import schema
from crmuons.data.sampler import FileSlice
from crmuons.data.staged_reading import open_unit
from crmuons.storage.staging.download import Staging


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


def read_rows(unit: FileSlice, staging: Staging | None = None) -> Rows:
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


def _row_groups(metadata: pq.FileMetaData, unit: FileSlice) -> tuple[range, list[int], int]:
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
