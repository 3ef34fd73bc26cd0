"""A generated data set as shards: files that appear whole under fixed names, and going on where a run was interrupted.

A shard is a function of the request and its number alone, and carries the request's digest: shards of two requests never mix.
"""

import json
import logging
import os
import socket
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from crmuons import memory, provenance, schema
from crmuons.generate import BundleGenerator, Piece
from crmuons.primaries import Primaries, Source
from crmuons.progress import progress
from crmuons.request import OUTSIDE_COLUMN, Options, Request, as_before, claim, survey

logger = logging.getLogger(__name__)

DRAWN_COLUMN = "num_muons_drawn"
OUTPUT_SCHEMA = schema.EVENT_SCHEMA.append(pa.field(OUTSIDE_COLUMN, pa.bool_(), nullable=False)).append(
    pa.field(DRAWN_COLUMN, pa.int64(), nullable=False)
)
DIGEST_KEY, TALLY_KEY = b"crmuons.request", b"crmuons.tally"

ROW_GROUP_MUONS, ROW_GROUP_EVENTS = 2**20, 2**16  # 12 MB: what a shard keeps in memory, and what readers like.
MUONS_IN_PROCESS = 8_000_000  # Starting Ray takes as long as one core needs for about this many.

# Random numbers have no repeats worth a dictionary; their bytes pack better one significance at a time. Of a file's muons per
# second of one core, 12 million are written (8 with the defaults) and 24 million read (7), in 11.2 instead of 13.2 bytes.
_FLOATS = ["primary.list.element", "muons.list.element.list.element"]


@dataclass(frozen=True)
class Tally:
    """What became of some events."""

    events: int = 0
    muons: int = 0
    outside_training: int = 0
    capped: int = 0

    def __add__(self, other: "Tally") -> "Tally":
        return Tally(*(mine + theirs for mine, theirs in zip(_values(self), _values(other), strict=True)))


@dataclass(frozen=True)
class Shard:
    """The primaries of one file to be made."""

    number: int
    primaries: Primaries


@dataclass(frozen=True)
class Work:
    """A request, and what an interrupted run has done of it.

    Attributes:
        out: the directory.
        done: what finished shards hold.
        expected_muons: about how many muons are left to make.
    """

    request: Request
    out: Path
    done: dict[int, Tally]
    expected_muons: float

    @property
    def is_large(self) -> bool:
        """Whether a cluster makes what is left sooner than this process."""
        return self.request.num_shards - len(self.done) > 1 and self.expected_muons > MUONS_IN_PROCESS


def prepare(out: Path, generator: BundleGenerator, source: Source, options: Options) -> Work:
    """Look at all primaries, write down the request, or find what is done of it.

    Raises:
        ValueError: if there are no primaries or one is not legal (or, with `strict`, outside the trained range), or if the
            directory holds anything but shards of the same request.
    """
    request, mean = survey(generator, source, as_before(out, options))
    claim(out, request, {"primaries": source.about(), "model": generator.about, "code": provenance.code_tags()})
    done = {number: tally for number in range(request.num_shards) if (tally := finished(out, request, number))}
    if done:
        logger.info("%d of %d shards were finished before and are kept", len(done), request.num_shards)
    return Work(request, out, done, mean * (request.num_events - sum(tally.events for tally in done.values())))


def missing(source: Source, work: Work) -> Iterator[Shard]:
    """The shards that are still to be made, in order."""
    for number, primaries in enumerate(_cut(source, work.request.events_per_shard)):
        if number not in work.done:
            yield Shard(number, primaries)


def set_up_process() -> None:
    """Threads and memory of a process that makes shards."""
    torch.set_num_threads(
        1
    )  # Processes do the work of threads: the last bit of a sum depends on the number of threads.
    memory.keep_freed_memory()


def write_shard(out: Path, request: Request, generator: BundleGenerator, shard: Shard) -> Tally:
    """Generate the events of a shard and write them; the file appears under its name once it is whole.

    Raises:
        OSError: if it cannot be written. Finished shards stay, and the same command goes on from them.
    """
    target = request.shard(shard.number, out)
    partial = target.with_name(f".{target.stem}.{socket.gethostname()}-{os.getpid()}.partial")
    try:
        tally = _write(partial, request, _groups(_tables(request, generator, shard)))
        partial.replace(target)
    except OSError as error:
        msg = f"{target} could not be written ({error}); finished shards are kept, the same command goes on from them"
        raise OSError(msg) from error
    finally:
        partial.unlink(missing_ok=True)
    return tally


