"""Keep what reading leaves out, in two data sets: bad rows and files with the reason, and events above the muon cap.

Each is written once for each slice, under a name made from the slice: reading a slice again adds nothing. The process
that reads the slice writes them, which may be a Ray task. The counts (ReadCounts) travel back to the Loader, which
stops a run with too many bad rows (QuarantineLimit).
"""

import hashlib
import json
import logging
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from crmuons.data import schema
from crmuons.data.arrow import to_table
from crmuons.data.events import EventArrays
from crmuons.data.features import BASE, MuonFeature
from crmuons.data.parquet import parquet_writer
from crmuons.data.sampler import FileSlice
from crmuons.storage import files
from crmuons.storage.atomic import full_disk_named
from crmuons.storage.files import File

logger = logging.getLogger(__name__)

SKIPPED = "skipped-"  # The first part of the names of records of files that were left out.
_named: set[str] = set()  # Files that this process left out and has named; it names each file once.


def keep_quarantined(
    table: pa.Table, fault: np.ndarray, first_row: int, file_slice: FileSlice, directory: str | None
) -> None:
    """Warn about the rows that have a fault, and write them with the columns `source`, `row` and `reason`.

    Args:
        table: all rows of the slice.
        fault: fault of each row, as an index into schema.FAULTS; at least one is not 0.
        first_row: number of the table's first row in its file.
        file_slice: the slice that was read.
        directory: None to warn without writing.
    """
    bad = np.flatnonzero(fault)
    logger.warning(
        "%s: %d of %d rows cannot be used; the first is row %d: %s",
        file_slice.file.url, len(bad), len(fault), first_row + bad[0],
        schema.fault_of(table, int(bad[0]), fault[bad[0]]),
    )  # fmt: skip
    if directory is None:
        return
    rows = table.take(pa.array(bad))
    rows = rows.append_column("source", pa.array([file_slice.file.url] * len(bad)))
    rows = rows.append_column("row", pa.array(first_row + bad))
    rows = rows.append_column("reason", pa.array([schema.FAULTS[code] for code in fault[bad]]))
    _write_once(rows, directory, file_slice)


def keep_outliers(
    events: EventArrays, file_slice: FileSlice, directory: str | None, features: Sequence[MuonFeature] = BASE
) -> None:
    """Write events above the cap in the contract's schema; do nothing if the directory is None."""
    if len(events.counts) and directory is not None:
        _write_once(to_table(events, features), directory, file_slice)


def keep_skipped(file: File, reason: str, directory: str | None) -> None:
    """Warn about a file that is left out, and write it as a row without an event; do nothing if that was done before.

    Args:
        file: the file.
        reason: why it is left out.
        directory: None to warn without writing.
    """
    if directory is not None:
        row = {field.name: pa.nulls(1, field.type) for field in schema.EVENT_SCHEMA}
        row |= {"source": pa.array([file.url]), "row": pa.nulls(1, pa.int64()), "reason": pa.array([reason])}
        if not _write_once(pa.table(row), directory, FileSlice(file, 0, 1), SKIPPED):
            return
    if file.url not in _named:
        _named.add(file.url)
        logger.warning("left out: %s", reason)


def num_skipped(directory: str) -> int:
    """Return the number of files that a quarantine data set records as left out."""
    return sum(name.startswith(SKIPPED) for name in files.names(directory))


def _write_once(table: pa.Table, directory: str, file_slice: FileSlice, prefix: str = "") -> bool:
    source = [file_slice.file.url, file_slice.part, file_slice.parts]
    name = hashlib.sha256(json.dumps(source).encode()).hexdigest()[:16]
    target = f"{directory}/{prefix}{Path(file_slice.file.url).stem}-{name}.parquet"
    if files.exists(target):
        return False
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.parquet"
        with full_disk_named(path), parquet_writer(path, table.schema) as writer:
            writer.write_table(table)
        files.put(path, target)
    return True


@dataclass(frozen=True)
class ReadCounts:
    """Counts of rows that were read. The sum of two objects has the counts of both readings.

    Attributes:
        rows: all rows.
        quarantined: rows that cannot be used.
        outliers: events of the split that have more muons than the cap.
        outlier_muons: muons of these events.
        skipped_slices: files, or parts of large files, that were left out.
    """

    rows: int = 0
    quarantined: int = 0
    outliers: int = 0
    outlier_muons: int = 0
    skipped_slices: int = 0

    def __add__(self, other: "ReadCounts") -> "ReadCounts":
        return ReadCounts(
            self.rows + other.rows,
            self.quarantined + other.quarantined,
            self.outliers + other.outliers,
            self.outlier_muons + other.outlier_muons,
            self.skipped_slices + other.skipped_slices,
        )


@dataclass
class QuarantineLimit:
    """Decides, before all rows are read, whether the bad rows exceed a share of all rows.

    The number of all rows is estimated from the rows and bytes read and from the bytes of all files. Bad rows are
    compared with all rows, so one bad file that comes early does not exceed the limit.

    Attributes:
        share: largest allowed share of bad rows.
        total_bytes: size of all files.
    """

    share: float
    total_bytes: int
    _rows: int = 0
    _bytes: int = 0

    def count(self, rows: int, size: int) -> None:
        """Record that `rows` rows were read from `size` bytes."""
        self._rows, self._bytes = self._rows + rows, self._bytes + size

    def is_exceeded(self, read_counts: ReadCounts) -> bool:
        """Return whether the bad rows are too many even if every row that is not read yet is good."""
        expected = self._rows * self.total_bytes / self._bytes if self._bytes else 0
        return read_counts.quarantined > self.share * max(read_counts.rows, expected)
