"""Write and read the shards of a prepared data set: Arrow IPC files of shuffled, legal events.

`crmuons prepare` writes shards; afterwards the reader takes them wherever it would take Parquet slices. A local shard
is mapped into memory, so reading it copies and decodes nothing. The shard's metadata hold a checksum of each record
batch, and the range of the split coordinate (selection.split_coordinates) of its showers: a shard that lies inside one
split needs no hashing of ids.
"""

import json
import threading
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from crmuons.data import arrow
from crmuons.data.events import EventArrays, with_columns
from crmuons.data.features import BASE, MuonFeature, columns_of, declared, metadata_of
from crmuons.data.manifest import HashRange, is_shard
from crmuons.data.parquet import DamagedError
from crmuons.data.sampler import FileSlice, cut_files
from crmuons.data.staged_reading import open_slice
from crmuons.storage.atomic import atomic_file
from crmuons.storage.files import File
from crmuons.storage.identity import Digests, check_local
from crmuons.storage.staging.download import Staging

# Opening a record batch costs 50 us, little for this many events. A slice has several batches.
EVENTS_PER_BATCH = 16_384
METADATA_KEY = b"crmuons.shard"
METADATA_CRC_KEY = b"crmuons.shard.crc32"  # Shards of earlier versions have none.
# Bytes of local shards that stay open. Opening and mapping a shard again for each segment takes a fifth of the time of
# reading. The kernel's file cache holds their pages, and takes them back when it needs memory.
OPEN_BYTES = 256 * 2**20
# Bytes of mapped shards that are read together. They need three or four times this size in a worker's memory.
MAPPED_BYTES = 8 * 2**20

FileState = tuple[str, int, int]  # URL, size, and time of the last change in ns (0 for a remote file).
# FileState and number of each record batch that this process has checked.
_verified: set[tuple[str, int, int, int]] = set()
_open: dict[FileState, "_Shard"] = {}  # In the order of use, the newest last.
_lock = threading.Lock()


@dataclass
class _Shard:
    """An open shard.

    Attributes:
        reader: the reader of its record batches.
        content: the content of its metadata.
        features: the numbers of its muons.
        batches: the record batches that were read so far.
    """

    reader: pa.RecordBatchFileReader
    content: dict[str, Any]
    features: tuple[MuonFeature, ...]
    batches: dict[int, pa.RecordBatch] = field(default_factory=dict)

    @classmethod
    def of(cls, source: Any, url: str) -> "_Shard":
        reader = pa.ipc.open_file(source)
        return cls(reader, _metadata(reader.schema.metadata), declared(reader.schema, url))

    def batch(self, number: int) -> pa.RecordBatch:
        if number not in self.batches:
            self.batches[number] = self.reader.get_batch(number)
        return self.batches[number]


def slices_and_segment_bytes(files: Sequence[File], shuffle_bytes: int) -> tuple[list[FileSlice], int]:
    """Cut training files into slices, and return the slices and the number of bytes of a segment.

    The events of a shard are in random order, so small slices of mapped shards are enough. A large data set then takes
    no more memory than a data set of a million events.
    """
    # If one file is not a local shard, slices are large: each slice of a remote file costs a request or more.
    if all(is_mapped(file) for file in files):
        return cut_files(files, MAPPED_BYTES), min(shuffle_bytes, MAPPED_BYTES)
    return cut_files(files), shuffle_bytes


def is_mapped(file: File) -> bool:
    """Return whether a file is a local shard. Such a file is mapped into memory, which costs less than a copy."""
    return is_shard(file) and "://" not in file.url  # files.list_files gives local files as plain paths.


def write_shard(path: Path, events: EventArrays, hash_range: HashRange, features: Sequence[MuonFeature] = BASE) -> None:
    """Write a shard. It gets its name only when it is complete and on the disk."""
    # A shard has several batches, so that a slice maps and checks only its own part.
    batches = pa.Table.from_batches([arrow.to_flat(events)]).to_batches(max_chunksize=EVENTS_PER_BATCH)
    content = json.dumps(
        {"places": hash_range, "events": len(events.counts), "checksums": [checksum(batch) for batch in batches]}
    )
    metadata = {METADATA_KEY: content.encode(), METADATA_CRC_KEY: str(zlib.crc32(content.encode())).encode()}
    schema = arrow.flat_schema(len(features)).with_metadata(metadata_of(features) | metadata)
    # fsync, because the receipt and the manifest will say that the shard is whole.
    with atomic_file(path, fsync=True) as partial, pa.ipc.new_file(str(partial), schema) as writer:
        for batch in batches:
            writer.write_batch(batch)


