"""Prepared data sets: shuffled shards of flat, legal events, and the manifest without which there is no data set.

A shard is an Arrow IPC file that is mapped into memory. It is of one split, and carries the places of its showers on the line
from 0 to 1 that the splits divide (reader.places), so that reading need not compute them; and a checksum of each record batch.
"""

import json
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow as pa

from crmuons.data import arrow
from crmuons.data.events import EventArrays
from crmuons.data.manifest import HashRange, is_shard
from crmuons.data.sampler import FileSlice, cut_files
from crmuons.data.staged_reading import open_unit
from crmuons.storage.atomic import atomic_file
from crmuons.storage.files import File
from crmuons.storage.staging.download import Staging

EVENTS_PER_BATCH = 16_384  # Large against what a record batch costs (50 us to open), small against a unit.
ABOUT_KEY = b"crmuons.shard"
MAPPED_BYTES = 8 * 2**20  # Of mapped shards that are read together; a worker holds three or four times as much.


_verified: set[tuple[str, int, int, int]] = set()  # Record batches whose checksums this process has found right.


def units_and_segment_bytes(files: Sequence[File], shuffle_bytes: int) -> tuple[list[FileSlice], int]:
    """How files to train on are cut, and how much of them is read and shuffled together.

    Shards hold their events in random order: of mapped ones small pieces do, so that a large data set takes no more memory than one
    of a million events.
    """
    if all(is_mapped(file) for file in files):
        return cut_files(files, MAPPED_BYTES), min(shuffle_bytes, MAPPED_BYTES)
    return cut_files(files), shuffle_bytes


def is_mapped(file: File) -> bool:
    """Whether a file is a shard that is read by mapping it into memory, which costs less than moving its content anywhere."""
    return is_shard(file) and "://" not in file.url  # As files.list_files gives local paths.


def write_shard(path: Path, events: EventArrays, places: HashRange) -> None:
    """Write a shard; it appears under its name once it is whole and on the disk."""
    batches = pa.Table.from_batches([arrow.to_flat(events)]).to_batches(max_chunksize=EVENTS_PER_BATCH)
    about = {"places": places, "events": len(events.counts), "checksums": [_checksum(batch) for batch in batches]}
    described = arrow.FLAT_SCHEMA.with_metadata({ABOUT_KEY: json.dumps(about)})
    with atomic_file(path, fsync=True, shared=True) as partial, pa.ipc.new_file(str(partial), described) as writer:
        for batch in batches:
            writer.write_batch(batch)


def read_shard_rows(unit: FileSlice, staging: Staging | None = None) -> tuple[list[EventArrays], HashRange]:
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
def _opened(
    unit: FileSlice, staging: Staging | None
) -> Iterator[tuple[pa.RecordBatchFileReader, tuple[str, int, int]]]:
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
    return arrow.from_flat(batch.slice(start, stop - start))


def _checksum(batch: pa.RecordBatch) -> int:
    """CRC-32 of a batch's values; 4 GB/s."""
    events = arrow.from_flat(batch)
    value = 0
    for array in (events.ids, events.primaries, events.counts, events.muons):
        value = zlib.crc32(np.ascontiguousarray(array).data, value)
    return value
