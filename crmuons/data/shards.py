"""Prepared data sets: shuffled shards of flat, legal events, and the manifest without which there is no data set.

A shard is an Arrow IPC file that is mapped into memory. It is of one split, and carries the places of its showers on the line
from 0 to 1 that the splits divide (reader.places), so that reading need not compute them; and a checksum of each record batch.
"""

import json
import os
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from crmuons import flat
from crmuons.data.sampler import Unit, cut
from crmuons.data.schema import EventArrays
from crmuons.storage import files
from crmuons.storage.files import File
from crmuons.storage.staging.download import Staging, open_unit

MANIFEST = "manifest.json"
CLAIM = "preparation.json"  # What is being prepared; it is there before the first shard, the manifest after the last.
FEATURES = "features.pt"  # Fitted on training events.
SUFFIX = ".arrow"
EVENTS_PER_BATCH = 16_384  # Large against what a record batch costs (50 us to open), small against a unit.
ABOUT_KEY = b"crmuons.shard"
MAPPED_BYTES = 8 * 2**20  # Of mapped shards that are read together; a worker holds three or four times as much.

Places = tuple[float, float]  # From the first up to but not including the second.

_verified: set[tuple[str, int, int, int]] = set()  # Record batches whose checksums this process has found right.


@dataclass(frozen=True)
class Shard:
    """What the manifest says of a shard.

    Attributes:
        file: its path in the data set.
        places: of its showers.
        events, muons: how many it holds.
        size: in bytes.
        sha256: of the file.
    """

    file: str
    places: Places
    events: int
    muons: int
    size: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """What a prepared data set holds, and where it comes from.

    Attributes:
        shards: in order.
        rows, quarantined: of the files that it was made from.
        settings: of the preparation.
        sources: URLs and sizes of the files that it was made from.
        code: versions, and the commit where there is one.
    """

    shards: list[Shard]
    rows: int
    quarantined: int
    settings: dict[str, Any]
    sources: list[tuple[str, int]]
    code: dict[str, str]

    def to_json(self) -> str:
        """The manifest as text, the same for the same data set."""
        return json.dumps(asdict(self), indent=1, sort_keys=True)

    def describe(self) -> str:
        """Events and muons of each split."""
        said = []
        for split in dict.fromkeys(shard.file.partition("/")[0] for shard in self.shards):
            mine = [shard for shard in self.shards if shard.file.startswith(f"{split}/")]
            said.append(
                f"{split} {sum(shard.events for shard in mine):,} ({sum(shard.muons for shard in mine):,} muons)"
            )
        return f"{len(self.shards)} shards of events: {', '.join(said)}"

    @classmethod
    def read(cls, root: str) -> "Manifest":
        """The manifest of a directory or URL.

        Raises:
            ValueError: if it is damaged.
        """
        try:
            found = json.loads(files.read_bytes(f"{root}/{MANIFEST}"))
            shards = [Shard(**shard | {"places": tuple(shard["places"])}) for shard in found.pop("shards")]
            sources = [(url, size) for url, size in found.pop("sources")]
            return cls(shards=shards, sources=sources, **found)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            msg = f"{root}/{MANIFEST} is not the manifest of a prepared data set, or is damaged ({error}); prepare it again"
            raise ValueError(msg) from error


def event_files(urls: str | Sequence[str], places: Places = (0.0, 1.0)) -> list[File]:
    """The files that hold the events of paths, directories, globs or URLs: of prepared data sets the shards, others as they are.

    Args:
        urls: see files.list_files.
        places: shards without a shower among these are left out.

    Raises:
        FileNotFoundError: if there is nothing, or a shard is missing.
        ValueError: if a data set is not prepared to its end, or a shard has not the size that it was written with.
    """
    try:
        found = files.list_files(urls, suffixes=(*files.PARQUET_SUFFIXES, SUFFIX, f"/{MANIFEST}", f"/{CLAIM}"))
    except FileNotFoundError:
        return files.list_files(urls)  # It says what is missing in the words of who gives raw files.
    begun, whole = (_folders_of(name, found) for name in (CLAIM, MANIFEST))
    for root in sorted(begun - whole):
        msg = f"{root} is not prepared to its end; the `crmuons prepare` that made it, once more, goes on from what is done"
        raise ValueError(msg)
    raw = [file for file in found if not any(file.url.startswith(f"{root}/") for root in whole)]
    return sorted([*raw, *(file for root in sorted(whole) for file in _shards(root, places))])


def origins(urls: str | Sequence[str]) -> list[File]:
    """The files of `event_files`, and those that prepared data sets among them were made from."""
    found = event_files(urls)
    roots = {_root(file) for file in found if is_shard(file)}
    sources = [
        File(*source)
        for root in sorted(roots)
        if files.exists(f"{root}/{MANIFEST}")
        for source in Manifest.read(root).sources
    ]
    return [*found, *sources]


def _root(shard: File) -> str:
    return shard.url.rsplit("/", 2)[0]


def _folders_of(name: str, found: list[File]) -> set[str]:
    return {file.url.removesuffix(f"/{name}") for file in found if file.url.endswith(f"/{name}")}


def _shards(root: str, places: Places) -> Iterator[File]:
    there = {file.url: file for file in files.list_files(root, suffixes=(SUFFIX,))}
    for shard in Manifest.read(root).shards:
        file = there.get(f"{root}/{shard.file}")
        if file is None:
            msg = f"{root}/{shard.file} is missing, and the manifest names it; copy it there again, or prepare the data again"
            raise FileNotFoundError(msg)
        if file.size != shard.size:
            msg = (
                f"{file.url} has {file.size} bytes, and was written with {shard.size}: it is damaged or cut short; copy it "
                "there again, or prepare the data again"
            )
            raise ValueError(msg)
        if shard.places[0] < places[1] and places[0] < shard.places[1]:
            yield file


