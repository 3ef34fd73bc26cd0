"""A generated data set as shards: files that appear whole under fixed names, and going on where a run was interrupted.

A shard is a function of the request and its number alone, and carries the request's digest: shards of two requests never mix.
"""

import json
import logging
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from dataclasses import asdict, dataclass
from functools import partial
from itertools import islice

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from crmuons import allocator, provenance
from crmuons.data import schema
from crmuons.data.arrow import to_table
from crmuons.generation import generator as bundles
from crmuons.generation.generator import BundleGenerator, GeneratedBlock
from crmuons.generation.primaries import Primaries, PrimarySource
from crmuons.generation.request import (
    OUTSIDE_COLUMN,
    GenerationOptions,
    GenerationRequest,
    claim_directory,
    scan_primaries,
    with_previous_shard_size,
)
from crmuons.progress import progress
from crmuons.storage.output import Output

logger = logging.getLogger(__name__)

DRAWN_COLUMN = "num_muons_drawn"
OUTPUT_SCHEMA = schema.EVENT_SCHEMA.append(pa.field(OUTSIDE_COLUMN, pa.bool_(), nullable=False)).append(
    pa.field(DRAWN_COLUMN, pa.int64(), nullable=False)
)
DIGEST_KEY, TALLY_KEY = b"crmuons.request", b"crmuons.tally"

ROW_GROUP_MUONS, ROW_GROUP_EVENTS = 2**20, 2**16  # 12 MB: what a shard keeps in memory, and what readers like.
CPUS = torch.get_num_threads()  # OMP_NUM_THREADS sets it.
MAX_THREADS = 16  # A thread holds Python's lock for about 4 % of its time.
MUONS_IN_PROCESS = 8_000_000  # Connecting to Ray takes as long as one core needs for about this many.
FOOTERS_AT_ONCE = 16

# Random numbers have no repeats worth a dictionary; their bytes pack better one significance at a time; the range of all energies
# and positions together says nothing. Of a file's muons per second of one core, 12 million are written (8 with the defaults) and 24
# million read (7), in 11.1 instead of 13.2 bytes.
_FLOATS = ["primary.list.element", "muons.list.element.list.element"]


@dataclass(frozen=True)
class WriteCounts:
    """What became of some events."""

    events: int = 0
    muons: int = 0
    outside_training: int = 0
    capped: int = 0

    def __add__(self, other: "WriteCounts") -> "WriteCounts":
        return WriteCounts(*(mine + theirs for mine, theirs in zip(_values(self), _values(other), strict=True)))


@dataclass(frozen=True)
class OutputShard:
    """The primaries of one file to be made."""

    number: int
    primaries: Primaries


@dataclass(frozen=True)
class GenerationJob:
    """A request, and what an interrupted run has done of it.

    Attributes:
        out: where the shards go.
        done: what finished shards hold.
        expected_muons: about how many muons are left to make.
    """

    request: GenerationRequest
    out: Output
    done: dict[int, WriteCounts]
    expected_muons: float

    @property
    def is_for_ray(self) -> bool:
        """Whether a cluster, given or of more CPUs than threads pay for, makes what is left sooner than this process."""
        if self.request.device == "cuda" and not torch.cuda.is_available():
            return True
        large = self.request.num_shards - len(self.done) > 1 and self.expected_muons > MUONS_IN_PROCESS
        return large and ("RAY_ADDRESS" in os.environ or CPUS > MAX_THREADS)


def plan_generation(
    out: Output, generator: BundleGenerator, source: PrimarySource, options: GenerationOptions
) -> GenerationJob:
    """Look at all primaries, write down the request, or find what is done of it.

    Raises:
        ValueError: if there are no primaries or one is not legal (or, with `strict`, outside the trained range), or if the
            place holds anything but shards of the same request.
        PermissionError, NotADirectoryError: if the place cannot be written.
    """
    out.check_writable()
    request, mean = scan_primaries(generator, source, with_previous_shard_size(out, options))
    claim_directory(
        out, request, {"primaries": source.about(), "model": generator.metadata, "code": provenance.code_tags()}
    )
    done = finished_shards(out, request)
    if done:
        logger.info("%d of %d shards were finished before and are kept", len(done), request.num_shards)
    return GenerationJob(request, out, done, mean * (request.num_events - sum(tally.events for tally in done.values())))


def pending_shards(source: PrimarySource, work: GenerationJob) -> Iterator[OutputShard]:
    """The shards that are still to be made, in order."""
    for number, primaries in enumerate(_cut(source, work.request.events_per_shard)):
        if number not in work.done:
            yield OutputShard(number, primaries)


def set_up_process() -> None:
    """Threads and memory of a process that makes shards."""
    torch.set_num_threads(1)  # The last bit of a sum depends on how many threads share it; shards are shared instead.
    allocator.keep_freed_memory()


def write_shard(out: Output, request: GenerationRequest, generator: BundleGenerator, shard: OutputShard) -> WriteCounts:
    """Generate the events of a shard and write them; the file appears under its name once it is whole.

    Raises:
        OSError: if it cannot be written. Finished shards stay, and the same command goes on from them.
    """
    name = request.shard(shard.number)
    try:
        with out.writing(name) as path:
            return _write(str(path), request, _groups(_pieces(request, generator, shard)), generator)
    except OSError as error:
        msg = f"{out.of(name)} could not be written ({error}); finished shards are kept, the same command goes on from them"
        raise OSError(msg) from error


