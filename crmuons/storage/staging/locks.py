"""Locks between processes on files that may be removed. The kernel frees the lock of a process that dies in any way."""

import fcntl
import os
import time
from collections.abc import Callable
from pathlib import Path

SECONDS_BETWEEN_TRIES = 0.05


class FileLock:
    """flock(2) on a file, which is created if missing. The holder of the exclusive lock may remove it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._descriptor: int | None = None

    @property
    def descriptor(self) -> int:
        """The file descriptor of the locked file, to read and write."""
        assert self._descriptor is not None
        return self._descriptor

    def acquire(self, *, shared: bool, patient: Callable[[], bool] = lambda: True) -> bool:
        """Lock the file.

        Args:
            shared: take a shared lock rather than an exclusive one.
            patient: called before each wait; returns whether to continue waiting.

        Returns:
            False if another process holds the lock and `patient` ended the wait.
        """
        while True:
            if self._descriptor is None:
                self._descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
            try:
                fcntl.flock(self._descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
            except BlockingIOError:
                if not patient():
                    self.release()
                    return False
                time.sleep(SECONDS_BETWEEN_TRIES)
                continue
            if self._is_the_file():
                return True
            self.release()  # Its last holder removed the file, so this lock is on no name and excludes nobody.

    def release(self) -> None:
        """Release the lock, explicitly: a forked child's copy of the descriptor would keep it locked."""
        if self._descriptor is not None:
            descriptor, self._descriptor = self._descriptor, None
            fcntl.flock(descriptor, fcntl.LOCK_UN)
            os.close(descriptor)

    def remove(self) -> None:
        """Remove the exclusively locked file, and release the lock."""
        try:
            self.path.unlink(missing_ok=True)
        finally:
            self.release()

    def _is_the_file(self) -> bool:
        try:
            return os.path.samestat(self.path.stat(), os.fstat(self.descriptor))
        except FileNotFoundError:
            return False
