"""Suite `read`: from Parquet to batches, against pyarrow decoding the same columns with the same number of threads."""

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

MAX_BYTES = 512 * 2**20  # More data takes longer and gives the same speed.
COLUMNS = [*schema.ID_COLUMNS, schema.PRIMARY_COLUMN, schema.MUONS_COLUMN]


def raw_files(data: Sequence[str]) -> list[File]:
    """Return the first files of raw data, up to MAX_BYTES.

    Raises:
        ValueError: if the data are prepared.
    """
    candidates = event_files(data)
    if shards := [file.url for file in candidates if is_shard(file)]:
        msg = f"{shards[0]} is prepared: give the suite read raw files; it prepares them itself to compare the two"
        raise ValueError(msg)
    sizes = accumulate(file.size for file in candidates)
    return [file for file, size in zip(candidates, sizes, strict=True) if size <= MAX_BYTES] or candidates[:1]


def run(rounds: int, data: Sequence[str], shards: Path) -> list[Figure]:
    """Measure events and muons per second of one epoch in one thread: reading, checking, shuffling and batching.

    Args:
        rounds: number of rounds of each.
        data: event Parquet.
        shards: new directory for the same events as prepared shards, which are measured too.
    """
    raw = raw_files(data)
    dataset = build.claim_dataset(shards, [file.url for file in raw], PrepareSettings())
    build.prepare_dataset(dataset, fit_to_file, max_quarantined_share=1.0)
    prepared = event_files([str(shards)])
    events, muons = _read(raw)
    runs = {"ours": lambda: _read(raw), "pyarrow": lambda: decode(raw), "prepared": lambda: _read(prepared)}
    times = timing.alternate(runs, rounds)
    plain, same_events = "pyarrow decoding of the same columns, one thread", "the same events in raw files"
    return [
        Figure("read, events", "events", events, times["ours"], plain, events, times["pyarrow"]),
        Figure("read, muons", "muons", muons, times["ours"], plain, muons, times["pyarrow"]),
        Figure(
            "read, prepared shards", "events", _read(prepared)[0], times["prepared"], same_events, events, times["ours"]
        ),
    ]


def _read(raw: Sequence[File]) -> tuple[int, int]:
    """Read one epoch, and return its numbers of events and muons."""
    slices, segment_bytes = slices_and_segment_bytes(raw, config.Data().shuffle_bytes)
    reading = sampler.ReadPlan(tuple(slices), 0, segment_bytes, 1)
    items = islice(reading.segments_of_rank(0), len(reading.segments(0)))
    events = muons = 0
    for piece in reader.read_in_process(items, selection.Selection()):
        if not isinstance(piece, quarantine.ReadCounts):
            events, muons = events + len(piece.counts), muons + len(piece.muons)
    return events, muons


def decode(raw: Sequence[File]) -> None:
    """Decode the event columns of files with pyarrow, in this thread."""
    for file in raw:
        with files.open_file(file.url) as opened:
            # pq.read_table would start its own threads even with use_threads=False.
            pq.ParquetFile(opened).read(columns=COLUMNS, use_threads=False)  # noqa: TID251  what pyarrow does by itself
