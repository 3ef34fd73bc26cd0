"""Download one remote file into the staging directory, verify it and record it."""

import json
import logging
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from crmuons.storage import files
from crmuons.storage.changed import ChangedError
from crmuons.storage.files import File
from crmuons.storage.identity import check_local
from crmuons.storage.staging.cache_dir import CacheDir, CannotStageError, part_of, whole_of
from crmuons.storage.staging.checksums import OURS, Checksum
from crmuons.storage.staging.locks import FileLock

logger = logging.getLogger(__name__)

BLOCK_BYTES = 8 * 2**20  # One request of a download.
RECORD_BYTES = 4096
ATTEMPTS = 2  # Downloads of a file whose checksum is wrong.


@dataclass(frozen=True)
class StagingRecord:
    """The record of a staged file in its lock file. The field names are the keys in the file.

    Attributes:
        url, size: URL and size of the file.
        checksum: algorithm and value.
        stamp: the stamp from the listing; None if the server gives none, and in records of early versions.
        compared: time of the last comparison of the copy with the file, in seconds since 1970.
    """

    url: str
    size: int
    checksum: str
    stamp: str | None = None
    compared: float = 0.0

    @classmethod
    def of(cls, lock: FileLock) -> "StagingRecord":
        """Read the record of a locked file.

        Raises:
            ValueError: if there is no record, because the machine stopped before it was written.
        """
        record = json.loads(os.pread(lock.descriptor, 2**16, 0))
        return cls(**{name: record[name] for name in cls.__dataclass_fields__.keys() & record.keys()})

    def write(self, lock: FileLock) -> None:
        """Write the record over an earlier one."""
        # In one write of fixed length, because processes that share the lock may read and write it at the same time.
        os.pwrite(lock.descriptor, json.dumps(asdict(self)).encode().ljust(RECORD_BYTES), 0)


def download_file(cache: CacheDir, file: File, lock: FileLock) -> None:
    """Download a file to KEY.part, verify it, record it and rename it to KEY.

    Args:
        cache: the staging directory.
        file: the file.
        lock: its lock, held exclusively.

    Raises:
        CannotStageError, NoRoomError: if the directory cannot hold it.
        OSError: if the file cannot be read, or its checksum differs from the server's.
    """
    part = cache.reserve(file)
    # The server is asked before the download: without its checksum a partial download cannot be verified, so it is not
    # continued.
    stated = Checksum.from_server(file.url)
    for _ in range(ATTEMPTS):
        with _removed_if_unusable(part):
            _fetch(cache, file, part, anew=stated is None)
            with cache.faults():
                # Computed from the disk, not from the received data, so that a bad disk is found too.
                computed = Checksum.of_file(part, OURS if stated is None else stated.algorithm)
            if stated is None or computed == stated:
                # The checksum shows that the copy equals the server's file. This check shows that it is the recorded file.
                _check_content(file, part)
                with cache.faults():
                    _finish(file, computed, lock)
                return
            with cache.faults():
                # The download starts again, because it is unknown which bytes are wrong.
                part.write_bytes(b"")
    with cache.faults():
        part.unlink()
    msg = (
        f"{file.url}: the downloaded file has checksum {computed}, its server says {stated}: a cache holds it damaged, or it"
        " was overwritten; list it again under a new run, or take another copy"
    )
    raise OSError(msg)


def _check_content(file: File, part: Path) -> None:
    """Refuse and remove a download that is not the listed file."""
    try:
        check_local(file, part)
    except ChangedError:
        part.unlink()
        raise


def _fetch(cache: CacheDir, file: File, part: Path, *, anew: bool) -> None:
    """Download the missing rest of a file; with `anew`, because no checksum can verify the part on the disk, all of it."""
    with cache.faults():
        start = 0 if anew or part.stat().st_size > file.size else part.stat().st_size
        # A part that is longer than the file belongs to another version and is removed too.
        os.truncate(part, start)
    with files.open_file(file.url, file.size) as source:
        if start:
            source.seek(start)
        while start < file.size:
            block = source.read(min(BLOCK_BYTES, file.size - start))
            if not block:
                msg = f"{file.url} ended after {start} of {file.size} bytes; it has changed: list it again under a new run"
                raise ChangedError(msg)
            # Only around the writing, so that errors of the server are not reported as errors of the disk.
            with cache.faults(), part.open("ab") as target:
                target.write(block)
            start += len(block)


@contextmanager
def _removed_if_unusable(part: Path) -> Iterator[None]:
    """Remove a download that the disk cannot hold."""
    try:
        yield
    except CannotStageError:
        with suppress(OSError):  # The disk may be gone.
            part.unlink(missing_ok=True)
        raise


def is_as_recorded(path: Path, file: File, lock: FileLock) -> bool:
    """Return whether a staged file still has the URL and the checksum that its lock file records."""
    try:
        record = StagingRecord.of(lock)
    except ValueError:
        return False
    # The algorithm of the record: the server's algorithm if it gave a checksum, otherwise sha-256.
    algorithm, _, _ = record.checksum.partition(":")
    same = record.url == file.url and str(Checksum.of_file(path, algorithm)) == record.checksum
    if not same:
        logger.warning("%s has changed on the disk since it was staged; it is downloaded again", path)
    return same


def _finish(file: File, checksum: Checksum, lock: FileLock) -> None:
    """Record a download in its lock file, and rename it to the complete file's name."""
    StagingRecord(file.url, file.size, str(checksum), file.stamp, time.time()).write(lock)
    # Renamed after the record is written, so a file with the final name always has a record.
    part_of(lock).rename(whole_of(lock))
