"""What is left out of a reading: rows that cannot be used, with the reason, and events above the cap, each in a data set of its own.

Each is written once per unit, under a name made from the unit, so that reading a unit again adds nothing.
"""

import hashlib
import json
import logging
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from crmuons.data import schema
from crmuons.data.arrow import to_table
from crmuons.data.events import EventArrays
from crmuons.data.sampler import FileSlice
from crmuons.storage import files

logger = logging.getLogger(__name__)


def keep_quarantined(
    table: pa.Table, fault: np.ndarray, first_row: int, unit: FileSlice, directory: str | None
) -> None:
    """Warn of the rows that have a fault, and keep them with the columns `source`, `row` and `reason`.

    Args:
        table: all rows of the unit.
        fault: of each row, as an index into schema.FAULTS; one is not 0.
        first_row: the number of the first row in its file.
        directory: None to warn without keeping.
    """
    bad = np.flatnonzero(fault)
    logger.warning(
        "%s: %d of %d rows cannot be used, the first of them row %d: %s",
        unit.file.url, len(bad), len(fault), first_row + bad[0], schema.FAULTS[fault[bad[0]]],
    )  # fmt: skip
    if directory is None:
        return
    rows = table.take(pa.array(bad))
    rows = rows.append_column("source", pa.array([unit.file.url] * len(bad)))
    rows = rows.append_column("row", pa.array(first_row + bad))
    rows = rows.append_column("reason", pa.array([schema.FAULTS[code] for code in fault[bad]]))
    _write_once(rows, directory, unit)


def keep_outliers(events: EventArrays, unit: FileSlice, directory: str | None) -> None:
    """Keep events above the cap, in the contract's schema; None as the directory keeps none."""
    if len(events.counts) and directory is not None:
        _write_once(to_table(events), directory, unit)


def _write_once(table: pa.Table, directory: str, unit: FileSlice) -> None:
    name = hashlib.sha256(json.dumps([unit.file.url, unit.part, unit.parts]).encode()).hexdigest()[:16]
    target = f"{directory}/{Path(unit.file.url).stem}-{name}.parquet"
    if files.exists(target):
        return
    with tempfile.TemporaryDirectory() as folder:
        written = Path(folder) / "rows.parquet"
        pq.write_table(table, written)
        files.put(written, target)


@dataclass(frozen=True)
class ReadCounts:
    """What became of the rows read."""

    rows: int = 0
    quarantined: int = 0
    outliers: int = 0
    outlier_muons: int = 0

    def __add__(self, other: "ReadCounts") -> "ReadCounts":
        return ReadCounts(
            self.rows + other.rows,
            self.quarantined + other.quarantined,
            self.outliers + other.outliers,
            self.outlier_muons + other.outlier_muons,
        )


@dataclass
class QuarantineLimit:
    """Whether more of all rows there are than a given share cannot be used, told before all are read.

    One bad file read early does not make it so: the bad rows are held against all rows, whose number follows from the rows
    and bytes read and from all bytes.

    Attributes:
        share: what may be unusable.
        total_bytes: of the files.
    """

    share: float
    total_bytes: int
    _rows: int = 0
    _bytes: int = 0

    def count(self, rows: int, size: int) -> None:
        """Some rows were read from so many bytes."""
        self._rows, self._bytes = self._rows + rows, self._bytes + size

    def is_exceeded(self, tally: ReadCounts) -> bool:
        """Whether the bad rows of a tally are too many, even if none is bad among those not read yet."""
        expected = self._rows * self.total_bytes / self._bytes if self._bytes else 0
        return tally.quarantined > self.share * max(tally.rows, expected)
