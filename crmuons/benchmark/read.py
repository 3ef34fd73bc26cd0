"""Suite `read`: from Parquet to batches, against pyarrow's plain decoding of the same columns with as many threads."""

from collections.abc import Sequence
from itertools import accumulate, islice
from pathlib import Path

import pyarrow.parquet as pq

from crmuons import config
from crmuons.benchmark import timing
from crmuons.benchmark.figures import Figure
from crmuons.data import quarantine, reader, sampler, schema, selection
from crmuons.data.manifest import event_files, is_shard
from crmuons.data.prepare import build
from crmuons.data.prepare.shuffle import PrepareSettings
from crmuons.data.shards import slices_and_segment_bytes
from crmuons.models.features import fit_to_file
from crmuons.storage import files
from crmuons.storage.files import File

MAX_BYTES = 512 * 2**20  # More takes longer and tells nothing more.
COLUMNS = [*schema.ID_COLUMNS, schema.PRIMARY_COLUMN, schema.MUONS_COLUMN]


def raw_files(data: Sequence[str]) -> list[File]:
    """The first files of raw data, up to MAX_BYTES.

    Raises:
        ValueError: if the data are prepared.
    """
    found = event_files(data)
    if shards := [file.url for file in found if is_shard(file)]:
        msg = f"{shards[0]} is prepared: give the suite read raw files, which it prepares itself to compare the two"
        raise ValueError(msg)
    sizes = accumulate(file.size for file in found)
    return [file for file, size in zip(found, sizes, strict=True) if size <= MAX_BYTES] or found[:1]


def run(rounds: int, data: Sequence[str], shards: Path) -> list[Figure]:
    """Events and muons per second of one epoch: read, checked, shuffled, made into batches, in one thread.

    Args:
        rounds: of each.
        data: event Parquet.
        shards: new directory for the same events prepared, which are read in their turn.
    """
    found = raw_files(data)
    begun = build.claim_dataset(shards, [file.url for file in found], PrepareSettings())
    build.prepare_dataset(begun, fit_to_file, max_quarantined_share=1.0)
    ready = event_files([str(shards)])
    events, muons = _read(found)
    rivals = {"ours": lambda: _read(found), "pyarrow": lambda: decode(found), "prepared": lambda: _read(ready)}
    times = timing.alternate(rivals, rounds)
    plain, raw = "pyarrow decoding of the same columns, one thread", "the same events in raw files"
    return [
        Figure("read, events", "events", events, times["ours"], plain, events, times["pyarrow"]),
        Figure("read, muons", "muons", muons, times["ours"], plain, muons, times["pyarrow"]),
        Figure("read, prepared shards", "events", _read(ready)[0], times["prepared"], raw, events, times["ours"]),
    ]


def _read(found: Sequence[File]) -> tuple[int, int]:
    """Read an epoch; returns the numbers of events and muons."""
    units, segment_bytes = slices_and_segment_bytes(found, config.Data().shuffle_bytes)
    reading = sampler.ReadPlan(tuple(units), 0, segment_bytes, 1)
    items = islice(reading.segments_of_rank(0), len(reading.segments(0)))
    events = muons = 0
    for piece in reader.read_in_process(items, selection.Selection()):
        if not isinstance(piece, quarantine.ReadCounts):
            events, muons = events + len(piece.counts), muons + len(piece.muons)
    return events, muons


def decode(found: Sequence[File]) -> None:
    for file in found:
        with files.open_file(file.url) as opened:
            # pq.read_table has threads of its own beside, whatever it is told.
            pq.ParquetFile(opened).read(columns=COLUMNS, use_threads=False)
