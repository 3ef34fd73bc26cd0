"""The staging directory: its bounds, its locks, and what is removed to make room.

Beside a whole file KEY lies KEY.lock, which says where it comes from and what its checksum is, and is locked (flock): shared by
those who read the file or are about to, exclusively by the one who downloads KEY.part or removes the file. What a killed
process leaves is unlocked, and never bears a whole file's name.
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

from crmuons.storage.files import File
from crmuons.storage.staging.locks import FileLock

SPARE_SHARE = 0.02  # Of the disk, which checkpoints may share: left free.
STALLED_S = 60.0  # A process that has something locked and gets nothing done is waited for no longer.


class NoRoomError(Exception):
    """The bounds leave no room for a file now."""


class CannotStageError(Exception):
    """The directory cannot be used; the message says why."""


@dataclass(frozen=True)
class CacheDir:
    """A directory with bounds on what is in it.

    Attributes:
        folder: the directory.
        max_bytes, max_files: the bounds.
    """

    folder: Path
    max_bytes: int
    max_files: int

    def check(self) -> None:
        """See that the directory can be used, making it if need be.

        Raises:
            CannotStageError: if not.
        """
        with self.faults():
            self.folder.mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=self.folder).close()
            self._lock_room().release()

    def path(self, file: File) -> Path:
        """Where a file is staged."""
        return self.folder / _key(file)

    def lock(self, lock: FileLock, *, shared: bool) -> bool:
        """Lock a file; False if whoever has it locked gets nothing done."""
        with self.faults():
            self.folder.mkdir(parents=True, exist_ok=True)
            return lock.acquire(shared=shared, patient=_while_it_grows(part_of(lock)))

    def reserve(self, file: File) -> Path:
        """Make room for a file, by removing those least recently used that nobody holds, and take it.

        Args:
            file: to be downloaded; its lock is held exclusively.

        Returns:
            Where to download it to; what a killed process left of it is there.

        Raises:
            NoRoomError: if what is held leaves too little of the bounds.
            CannotStageError: if the disk does.
        """
        part = self.path(file).with_suffix(".part")
        with self.faults():
            room = self._lock_room()
            try:
                self._make_room(file, part.stem)
                part.touch()  # Counted from now on.
            finally:
                room.release()
        return part

    def remove(self, file: File) -> None:
        """Remove a file unless somebody holds it."""
        with self.faults():
            self._evict(_key(file))

    @contextmanager
    def faults(self) -> Iterator[None]:
        """What goes wrong in here is the directory's fault, and no reason to end a run."""
        try:
            yield
        except OSError as error:
            msg = (
                f"data.staging.dir = {self.folder} cannot be used now ({error.strerror or error}): files that it does not hold "
                "are read where they lie; free space there, or lower data.staging.max_bytes"
            )
            raise CannotStageError(msg) from error

    def _make_room(self, file: File, key: str) -> None:
        there = _keys(self.folder) - {key}
        disk = shutil.disk_usage(self.folder)
        left = _Left(
            num_bytes=self.max_bytes - file.size - sum(map(_size, there)),
            files=self.max_files - 1 - len(there),
            disk=disk.free - file.size - SPARE_SHARE * disk.total,
        )
        if left.enough():
            return
        if file.size <= self.max_bytes:
            for each in sorted(there, key=self._last_used):
                if self._evict(each):
                    left.gain(_size(each))
                if left.enough():
                    return
        if left.disk < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        msg = f"no room for {file.url} ({file.size} bytes) beside what is in use"
        raise NoRoomError(msg)

    def _evict(self, key: str) -> bool:
        """Remove a file, whole or in part, unless somebody holds it."""
        lock = FileLock(self.folder / f"{key}.lock")
        if not lock.acquire(shared=False, patient=lambda: False):
            return False
        for path in (self.folder / key, self.folder / f"{key}.part"):
            path.unlink(missing_ok=True)
        lock.remove()
        return True

    def _last_used(self, key: str) -> float:
        try:
            return (self.folder / f"{key}.lock").stat().st_mtime
        except FileNotFoundError:
            return 0.0

    def _lock_room(self) -> FileLock:
        """The lock of the directory's bounds, taken for the moment in which room is made."""
        lock = FileLock(self.folder / "room.lock")
        deadline = time.monotonic() + STALLED_S
        if not lock.acquire(shared=False, patient=lambda: time.monotonic() < deadline):
            msg = f"another process has kept {lock.path} locked for {STALLED_S:.0f} s"
            raise NoRoomError(msg)
        return lock


@dataclass
class _Left:
    """What the bounds leave, negative where it is too little."""

    num_bytes: int
    files: int
    disk: float

    def enough(self) -> bool:
        return min(self.num_bytes, self.files, self.disk) >= 0

    def gain(self, size: int) -> None:
        self.num_bytes, self.files, self.disk = self.num_bytes + size, self.files + 1, self.disk + size


def part_of(lock: FileLock) -> Path:
    """Where the file of a lock is downloaded to."""
    return lock.path.with_suffix(".part")


def whole_of(lock: FileLock) -> Path:
    """Where the file of a lock is once it is whole."""
    return lock.path.with_suffix("")


def _key(file: File) -> str:
    """The name under which a file is staged; it says the file's size, so that counting takes no look at the file."""
    name = file.url.rpartition("/")[2][-100:].replace(".", "_")
    return f"{hashlib.sha256(file.url.encode()).hexdigest()[:20]}-{file.size}-{name}"


def _size(key: str) -> int:
    return int(key.split("-")[1])


def _keys(folder: Path) -> set[str]:
    """The keys of what is in a directory, whole or in part."""
    names = os.listdir(folder)  # noqa: PTH208  names are all that is wanted, of 10^4
    return {name.removesuffix(".part") for name in names if _is_key(name.removesuffix(".part"))}


def _is_key(name: str) -> bool:
    words = name.split("-", 2)
    return len(words) == 3 and len(words[0]) == 20 and words[1].isdigit() and "." not in name


def _while_it_grows(part: Path) -> Callable[[], bool]:
    """Patience with a process that has something locked, for as long as its download grows."""
    seen, since = -1, time.monotonic()

    def patient() -> bool:
        nonlocal seen, since
        size = part.stat().st_size if part.exists() else -1
        if size != seen:
            seen, since = size, time.monotonic()
        return time.monotonic() - since < STALLED_S

    return patient
