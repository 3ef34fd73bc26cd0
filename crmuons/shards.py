"""A generated data set as shards: a request, files that appear whole under fixed names, and going on where a run was interrupted.

A shard is a function of the request and its number alone. The request lies beside the shards as request.json, and its digest in
every shard, so that shards of two requests never mix.
"""

import hashlib
import json
import logging
import os
import socket
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from crmuons import memory, provenance, schema
from crmuons.generate import EVENTS_PER_BLOCK, BundleGenerator, Piece
from crmuons.primaries import Counts, Primaries, Source
from crmuons.progress import progress

logger = logging.getLogger(__name__)

REQUEST_FILE = "request.json"
OUTSIDE_COLUMN, DRAWN_COLUMN = "outside_training", "num_muons_drawn"
OUTPUT_SCHEMA = schema.EVENT_SCHEMA.append(pa.field(OUTSIDE_COLUMN, pa.bool_(), nullable=False)).append(
    pa.field(DRAWN_COLUMN, pa.int64(), nullable=False)
)
DIGEST_KEY, TALLY_KEY = b"crmuons.request", b"crmuons.tally"

MUONS_PER_SHARD = 2**21  # About 25 MB and 4 s of one core.
MAX_EVENTS_PER_SHARD = 2**18
ROW_GROUP_MUONS, ROW_GROUP_EVENTS = 2**20, 2**16  # 12 MB: what a shard keeps in memory, and what readers like.
MUONS_IN_PROCESS = 8_000_000  # Starting Ray takes as long as one core needs for about this many.
SAMPLE_EVERY = 64  # Events whose N is drawn to estimate the mean.

# Random numbers have no repeats worth a dictionary; their bytes pack better one significance at a time. Of a file's muons per
# second of one core, 12 million are written (8 with the defaults) and 24 million read (7), in 11.2 instead of 13.2 bytes.
_FLOATS = ["primary.list.element", "muons.list.element.list.element"]