def read_shard_rows(
    file_slice: FileSlice,
    staging: Staging | None = None,
    digests: Digests | None = None,
    *,
    features: Sequence[MuonFeature] | None = None,
) -> tuple[list[EventArrays], HashRange]:
    """Read the events of a slice of a shard.

    Args:
        file_slice: the slice.
        staging: see open_slice.
        features: the numbers of a muon to return; None for all numbers of the shard.

    Returns:
        The events of each record batch, in read-only memory, and the range of the split coordinate of the shard's
        showers.

    Raises:
        ValueError: if the file is not a shard or is damaged. A record batch is checked once in a process.
    """
    with _opened(file_slice, staging, digests) as (shard, state):
        rows, checksums = file_slice.rows(shard.content["events"]), shard.content["checksums"]
        batches = [_batch_events(shard, number, rows, state, checksums[number]) for number in _batch_numbers(rows)]
    columns = None if features is None else columns_of(shard.features, features, file_slice.file.url)
    if columns is not None:
        batches = [with_columns(events, columns) for events in batches]
    return batches, tuple(shard.content["places"])


def read_declaration(file: File) -> tuple[MuonFeature, ...]:
    """Return the numbers of a muon that a shard declares. It raises the same errors as `read_shard_rows`."""
    with _opened(FileSlice(file, 0, 1), None, None) as (shard, _):
        return shard.features


def _metadata(entries: Mapping[bytes, bytes]) -> dict[str, Any]:
    """Check and return a shard's metadata. A flipped digit in `places` would move events between splits."""
    content: bytes = entries[METADATA_KEY]
    if METADATA_CRC_KEY in entries and int(entries[METADATA_CRC_KEY]) != zlib.crc32(content):
        msg = "its metadata do not have the checksum that was written with them"
        raise ValueError(msg)
    metadata: dict[str, Any] = json.loads(content)
    return metadata


@contextmanager
def _named_if_damaged(url: str) -> Iterator[None]:
    """Turn the errors of a damaged shard into a DamagedError that names it. Errors of the storage stay unchanged."""
    try:
        yield
    except (pa.ArrowInvalid, LookupError, TypeError, ValueError, OSError) as error:
        # Arrow raises plain OSErrors without a number for a broken file; a disk or a server gives a number or a class.
        if isinstance(error, OSError) and (type(error) is not OSError or error.errno is not None):
            raise
        reason = str(error) if isinstance(error, ValueError | OSError) else "its metadata are missing or wrong"
        msg = (
            f"{url} is not a shard of a prepared data set, or is damaged ({reason}); copy it again, or prepare the data "
            "again"
        )
        raise DamagedError(msg) from error


@contextmanager
def _opened(
    file_slice: FileSlice, staging: Staging | None, digests: Digests | None
) -> Iterator[tuple[_Shard, FileState]]:
    """Open the shard, and yield it with a state that differs if the file has changed."""
    file = file_slice.file
    if is_mapped(file):
        stat = check_local(file)
        with _named_if_damaged(file.url):
            state = file.url, stat.st_size, stat.st_mtime_ns
            yield _kept_open(state), state
    else:
        with open_slice(file_slice, staging, digests) as source, _named_if_damaged(file.url):
            yield _Shard.of(source, file.url), (file.url, file.size, 0)


def _kept_open(state: FileState) -> _Shard:
    """Return a local shard, which stays open until others take its room or the file has changed."""
    url, size, _ = state
    with _lock:  # The loader's thread and a validation may open shards at the same time.
        shard = _open.pop(state, None) or _Shard.of(pa.memory_map(url), url)
        for other in [other for other in _open if other[0] == url]:  # Earlier states of the file.
            del _open[other]
        while _open and sum(size for _, size, _ in _open) + size > OPEN_BYTES:
            del _open[next(iter(_open))]
        if size <= OPEN_BYTES:
            _open[state] = shard
        return shard


def _batch_numbers(rows: range) -> range:
    """Return the numbers of the record batches that hold some rows."""
    return range(rows.start // EVENTS_PER_BATCH, -(-rows.stop // EVENTS_PER_BATCH)) if rows else range(0)


def _batch_events(shard: _Shard, number: int, rows: range, state: FileState, written: int) -> EventArrays:
    """Return the events of `rows` (row numbers in the shard) that are in one record batch."""
    batch = shard.batch(number)
    # Checked once: each epoch reads the batch again, and the checksum takes longer than mapping.
    if (*state, number) not in _verified:
        if checksum(batch) != written:
            msg = f"record batch {number} does not have the checksum that was written with it"
            raise ValueError(msg)
        _verified.add((*state, number))
    # Every batch but the last is full, so a row's batch follows from its number.
    first = number * EVENTS_PER_BATCH
    start, stop = max(rows.start - first, 0), min(rows.stop - first, batch.num_rows)
    return arrow.from_flat(batch.slice(start, stop - start))


def checksum(batch: pa.RecordBatch) -> int:
    """Compute the CRC-32 of a batch's values, at 4 GB/s."""
    events = arrow.from_flat(batch)
    value = 0
    # Over the values, because the file's bytes also have padding, and a slice of a batch shares its buffers.
    for array in (events.ids, events.primaries, events.counts, events.muons):
        value = zlib.crc32(np.ascontiguousarray(array).data, value)
    return value
