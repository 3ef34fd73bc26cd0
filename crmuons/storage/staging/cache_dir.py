"""The staging directory: its limits, its locks, and the removal of the least recently used files.

KEY is a complete staged file. KEY.lock next to it records its URL, size and checksum, and is locked (flock): shared by
processes that read the file or will read it soon, exclusively by the process that downloads KEY.part or removes the file.
The files of a killed process are unlocked, and an incomplete file is never named KEY.
"""

import errno
import hashlib
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from crmuons.storage.atomic import size_text
from crmuons.storage.files import File
from crmuons.storage.staging.locks import FileLock

SPARE_SHARE = 0.02  # Share of the disk that is left free, because checkpoints may be on the same disk.
STALLED_S = 60.0  # Stop waiting for a process that holds a lock and has made no progress for this time.


class NoRoomError(Exception):
    """Raised if the limits leave no room for a file now."""


class CannotStageError(Exception):
    """Raised if the directory cannot be used; the message gives the reason."""


@dataclass(frozen=True)
class CacheDir:
    """A directory of staged files with limits on its content.

    Attributes:
        folder: the directory.
        max_bytes, max_files: the limits.
    """

    folder: Path
    max_bytes: int
    max_files: int

    def check(self) -> None:
        """Check that the directory can be used; create it if it is missing.

        Raises:
            CannotStageError: if it cannot be used.
        """
        with self.faults():
            self.folder.mkdir(parents=True, exist_ok=True)
            # Modes are not enough: only making a file shows a read-only mount or a full quota.
            tempfile.TemporaryFile(dir=self.folder).close()
            self._lock_room().release()

    def path(self, file: File) -> Path:
        """Return the local path of a staged file."""
        return self.folder / _key(file)

    def lock(self, lock: FileLock, *, shared: bool) -> bool:
        """Lock a file; return False if the process that holds its lock makes no progress."""
        with self.faults():
            self.folder.mkdir(parents=True, exist_ok=True)
            return lock.acquire(shared=shared, patient=_while_it_grows(part_of(lock)))

    def reserve(self, file: File) -> Path:
        """Reserve room for a file, by removing the least recently used files that no process holds.

        Args:
            file: the file to download; the caller holds its lock exclusively.

        Returns:
            The path to download to. It may hold a part that a killed process downloaded.

        Raises:
            NoRoomError: if the files in use leave too little room within the limits.
            CannotStageError: if the disk is full or cannot be written.
        """
        part = self.path(file).with_suffix(".part")
        with self.faults():
            # Without the lock, two processes could see the same room and use it twice.
            room = self._lock_room()
            try:
                self._make_room(file, part.stem)
                part.touch()  # From now on it counts towards the limits.
            finally:
                room.release()
        return part

    def remove(self, file: File) -> None:
        """Remove a file unless a process holds it."""
        with self.faults():
            self._evict(_key(file))

    @contextmanager
    def faults(self) -> Iterator[None]:
        """Turn an OSError in the block into a CannotStageError, which does not end a run."""
        try:
            yield
        except OSError as error:
            msg = (
                f"data.staging.dir = {self.folder} cannot be used now ({error.strerror or error}){self._room()}: files that "
                "are not staged yet are read remotely; free space there, or lower data.staging.max_bytes"
            )
            raise CannotStageError(msg) from error

    def _room(self) -> str:
        try:
            disk = shutil.disk_usage(self.folder)
        except OSError:  # The folder itself cannot be used.
            return ""
        return f", {size_text(disk.free)} of {size_text(disk.total)} are free there"

    def _make_room(self, file: File, key: str) -> None:
        staged = _keys(self.folder) - {key}
        # The disk counts too, not only the limits, because others write to it.
        disk = shutil.disk_usage(self.folder)
        left = _Left(
            num_bytes=self.max_bytes - file.size - sum(map(_size, staged)),
            files=self.max_files - 1 - len(staged),
            disk=disk.free - file.size - SPARE_SHARE * disk.total,
        )
        if left.enough():
            return
        # Nothing is removed for a file above the limit: it would not fit even into an empty directory.
        if file.size <= self.max_bytes:
            # The least recently used first.
            for candidate in sorted(staged, key=self._last_used):
                if self._evict(candidate):
                    left.gain(_size(candidate))
                if left.enough():
                    return
        # Others fill the disk, and waiting for our own files does not help.
        if left.disk < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        msg = f"no room for {file.url} ({file.size} bytes) in addition to the files in use"
        raise NoRoomError(msg)

    def _evict(self, key: str) -> bool:
        """Remove a complete or partial file unless a process holds it; return whether it was removed."""
        lock = FileLock(self.folder / f"{key}.lock")
        # Without waiting: the process that holds the file reads it, and there are other candidates.
        if not lock.acquire(shared=False, patient=lambda: False):
            return False
        for path in (self.folder / key, self.folder / f"{key}.part"):
            # A reader that has the file open keeps its content; later readers do not find the name.
            path.unlink(missing_ok=True)
        lock.remove()
        return True

    def _last_used(self, key: str) -> float:
        try:
            # A use sets this time (download.py), so no other record of uses is needed.
            return (self.folder / f"{key}.lock").stat().st_mtime
        except FileNotFoundError:
            return 0.0

    def _lock_room(self) -> FileLock:
        """Take the lock of the directory's limits, which is held while room is made."""
        lock = FileLock(self.folder / "room.lock")
        deadline = time.monotonic() + STALLED_S
        if not lock.acquire(shared=False, patient=lambda: time.monotonic() < deadline):
            msg = f"another process has kept {lock.path} locked for {STALLED_S:.0f} s"
            raise NoRoomError(msg)
        return lock


