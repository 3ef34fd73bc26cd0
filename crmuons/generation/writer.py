"""Write a generated data set as shards, and continue an interrupted run.

The request and the number of a shard determine its content. A shard gets its file name when it is complete, and its
metadata hold the digest of the request, so that shards of two requests never mix.
"""

import json
import logging
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from dataclasses import asdict, astuple, dataclass
from functools import partial
from itertools import islice

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from crmuons import provenance
from crmuons.data import schema
from crmuons.data.arrow import to_table
from crmuons.data.features import metadata_of
from crmuons.data.parquet import parquet_writer
from crmuons.generation import generator as bundles
from crmuons.generation.generator import BundleGenerator, GeneratedBlock
from crmuons.generation.primaries import Primaries, PrimarySource, cut
from crmuons.generation.request import (
    OUTSIDE_COLUMN,
    GenerationOptions,
    GenerationRequest,
    claim_directory,
    flux_weights,
    scan_primaries,
    with_previous_shard_size,
)
from crmuons.generation.weights import WEIGHT_COLUMN
from crmuons.machine import keep_freed_memory, num_threads
from crmuons.models.bundle_model import Ensemble
from crmuons.progress import progress
from crmuons.storage import records
from crmuons.storage.atomic import FULL, reason_of, remedy_for
from crmuons.storage.output import Output

logger = logging.getLogger(__name__)

DRAWN_COLUMN = "num_muons_drawn"
OUTPUT_SCHEMA = schema.EVENT_SCHEMA.append(pa.field(OUTSIDE_COLUMN, pa.bool_(), nullable=False)).append(
    pa.field(DRAWN_COLUMN, pa.int64(), nullable=False)
)
WEIGHT_FIELD = pa.field(WEIGHT_COLUMN, pa.float64(), nullable=False)
# Columns of an ensemble: the member that drew the event, and the spread of the members outside the trained range.
MEMBER_FIELDS = (pa.field("member", pa.int16(), nullable=False), pa.field("spread_log_num_muons", pa.float32()))
DIGEST_KEY, TALLY_KEY = b"crmuons.request", b"crmuons.tally"

ROW_GROUP_MUONS, ROW_GROUP_EVENTS = 2**20, 2**16  # 12 MB in memory, and a good size for readers.
CPUS = num_threads().number
MAX_THREADS = 16  # A thread holds Python's lock for about 4 % of its time.
MUONS_IN_PROCESS = 8_000_000  # One core generates about this number in the time of connecting to Ray.
FOOTERS_AT_ONCE = 16

# Random numbers rarely repeat, so dictionaries do not help; byte-stream split makes them compress better; statistics
# over energies and positions together are useless. One core writes 12 million muons a second (8 with Parquet's
# defaults) and reads 24 million (7), and a muon takes 11.1 bytes instead of 13.2.
_FLOATS = ["primary.list.element", "muons.list.element.list.element"]


@dataclass(frozen=True)
class WriteCounts:
    """Numbers of written events and muons."""

    events: int = 0
    muons: int = 0
    outside_training: int = 0
    capped: int = 0

    def __add__(self, other: "WriteCounts") -> "WriteCounts":
        return WriteCounts(*(one + another for one, another in zip(astuple(self), astuple(other), strict=True)))


@dataclass(frozen=True)
class OutputShard:
    """The primaries of one shard to write."""

    number: int
    primaries: Primaries


@dataclass(frozen=True)
class GenerationJob:
    """A request, and the shards that an earlier run has finished.

    Attributes:
        out: directory or URL of the shards.
        done: counts of the finished shards by number.
        expected_muons: estimated number of muons in the other shards.
    """

    request: GenerationRequest
    out: Output
    done: dict[int, WriteCounts]
    expected_muons: float

    @property
    def is_for_ray(self) -> bool:
        """Return whether Ray finishes sooner: a cluster is named, or this machine has more CPUs than threads can use."""
        if self.request.device == "cuda" and not torch.cuda.is_available():
            return True
        large = self.request.num_shards - len(self.done) > 1 and self.expected_muons > MUONS_IN_PROCESS
        return large and ("RAY_ADDRESS" in os.environ or CPUS > MAX_THREADS)


