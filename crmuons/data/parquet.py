"""Open and write Parquet files with checksums of their pages, and read a slice of a file, by row groups."""

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Int64, UInt64

from crmuons.data import schema
from crmuons.data.features import BASE, MuonFeature, declared
from crmuons.data.sampler import FileSlice
from crmuons.data.staged_reading import open_slice
from crmuons.storage.identity import Digests
from crmuons.storage.staging.download import Staging

HDF5 = b"\x89HDF\r\n\x1a\n"  # The first bytes of HDF5 files.


class DamagedError(ValueError):
    """Raised if a file is not what its name says, or is damaged or cut short."""


@dataclass(frozen=True)
class Rows:
    """Consecutive rows of a Parquet file, not checked yet.

    Attributes:
        table: the rows.
        first: number of the first row in the file.
        file_id: identifies the file in the ids of its rows; None if the file has shower ids.
        features: the numbers of a muon that the file declares.
    """

    table: pa.Table
    first: int
    file_id: int | None
    features: tuple[MuonFeature, ...] = BASE

    def ids(self, rows: np.ndarray) -> UInt64[np.ndarray, "rows 2"] | None:
        """Return ids (file, row number) of some rows, which make each row its own shower; None if the file has ids."""
        if self.file_id is None:
            return None
        ids = np.empty((len(rows), 2), np.uint64)
        ids[:, 0] = self.file_id
        ids[:, 1] = self.first + rows
        return ids


def read_rows(file_slice: FileSlice, staging: Staging | None = None, digests: Digests | None = None) -> Rows:
    """Read the rows of a slice of a Parquet file.

    Raises:
        FileNotFoundError, ChangedError: if the file is gone, or is not the one that was listed.
        ValueError: if the file is not Parquet (DamagedError), or its columns are not the contract's; the message names the file.
    """
    url = file_slice.file.url
    with open_slice(file_slice, staging, digests) as opened, open_parquet(opened, url) as parquet:
        has_ids, features = schema.check_schema(parquet.schema_arrow, url), declared(parquet.schema_arrow, url)
        file_id = (
            None if has_ids else _file_id(opened, file_slice.file.first_url or url, parquet.metadata.serialized_size)
        )
        rows, groups, first = _row_groups(parquet.metadata, file_slice)
        table = parquet.read_row_groups(groups, columns=schema.columns_to_read(has_ids), use_threads=False)
    return Rows(table.slice(rows.start - first, len(rows)), rows.start, file_id, features)


@contextmanager
def open_parquet(source: Any, url: str) -> Iterator[pq.ParquetFile]:
    """Yield a Parquet file. If its pages have checksums, reading a page compares them.

    Args:
        source: the open binary file, or its path.
        url: its name for errors.

    Raises:
        DamagedError: if Arrow cannot read the file in the block, with the damaged column and row group if a page is
            damaged. Errors of the storage are raised unchanged.
    """
    parquet = None
    try:
        parquet = pq.ParquetFile(source, pre_buffer=True, page_checksum_verification=True)
        _check_rows(parquet.metadata)
        yield parquet
    except (pa.ArrowException, OSError) as error:  # A flipped bit can raise any of Arrow's errors.
        if not _is_damage(error):
            raise
        place = _damaged_place(parquet) if parquet is not None else ""
        other = _is_hdf5(source) * ", but HDF5 (crmuons convert hdf5 reads Muonitron's)" if parquet is None else ""
        reason = " ".join(str(error).split())
        msg = (
            f"{url} is not a Parquet file{other}, or is damaged or cut short ({place}{reason}); convert or copy it again, or "
            "leave it out (a run does with data.skip_missing=true)"
        )
        raise DamagedError(msg) from error


def parquet_writer(target: Path | str, columns: pa.Schema, **options: Any) -> pq.ParquetWriter:
    """Return a writer whose pages have checksums (CRC-32); a flipped bit is then found when the page is read."""
    return pq.ParquetWriter(target, columns, write_page_checksum=True, **options)


def _check_rows(metadata: pq.FileMetaData) -> None:
    """Raise an error of Arrow if the footer contradicts itself about the number of rows; Arrow does not check this."""
    in_groups = sum(metadata.row_group(group).num_rows for group in range(metadata.num_row_groups))
    if metadata.num_rows != in_groups:
        msg = f"the footer states {metadata.num_rows} rows, and its row groups have {in_groups}"
        raise pa.ArrowInvalid(msg)


def _is_damage(error: Exception) -> bool:
    # Arrow raises a plain OSError if a page does not decode; errors of the storage are subclasses or have an errno.
    return not isinstance(error, OSError) or (type(error) is OSError and error.errno is None)


def _is_hdf5(source: Any) -> bool:
    with (
        suppress(OSError, ValueError),
        nullcontext(source) if hasattr(source, "read") else Path(source).open("rb") as file,
    ):
        file.seek(0)
        return bool(file.read(len(HDF5)) == HDF5)
    return False  # The file cannot be read; the caller's error says so.


def _damaged_place(parquet: pq.ParquetFile) -> str:
    """Find the first column and row group that cannot be read, in one more pass over the file; empty if all can be."""
    for group in range(parquet.metadata.num_row_groups):
        for name in parquet.schema_arrow.names:
            try:
                parquet.read_row_group(group, columns=[name], use_threads=False)
            except (pa.ArrowException, OSError) as error:
                return f"column '{name}', row group {group}: " if _is_damage(error) else ""
    return ""


def _file_id(opened: IO[bytes], url: str, footer_bytes: int) -> int:
    """Hash a file's name and footer, which holds the sizes and value ranges of all columns.

    Files of the same name in several folders get different ids; a file that was moved or copied keeps its id.
    """
    opened.seek(-8 - footer_bytes, os.SEEK_END)
    digest = hashlib.sha256(os.fsencode(Path(url).name) + opened.read(footer_bytes)).digest()
    return int.from_bytes(digest[:8], "little")


def _row_groups(metadata: pq.FileMetaData, file_slice: FileSlice) -> tuple[range, list[int], int]:
    """Return the slice's rows, the row groups that hold them, and the number of the first row of these row groups.

    The slice's ends move to the nearest row group bounds, so that no row group is decoded twice, unless row groups are
    larger than slices.
    """
    sizes = [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)]
    bounds = np.cumsum([0, *sizes], dtype=np.int64)
    rows = file_slice.rows(metadata.num_rows)
    rows_per_slice = metadata.num_rows // file_slice.parts
    start, stop = (_group_bound(bounds, row, rows_per_slice) for row in (rows.start, rows.stop))
    groups = np.flatnonzero((bounds[1:] > start) & (bounds[:-1] < stop))
    return range(start, stop), groups.tolist(), int(bounds[groups[0]]) if len(groups) else start


def _group_bound(bounds: Int64[np.ndarray, " bounds"], row: int, largest: int) -> int:
    """Return the row group bound nearest to a row, or the row itself if its row group has more than `largest` rows."""
    above = int(np.searchsorted(bounds, row))
    if bounds[above] == row:
        return row
    low, high = int(bounds[above - 1]), int(bounds[above])
    if high - low > largest:
        return row
    return low if row - low <= high - row else high