@dataclass
class _Left:
    """The room left within the limits; a negative number is missing room."""

    num_bytes: int
    files: int
    disk: float

    def enough(self) -> bool:
        return min(self.num_bytes, self.files, self.disk) >= 0

    def gain(self, size: int) -> None:
        self.num_bytes, self.files, self.disk = self.num_bytes + size, self.files + 1, self.disk + size


def part_of(lock: FileLock) -> Path:
    """Return the path to which a lock's file is downloaded."""
    return lock.path.with_suffix(".part")


def whole_of(lock: FileLock) -> Path:
    """Return the path of a lock's file once it is complete."""
    return lock.path.with_suffix("")


def _key(file: File) -> str:
    """Return the name under which a file is staged. It contains the size, so that counting needs no stat call."""
    # The name is for people. It is cut, because Linux allows 255 bytes, and has no dots, because our suffixes begin with one.
    name = file.url.rpartition("/")[2][-100:].replace(".", "_")
    return f"{hashlib.sha256(os.fsencode(file.url)).hexdigest()[:20]}-{file.size}-{name}"


def _size(key: str) -> int:
    return int(key.split("-")[1])


def _keys(folder: Path) -> set[str]:
    """Return the keys of the complete and partial files in a directory."""
    names = os.listdir(folder)  # noqa: PTH208  only the names of some 10^4 files
    return {name.removesuffix(".part") for name in names if _is_key(name.removesuffix(".part"))}


def _is_key(name: str) -> bool:
    words = name.split("-", 2)
    return len(words) == 3 and len(words[0]) == 20 and words[1].isdigit() and "." not in name


def _while_it_grows(part: Path) -> Callable[[], bool]:
    """Return a function that says whether to wait for the process that holds a lock: yes, as long as its download grows."""
    # Progress decides, not the age: a large file over a slow line may take hours.
    seen, since = -1, time.monotonic()

    def patient() -> bool:
        nonlocal seen, since
        try:
            size = part.stat().st_size
        except FileNotFoundError:  # The download has not begun, or is complete and renamed.
            size = -1
        if size != seen:
            seen, since = size, time.monotonic()
        return time.monotonic() - since < STALLED_S

    return patient