def plan_generation(
    out: Output, generator: BundleGenerator, source: PrimarySource, options: GenerationOptions
) -> GenerationJob:
    """Read all primaries, then write the request or find the finished shards of an earlier run.

    Raises:
        ValueError: if there are no primaries, if one is out of range (with `strict`, outside the trained range), or if
            the directory holds another request or other files.
        PermissionError, NotADirectoryError: if the directory cannot be written.
    """
    out.check_writable()
    request, mean = scan_primaries(generator, source, with_previous_shard_size(out, options))
    claim_directory(
        out, request, {"primaries": source.about(), "model": generator.metadata, "code": provenance.code_tags()}
    )
    done = finished_shards(out, request)
    if done:
        logger.info("an earlier run finished %d of %d shards; they are kept", len(done), request.num_shards)
    return GenerationJob(request, out, done, mean * (request.num_events - sum(tally.events for tally in done.values())))


def pending_shards(source: PrimarySource, work: GenerationJob) -> Iterator[OutputShard]:
    """Yield the unfinished shards in order."""
    for number, primaries in enumerate(cut(source, work.request.events_per_shard)):
        if number not in work.done:
            yield OutputShard(number, primaries)


def set_up_process() -> None:
    """Set threads and memory of a process that writes shards."""
    # The last bit of a sum depends on the number of threads, so torch uses one; the shards run in parallel instead.
    torch.set_num_threads(1)
    keep_freed_memory()


def write_output_shard(
    out: Output, request: GenerationRequest, generator: BundleGenerator, shard: OutputShard
) -> WriteCounts:
    """Generate the events of a shard and write them; the file gets its name when it is complete.

    Raises:
        OSError: if it cannot be written. Finished shards stay, and the same command continues from them.
    """
    name = request.shard(shard.number)
    try:
        with out.writing(name) as path:
            return _write(str(path), request, _row_groups(_blocks(request, generator, shard)), generator, shard.number)
    except OSError as error:
        remedy = f"{remedy_for(error)}; " if error.errno in FULL else ""
        msg = f"{out.of(name)} could not be written ({reason_of(error)}); {remedy}the same command continues after the finished shards"
        raise OSError(msg) from error


def finished_shards(out: Output, request: GenerationRequest) -> dict[int, WriteCounts]:
    """Return the counts of the complete shards of this request, by number."""
    names = set(out.names())
    numbers = [number for number in range(request.num_shards) if request.shard(number) in names]
    with ThreadPoolExecutor(FOOTERS_AT_ONCE) as threads:
        tallies = threads.map(partial(_finished, out, request), numbers)
        return {number: tally for number, tally in zip(numbers, tallies, strict=True) if tally is not None}


def _finished(out: Output, request: GenerationRequest, number: int) -> WriteCounts | None:
    name = request.shard(number)
    try:
        with out.open(name) as file:
            metadata = pq.read_metadata(file).metadata or {}
    except (pa.ArrowInvalid, OSError) as error:
        logger.warning("%s is damaged (%s) and is generated again", out.of(name), error)
        return None
    if metadata.get(DIGEST_KEY) != request.digest.encode():
        logger.warning("%s belongs to another request and is generated again", out.of(name))
        return None
    return WriteCounts(**records.parse(metadata[TALLY_KEY], "the tally of a shard"))


def generate(generator: BundleGenerator, source: PrimarySource, work: GenerationJob) -> WriteCounts:
    """Write the unfinished shards in this process, one in each thread, and return the counts of all shards.

    Threads are enough, because torch and Arrow release Python's lock.
    """
    set_up_process()
    generator = generator.to(work.request.device)
    total = sum(work.done.values(), WriteCounts())
    with (
        progress(work.request.num_events, unit="events", what="generate", initial=total.events) as bar,
        ThreadPoolExecutor(min(CPUS, MAX_THREADS)) as threads,
    ):
        write = partial(write_output_shard, work.out, work.request, generator)
        for tally in _as_completed(threads, write, pending_shards(source, work)):
            total += tally
            bar.set_postfix_str(f"{total.muons:,} muons", refresh=False)
            bar.update(tally.events)
    return total