@dataclass(frozen=True)
class Options:
    """What a user asks for beside model and primaries.

    Attributes:
        seed: of the random numbers.
        counts: where N comes from: drawn ("predict"), given with the primaries ("column"), or this number for all.
        max_muons_per_event: events with more get this many, and keep the drawn number in DRAWN_COLUMN.
        strict: refuse primaries outside the trained range.
        events_per_shard: a multiple of EVENTS_PER_BLOCK; None to choose it such that a shard has about MUONS_PER_SHARD.
    """

    seed: int = 0
    counts: Counts = "predict"
    max_muons_per_event: int | None = None
    strict: bool = False
    events_per_shard: int | None = None

    def __post_init__(self) -> None:
        _require(self.seed >= 0, f"--seed {self.seed}: wanted 0 or more")
        if isinstance(self.counts, int):
            _require(self.counts >= 0, f"--counts {self.counts}: wanted predict, column, or a number of muons from 0")
        cap, size = self.max_muons_per_event, self.events_per_shard
        _require(cap is None or cap >= 1, f"--max-muons-per-event {cap}: wanted at least 1")
        _require(
            size is None or (size > 0 and size % EVENTS_PER_BLOCK == 0),
            f"--events-per-shard {size}: wanted a multiple of {EVENTS_PER_BLOCK}",
        )


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
class Request:
    """Everything that decides what a shard holds. Two requests with the same values make the same shards, bit by bit.

    Attributes:
        model, primaries: digests of the weights, and of the primaries' numbers, ids and counts.
        num_events: of the whole data set.
    """

    model: str
    primaries: str
    num_events: int
    seed: int
    counts: Counts
    max_muons_per_event: int | None
    events_per_shard: int

    @property
    def num_shards(self) -> int:
        return -(-self.num_events // self.events_per_shard)

    @property
    def digest(self) -> str:
        return _sha256(json.dumps(asdict(self), sort_keys=True).encode())

    def shard(self, number: int, out: Path) -> Path:
        """Where a shard is once it is whole."""
        return out / f"events-{number:05d}.parquet"


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
    if options.events_per_shard is None and (out / REQUEST_FILE).is_file():
        options = replace(options, events_per_shard=_read_request(out / REQUEST_FILE)["events_per_shard"])
    request, mean = _survey(generator, source, options)
    _write_request(
        out, request, {"primaries": source.about(), "model": generator.about, "code": provenance.code_tags()}
    )
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
    return total


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


def _survey(generator: BundleGenerator, source: Source, options: Options) -> tuple[Request, float]:
    """Go through all primaries once: the request, and about how many muons an event will have."""
    seen, outside, sampled, muons = 0, 0, 0, 0.0
    content = hashlib.sha256()
    first_outside: list[float] = []
    for primaries in source:
        for array in (primaries.ids, primaries.values, primaries.counts):
            content.update(b"" if array is None else array.tobytes())
        beyond = generator.outside_training(primaries.values)
        if beyond.any() and not outside:
            first_outside = primaries.values[np.argmax(beyond)].tolist()
        outside += int(beyond.sum())
        sample = _sample_counts(generator, primaries, options)
        sampled, muons = sampled + len(sample), muons + float(sample.sum())
        seen += len(primaries)
    _require(seen > 0, "the primaries have no rows; give at least one primary")
    _report_outside(generator, options, seen, outside, first_outside)
    mean = muons / sampled
    size = options.events_per_shard or _events_per_shard(mean)
    digest = content.hexdigest()[:16]
    cap = options.max_muons_per_event
    return Request(model_digest(generator), digest, seen, options.seed, options.counts, cap, size), mean


def _sample_counts(generator: BundleGenerator, primaries: Primaries, options: Options) -> np.ndarray:
    some = primaries.values[::SAMPLE_EVERY]
    if isinstance(options.counts, int):
        counts = np.full(len(some), options.counts)
    elif primaries.counts is not None:
        counts = primaries.counts[::SAMPLE_EVERY]
    else:
        counts = generator.draw_counts(some, seed=options.seed)
    return counts if options.max_muons_per_event is None else np.minimum(counts, options.max_muons_per_event)


def _events_per_shard(mean_muons: float) -> int:
    """A power of two between EVENTS_PER_BLOCK and MAX_EVENTS_PER_SHARD."""
    wanted = MUONS_PER_SHARD / max(mean_muons, 1e-9)
    return int(2 ** np.clip(np.floor(np.log2(wanted)), np.log2(EVENTS_PER_BLOCK), np.log2(MAX_EVENTS_PER_SHARD)))


def _report_outside(generator: BundleGenerator, options: Options, seen: int, outside: int, first: list[float]) -> None:
    if not outside:
        return
    ranges = ", ".join(f"{name} {low:g} to {high:g}" for name, (low, high) in generator.training_ranges.items())
    found = ", ".join(f"{name} {value:g}" for name, value in zip(schema.PRIMARY_FEATURES, first, strict=True))
    what = f"{outside} of {seen} primaries are outside the trained range ({ranges}), the first with {found}"
    _require(not options.strict, f"{what}; leave them out, or generate them all the same without --strict")
    logger.warning("%s; they are generated, with %s true", what, OUTSIDE_COLUMN)


def _write_request(out: Path, request: Request, about: dict[str, object]) -> None:
    """Claim a directory, or find that it is claimed by the same request."""
    path = out / REQUEST_FILE
    if path.is_file():
        _check_same(path, request)
        return
    out.mkdir(parents=True, exist_ok=True)
    _require(not any(out.iterdir()), f"{out} holds other files and no {REQUEST_FILE}; name a new directory with --out")
    partial = out / f".{REQUEST_FILE}.partial"
    partial.write_text(json.dumps({"request": asdict(request), **about}, indent=1))
    partial.replace(path)


def _read_request(path: Path) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads(path.read_text())["request"]
    except (json.JSONDecodeError, KeyError) as error:
        msg = f"{path} is damaged ({error}); name another directory with --out, or remove {path.parent}"
        raise ValueError(msg) from error
    return found


def _check_same(path: Path, request: Request) -> None:
    found, wanted = _read_request(path), asdict(request)
    differing = [
        f"{name} was {found.get(name)}, now {value}" for name, value in wanted.items() if found.get(name) != value
    ]
    _require(
        not differing,
        f"{path.parent} belongs to another request ({'; '.join(differing)}): name another directory with --out, "
        "or remove this one",
    )


def model_digest(generator: BundleGenerator) -> str:
    """A digest of a model's weights and statistics."""
    content = hashlib.sha256()
    for name, values in sorted(generator.model.state_dict().items()):
        content.update(name.encode())
        content.update(values.cpu().numpy().tobytes())
    return content.hexdigest()[:16]


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


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


def _require(holds: bool, message: str) -> None:
    if not holds:
        raise ValueError(message)