def features_of(listed: Sequence[File], places: Places) -> bytes | None:
    """The content of the file of features fitted on the events of some files and places; None if there is none.

    Args:
        listed: as `event_files` gave them for these places.
        places: of the events to train on.
    """
    roots = {_root(file) for file in listed if is_shard(file)}
    if len(roots) != 1 or not all(map(is_shard, listed)) or not files.exists(f"{min(roots)}/{MANIFEST}"):
        return None
    (root,) = roots
    of_training = {shard.places for shard in Manifest.read(root).shards if shard.file.startswith("train/")}
    return files.read_bytes(f"{root}/{FEATURES}") if of_training == {places} else None


def is_shard(file: File) -> bool:
    """Whether a file is a prepared shard; everything else is Parquet."""
    return file.url.endswith(SUFFIX)


def units_and_segment_bytes(files: Sequence[File], shuffle_bytes: int) -> tuple[list[Unit], int]:
    """How files to train on are cut, and how much of them is read and shuffled together.

    Shards hold their events in random order: of mapped ones small pieces do, so that a large data set takes no more memory than one
    of a million events.
    """
    if all(is_mapped(file) for file in files):
        return cut(files, MAPPED_BYTES), min(shuffle_bytes, MAPPED_BYTES)
    return cut(files), shuffle_bytes


def is_mapped(file: File) -> bool:
    """Whether a file is a shard that is read by mapping it into memory, which costs less than moving its content anywhere."""
    return is_shard(file) and "://" not in file.url  # As files.list_files gives local paths.


def write_shard(path: Path, events: EventArrays, places: Places) -> None:
    """Write a shard; it appears under its name once it is whole and on the disk."""
    batches = pa.Table.from_batches([flat.to_flat(events)]).to_batches(max_chunksize=EVENTS_PER_BATCH)
    about = {"places": places, "events": len(events.counts), "checksums": [_checksum(batch) for batch in batches]}
    described = flat.FLAT_SCHEMA.with_metadata({ABOUT_KEY: json.dumps(about)})
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    with partial.open("wb") as file:
        with pa.ipc.new_file(file, described) as writer:
            for batch in batches:
                writer.write_batch(batch)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def read_rows(unit: Unit, staging: Staging | None = None) -> tuple[list[EventArrays], Places]:
    """A unit's events of a shard in pieces, in memory that cannot be written, and the places of the shard's showers.

    Raises:
        ValueError: if the file is not a shard or is damaged. What was found right in this process is not checked again.
    """
    with _opened(unit, staging) as (shard, state):
        about = json.loads(shard.schema.metadata[ABOUT_KEY])
        rows = unit.rows(about["events"])
        pieces = [_piece(shard, number, rows, (*state, number), about["checksums"]) for number in _batches(rows)]
        return pieces, tuple(about["places"])


@contextmanager
def named_if_damaged(url: str) -> Iterator[None]:
    """Name the shard when it makes no sense. An error of the storage names itself, and passes."""
    try:
        yield
    except (pa.ArrowInvalid, LookupError, TypeError, ValueError, OSError) as error:
        if isinstance(error, OSError) and (type(error) is not OSError or error.errno is not None):
            raise
        reason = str(error) if isinstance(error, ValueError | OSError) else "it does not say what it holds"
        msg = f"{url} is not a shard of a prepared data set, or is damaged ({reason}); copy it again, or prepare the data again"
        raise ValueError(msg) from error


@contextmanager
def _opened(unit: Unit, staging: Staging | None) -> Iterator[tuple[pa.RecordBatchFileReader, tuple[str, int, int]]]:
    """The shard, and what changes where the file does: URL, size and time of the last change where it is a local one."""
    file = unit.file
    if is_mapped(file):
        found = Path(file.url).stat()
        with named_if_damaged(file.url), pa.memory_map(file.url) as source:
            yield pa.ipc.open_file(source), (file.url, found.st_size, found.st_mtime_ns)
    else:
        with open_unit(unit, staging) as source, named_if_damaged(file.url):
            yield pa.ipc.open_file(source), (file.url, file.size, 0)


def _batches(rows: range) -> range:
    return range(rows.start // EVENTS_PER_BATCH, -(-rows.stop // EVENTS_PER_BATCH)) if rows else range(0)


def _piece(
    shard: pa.RecordBatchFileReader, number: int, rows: range, state: tuple[str, int, int, int], checksums: list[int]
) -> EventArrays:
    """Those of some rows that are in a record batch."""
    batch = shard.get_batch(number)
    if state not in _verified:
        if _checksum(batch) != checksums[number]:
            msg = f"record batch {number} has not the checksum that was written with it"
            raise ValueError(msg)
        _verified.add(state)
    first = number * EVENTS_PER_BATCH
    start, stop = max(rows.start - first, 0), min(rows.stop - first, batch.num_rows)
    return flat.from_flat(batch.slice(start, stop - start))


def _checksum(batch: pa.RecordBatch) -> int:
    """CRC-32 of a batch's values; 4 GB/s."""
    events = flat.from_flat(batch)
    value = 0
    for array in (events.ids, events.primaries, events.counts, events.muons):
        value = zlib.crc32(np.ascontiguousarray(array).data, value)
    return value