def finished_shards(out: Output, request: GenerationRequest) -> dict[int, WriteCounts]:
    """What the shards hold that are whole and of this request."""
    there = set(out.names())
    numbers = [number for number in range(request.num_shards) if request.shard(number) in there]
    with ThreadPoolExecutor(FOOTERS_AT_ONCE) as threads:
        found = threads.map(partial(_finished, out, request), numbers)
        return {number: tally for number, tally in zip(numbers, found, strict=True) if tally is not None}


def _finished(out: Output, request: GenerationRequest, number: int) -> WriteCounts | None:
    name = request.shard(number)
    try:
        with out.open(name) as file:
            metadata = pq.read_metadata(file).metadata or {}
    except (pa.ArrowInvalid, OSError) as error:
        logger.warning("%s is damaged (%s) and is made again", out.of(name), error)
        return None
    if metadata.get(DIGEST_KEY) != request.digest.encode():
        logger.warning("%s is of another request and is made again", out.of(name))
        return None
    return WriteCounts(**json.loads(metadata[TALLY_KEY]))


def generate(generator: BundleGenerator, source: PrimarySource, work: GenerationJob) -> WriteCounts:
    """Make what is missing in this process, a shard in each of some threads: torch and Arrow leave Python's lock alone."""
    set_up_process()
    generator = generator.to(work.request.device)
    total = sum(work.done.values(), WriteCounts())
    with (
        progress(work.request.num_events, unit="events", what="generate", initial=total.events) as bar,
        ThreadPoolExecutor(min(CPUS, MAX_THREADS)) as threads,
    ):
        write = partial(write_shard, work.out, work.request, generator)
        for tally in _as_completed(threads, write, pending_shards(source, work)):
            total += tally
            bar.set_postfix_str(f"{total.muons:,} muons", refresh=False)
            bar.update(tally.events)
    work.out.remove_partials()
    return total


def _as_completed(
    threads: ThreadPoolExecutor, write: Callable[[OutputShard], WriteCounts], shards: Iterator[OutputShard]
) -> Iterator[WriteCounts]:
    """Have shards written, one for each thread and one ahead; after an error or Ctrl-C no other is begun."""
    running = {threads.submit(write, shard) for shard in islice(shards, min(CPUS, MAX_THREADS) + 1)}
    try:
        while running:
            done, running = wait(running, return_when=FIRST_COMPLETED)
            running |= {threads.submit(write, shard) for shard in islice(shards, len(done))}
            yield from (future.result() for future in done)
    finally:
        threads.shutdown(cancel_futures=True)


def _pieces(request: GenerationRequest, generator: BundleGenerator, shard: OutputShard) -> Iterator[GeneratedBlock]:
    primaries = shard.primaries
    counts = primaries.counts
    if isinstance(request.counts, int):
        counts = np.full(len(primaries), request.counts, np.int64)
    return generator.generate_blocks(
        primaries.values,
        seed=request.seed,
        ids=primaries.ids,
        counts=counts,
        max_muons=request.max_muons_per_event,
        first_event=shard.number * request.events_per_shard,
    )


def _groups(pieces: Iterable[GeneratedBlock]) -> Iterator[GeneratedBlock]:
    """Put pieces together to row groups."""
    waiting: list[GeneratedBlock] = []
    muons = events = 0
    for piece in pieces:
        waiting.append(piece)
        events += len(piece.drawn)
        muons += len(piece.events.muons)
        if muons >= ROW_GROUP_MUONS or events >= ROW_GROUP_EVENTS:
            yield bundles.concat(waiting)
            waiting, muons, events = [], 0, 0
    if waiting:
        yield bundles.concat(waiting)


def _write(
    path: str, request: GenerationRequest, groups: Iterator[GeneratedBlock], generator: BundleGenerator
) -> WriteCounts:
    tally = WriteCounts()
    with pq.ParquetWriter(
        path,
        OUTPUT_SCHEMA,
        compression="zstd",
        compression_level=1,
        use_dictionary=False,
        use_byte_stream_split=_FLOATS,
        write_statistics=[*schema.ID_COLUMNS, OUTSIDE_COLUMN, DRAWN_COLUMN],
    ) as writer:
        for group in groups:
            outside = generator.outside_training(group.events.primaries)
            columns = [*to_table(group.events).columns, pa.array(outside), pa.array(group.drawn)]
            writer.write_table(pa.Table.from_arrays(columns, schema=OUTPUT_SCHEMA), row_group_size=len(outside))
            capped = int((group.drawn > group.events.counts).sum())
            tally += WriteCounts(len(outside), len(group.events.muons), int(outside.sum()), capped)
        writer.add_key_value_metadata({DIGEST_KEY: request.digest, TALLY_KEY: json.dumps(asdict(tally))})
    return tally


def _cut(source: PrimarySource, size: int) -> Iterator[Primaries]:
    """Primaries in runs of `size`, the last one shorter."""
    waiting: list[Primaries] = []
    held = 0
    for primaries in source:
        waiting.append(primaries)
        held += len(primaries)
        if held >= size:
            whole = _concat(waiting)
            full = held // size * size
            yield from (whole.slice(start, start + size) for start in range(0, full, size))
            waiting, held = [whole.slice(full, held)], held - full
    if held:
        yield _concat(waiting)


def _concat(parts: list[Primaries]) -> Primaries:
    counts = [part.counts for part in parts if part.counts is not None]
    return Primaries(
        np.concatenate([part.ids for part in parts]),
        np.concatenate([part.values for part in parts]),
        np.concatenate(counts) if counts else None,
    )


def _values(tally: WriteCounts) -> tuple[int, int, int, int]:
    return tally.events, tally.muons, tally.outside_training, tally.capped