def _as_completed(
    threads: ThreadPoolExecutor, write: Callable[[OutputShard], WriteCounts], shards: Iterator[OutputShard]
) -> Iterator[WriteCounts]:
    """Write shards, one in each thread and one waiting. After an error or Ctrl-C no other shard is started."""
    running = {threads.submit(write, shard) for shard in islice(shards, min(CPUS, MAX_THREADS) + 1)}
    try:
        while running:
            done, running = wait(running, return_when=FIRST_COMPLETED)
            running |= {threads.submit(write, shard) for shard in islice(shards, len(done))}
            yield from (future.result() for future in done)
    finally:
        threads.shutdown(cancel_futures=True)


def _blocks(request: GenerationRequest, generator: BundleGenerator, shard: OutputShard) -> Iterator[GeneratedBlock]:
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


def _row_groups(blocks: Iterable[GeneratedBlock]) -> Iterator[GeneratedBlock]:
    """Join blocks to row groups."""
    waiting: list[GeneratedBlock] = []
    muons = events = 0
    for block in blocks:
        waiting.append(block)
        events += len(block.drawn)
        muons += len(block.events.muons)
        if muons >= ROW_GROUP_MUONS or events >= ROW_GROUP_EVENTS:
            yield bundles.concat_blocks(waiting)
            waiting, muons, events = [], 0, 0
    if waiting:
        yield bundles.concat_blocks(waiting)


def _write(
    path: str, request: GenerationRequest, groups: Iterator[GeneratedBlock], generator: BundleGenerator, shard: int
) -> WriteCounts:
    tally, weights = WriteCounts(), flux_weights(request)
    declared = generator.muon_features
    is_ensemble, first_event = isinstance(generator.model, Ensemble), shard * request.events_per_shard
    fields = [
        *OUTPUT_SCHEMA,
        *([] if weights is None else [WEIGHT_FIELD]),
        *(MEMBER_FIELDS if is_ensemble else ()),
    ]
    columns_written = pa.schema(fields, metadata_of(declared) or None)
    with parquet_writer(
        path,
        columns_written,
        compression="zstd",
        compression_level=1,
        use_dictionary=False,
        use_byte_stream_split=_FLOATS,
        write_statistics=[*schema.ID_COLUMNS, OUTSIDE_COLUMN, DRAWN_COLUMN],
    ) as writer:
        for group in groups:
            outside = generator.outside_training(group.events.primaries)
            columns = [*to_table(group.events, declared).columns, pa.array(outside), pa.array(group.drawn)]
            if weights is not None:
                columns.append(pa.array(weights(group.events.primaries)))
            if is_ensemble:
                columns += _member_columns(generator, request.seed, first_event, group.events.primaries, outside)
                first_event += len(outside)
            writer.write_table(pa.Table.from_arrays(columns, schema=columns_written), row_group_size=len(outside))
            capped = int((group.drawn > group.events.counts).sum())
            tally += WriteCounts(len(outside), len(group.events.muons), int(outside.sum()), capped)
        writer.add_key_value_metadata({DIGEST_KEY: request.digest, TALLY_KEY: json.dumps(asdict(tally))})
    return tally


def _member_columns(
    generator: BundleGenerator, seed: int, first_event: int, primaries: np.ndarray, outside: np.ndarray
) -> list[pa.Array]:
    """Return the columns of MEMBER_FIELDS; the spread is null inside the trained range."""
    members = generator.members_of(len(primaries), seed=seed, first_event=first_event)
    spread = np.zeros(len(primaries))
    if outside.any():
        spread[outside] = generator.spread_log_num_muons(primaries[outside])
    return [pa.array(members, pa.int16()), pa.array(spread, pa.float32(), mask=~outside)]
