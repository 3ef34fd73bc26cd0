"""Locks between processes on files that may be removed. The kernel frees a lock whose holder dies, however it dies."""

import fcntl
import os
import time
from collections.abc import Callable
from pathlib import Path

SECONDS_BETWEEN_TRIES = 0.05


class FileLock:
    """flock(2) on a file that is made where there is none; whoever holds it exclusively may remove it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._descriptor: int | None = None

    @property
    def descriptor(self) -> int:
        """Of the locked file, to read and write."""
        assert self._descriptor is not None
        return self._descriptor

    def acquire(self, *, shared: bool, patient: Callable[[], bool] = lambda: True) -> bool:
        """Lock the file.

        Args:
            shared: with others that do the same, rather than alone.
            patient: asked before each wait whether to go on waiting.

        Returns:
            False if the lock is somebody else's and patience ended.
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
            self.release()  # Its last holder removed it: a lock on it keeps nobody away.

    def release(self) -> None:
        """Let others have it. Unlocked explicitly: a forked child would keep it locked with its copy."""
        if self._descriptor is not None:
            descriptor, self._descriptor = self._descriptor, None
            fcntl.flock(descriptor, fcntl.LOCK_UN)
            os.close(descriptor)

    def remove(self) -> None:
        """Remove the file, which is locked exclusively, and release it."""
        try:
            self.path.unlink(missing_ok=True)
        finally:
            self.release()

    def _is_the_file(self) -> bool:
        try:
            return os.path.samestat(self.path.stat(), os.fstat(self.descriptor))
        except FileNotFoundError:
            return False
