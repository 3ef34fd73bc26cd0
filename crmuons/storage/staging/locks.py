"""Locks between processes on files that may be removed. The kernel frees the lock of a process that dies in any way."""

import errno
import os
import time
from collections.abc import Callable
from fcntl import LOCK_EX, LOCK_NB, LOCK_SH, LOCK_UN, flock
from pathlib import Path

SECONDS_BETWEEN_TRIES = 0.05
# Errors of NFS without a lock daemon, of Lustre mounted without flock, and of FUSE file systems.
WITHOUT_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)


class NoLocksError(OSError):
    """Raised if the file system has no locks."""


class FileLock:
    """flock(2) on a file, which is created if missing. The holder of the exclusive lock may remove it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._descriptor: int | None = None

    @property
    def is_open(self) -> bool:
        """Whether this object holds the lock."""
        return self._descriptor is not None

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

        Raises:
            NoLocksError: if the file system has no locks.
        """
        while True:
            if self._descriptor is None:
                # Child processes do not inherit it: a child would keep the lock after the death of this process.
                self._descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
            try:
                # flock, because a POSIX lock is lost when any descriptor of the file is closed, anywhere in the process.
                # It never blocks, because `patient` must be able to end the wait.
                flock(self._descriptor, (LOCK_SH if shared else LOCK_EX) | LOCK_NB)
            except BlockingIOError:
                if not patient():
                    self.release()
                    return False
                time.sleep(SECONDS_BETWEEN_TRIES)
                continue
            except OSError as error:
                if error.errno not in WITHOUT_LOCKS:
                    raise
                self._close()
                msg = f"{self.path.parent} is on a file system without locks ({error.strerror}); name another directory"
                raise NoLocksError(msg) from error
            if self._is_the_file():
                return True
            self.release()  # The last holder removed the file, so this lock has no name and excludes nobody.

    def release(self) -> None:
        """Release the lock explicitly, because a forked child's copy of the descriptor would keep it."""
        if self._descriptor is not None:
            flock(self._descriptor, LOCK_UN)
            self._close()

    def remove(self) -> None:
        """Remove the exclusively locked file, and release the lock."""
        try:
            self.path.unlink(missing_ok=True)
        finally:
            self.release()

    def _close(self) -> None:
        descriptor, self._descriptor = self.descriptor, None
        os.close(descriptor)

    def _is_the_file(self) -> bool:
        try:
            return os.path.samestat(self.path.stat(), os.fstat(self.descriptor))
        except FileNotFoundError:
            return False
