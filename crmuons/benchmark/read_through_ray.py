"""Suite `read` through Ray Data, as a run with workers reads, against plain decoding by pyarrow."""

import math
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import islice

import numpy as np

from crmuons import config
from crmuons.benchmark import timing
from crmuons.benchmark.figures import Figure
from crmuons.benchmark.read import decode, raw_files
from crmuons.data import quarantine, sampler, selection
from crmuons.data.parquet import open_parquet
from crmuons.ray_backend import cluster
from crmuons.ray_backend.data import READS_AT_ONCE, read_with_ray
from crmuons.storage import files
from crmuons.storage.files import File

STEADY_BYTES = 512 * 2**20  # This much data gives segments of the usual size.
ITEMS_PER_ROUND = 8


def run(rounds: int, data: Sequence[str]) -> list[Figure]:
    """Measure events per second that reach a training process through Ray Data after its start, in `rounds` rounds.

    The files are read repeatedly, so that segments have the usual size. The reference decodes afterwards: once in one
    thread, and once with one thread for each read task of Ray Data. It does not alternate with Ray Data, which would
    read ahead in the pauses.
    """
    raw = raw_files(data)
    many = raw * math.ceil(STEADY_BYTES / sum(file.size for file in raw))
    reading = sampler.ReadPlan(tuple(sampler.cut_files(many)), 0, config.Data().shuffle_bytes, 1)
    items = islice(reading.segments_of_rank(0), ITEMS_PER_ROUND * (rounds + 1))
    ends, events = [], [0]
    with cluster.cluster():
        for piece in read_with_ray(items, selection.Selection()):
            if not isinstance(piece, quarantine.ReadCounts):
                events.append(events[-1] + len(piece.counts))
                ends.append(time.perf_counter())
    seconds = np.diff(ends[ITEMS_PER_ROUND - 1 :: ITEMS_PER_ROUND])
    read = np.diff(events[ITEMS_PER_ROUND::ITEMS_PER_ROUND])
    amount, num_rows = float(read.mean()), sum(_num_rows(file) for file in raw)
    ours = timing.Times(seconds * amount / read)
    return [
        Figure(
            f"read through Ray Data, against {threads} thread{'s' * (threads > 1)}", "events", amount, ours,
            f"pyarrow decoding of the same columns, afterwards, threads: {threads}", num_rows * threads,
            timing.alternate({"": partial(_decode, raw, threads)}, rounds)[""],
        )
        for threads in (1, READS_AT_ONCE)
    ]  # fmt: skip


def _num_rows(file: File) -> int:
    with files.open_file(file.url, file.size) as opened, open_parquet(opened, file.url) as parquet:
        return int(parquet.metadata.num_rows)


def _decode(raw: Sequence[File], threads: int) -> None:
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(lambda file: decode([file]), list(raw) * threads))
