"""Suite `read`: from Parquet to batches, against pyarrow's plain decoding of the same columns with as many threads."""

from collections.abc import Sequence
from itertools import islice

import pyarrow.parquet as pq

from crmuons import config, files, plan, reader, schema
from crmuons.batch import EventBatch
from crmuons.benchmark import timing
from crmuons.benchmark.figures import Figure
from crmuons.files import File

COLUMNS = [*schema.ID_COLUMNS, schema.PRIMARY_COLUMN, schema.MUONS_COLUMN]


def run(rounds: int, data: Sequence[str]) -> list[Figure]:
    """Events and muons per second of one epoch: read, checked, shuffled, made into batches, in one thread."""
    found = files.list_files(data)
    events, muons = _read(found)
    times = timing.alternate({"ours": lambda: _read(found), "pyarrow": lambda: decode(found)}, rounds)
    against = "pyarrow decoding of the same columns, one thread"
    return [
        Figure(f"read, {unit}", unit, amount, times["ours"], against, amount, times["pyarrow"])
        for unit, amount in (("events", events), ("muons", muons))
    ]


def _read(found: Sequence[File]) -> tuple[int, int]:
    """Read an epoch; returns the numbers of events and muons."""
    reading = plan.Plan(tuple(plan.cut(found)), 0, config.Data().shuffle_bytes, 1)
    items = islice(reading.items(0), len(reading.segments(0)))
    events = muons = 0
    for piece in reader.read_here(items, reader.Selection()):
        if not isinstance(piece, reader.Tally):
            batch = EventBatch.from_arrays(piece, copy=False)
            events, muons = events + len(batch), muons + batch.num_muons
    return events, muons


def decode(found: Sequence[File]) -> None:
    for file in found:
        with files.open_file(file.url) as opened:
            # pq.read_table has threads of its own beside, whatever it is told.
            pq.ParquetFile(opened).read(columns=COLUMNS, use_threads=False)