def finished(out: Path, request: Request, number: int) -> Tally | None:
    """What a finished shard holds; None if there is none that is whole and of this request."""
    path = request.shard(number, out)
    if not path.is_file():
        return None
    try:
        metadata = pq.read_metadata(path).metadata or {}
    except (pa.ArrowInvalid, OSError) as error:
        logger.warning("%s is damaged (%s) and is made again", path, error)
        return None
    if metadata.get(DIGEST_KEY) != request.digest.encode():
        logger.warning("%s is of another request and is made again", path)
        return None
    return Tally(**json.loads(metadata[TALLY_KEY]))


def generate(generator: BundleGenerator, source: Source, work: Work) -> Tally:
    """Make what is missing, in this process."""
    set_up_process()
    total = sum(work.done.values(), Tally())
    with progress(work.request.num_events, unit="events", what="generate", initial=total.events) as bar:
        for shard in missing(source, work):
            tally = write_shard(work.out, work.request, generator, shard)
            total += tally
            bar.set_postfix_str(f"{total.muons:,} muons", refresh=False)
            bar.update(tally.events)
    remove_partials(work.out)
    return total


def remove_partials(out: Path) -> None:
    """Remove what killed processes left, once all shards are there and nothing is being written."""
    for partial in out.glob(".events-*.partial"):
        partial.unlink(missing_ok=True)


def _tables(request: Request, generator: BundleGenerator, shard: Shard) -> Iterator[pa.Table]:
    primaries = shard.primaries
    counts = primaries.counts
    if isinstance(request.counts, int):
        counts = np.full(len(primaries), request.counts, np.int64)
    for piece in generator.pieces(
        primaries.values,
        seed=request.seed,
        ids=primaries.ids,
        counts=counts,
        max_muons=request.max_muons_per_event,
        first_event=shard.number * request.events_per_shard,
    ):
        yield _table(piece, generator.outside_training(piece.events.primaries))


def _table(piece: Piece, outside: np.ndarray) -> pa.Table:
    table = piece.events.to_table()
    columns = [*table.columns, pa.array(outside), pa.array(piece.drawn)]
    return pa.Table.from_arrays(columns, schema=OUTPUT_SCHEMA)


def _groups(tables: Iterator[pa.Table]) -> Iterator[pa.Table]:
    """Put pieces together to row groups."""
    waiting: list[pa.Table] = []
    muons = events = 0
    for table in tables:
        waiting.append(table)
        events += table.num_rows
        muons += len(table[schema.MUONS_COLUMN].chunk(0).values)
        if muons >= ROW_GROUP_MUONS or events >= ROW_GROUP_EVENTS:
            yield pa.concat_tables(waiting)
            waiting, muons, events = [], 0, 0
    if waiting:
        yield pa.concat_tables(waiting)


def _write(path: Path, request: Request, groups: Iterator[pa.Table]) -> Tally:
    tally = Tally()
    with pq.ParquetWriter(
        path,
        OUTPUT_SCHEMA,
        compression="zstd",
        compression_level=1,
        use_dictionary=False,
        use_byte_stream_split=_FLOATS,
    ) as writer:
        for group in groups:
            writer.write_table(group, row_group_size=group.num_rows)
            tally += _tally(group)
        writer.add_key_value_metadata({DIGEST_KEY: request.digest, TALLY_KEY: json.dumps(asdict(tally))})
    return tally


def _tally(table: pa.Table) -> Tally:
    muons = sum(len(chunk.values) for chunk in table[schema.MUONS_COLUMN].chunks)
    lengths = np.concatenate([np.diff(chunk.offsets) for chunk in table[schema.MUONS_COLUMN].chunks])
    capped = int((table[DRAWN_COLUMN].to_numpy() > lengths).sum())
    return Tally(table.num_rows, muons, int(table[OUTSIDE_COLUMN].to_numpy().sum()), capped)


def _cut(source: Source, size: int) -> Iterator[Primaries]:
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


def _values(tally: Tally) -> tuple[int, int, int, int]:
    return tally.events, tally.muons, tally.outside_training, tally.capped
