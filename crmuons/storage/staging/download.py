"""Stage remote files in a local directory while they are read: one download for all processes of a node."""

import logging
import os
import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, TYPE_CHECKING, Protocol

from crmuons.storage.files import File, is_remote
from crmuons.storage.identity import Digests, check_copy, is_copy, is_copy_of_present, open_listed
from crmuons.storage.staging.cache_dir import CacheDir, CannotStageError, NoRoomError, whole_of
from crmuons.storage.staging.locks import FileLock
from crmuons.storage.staging.transfer import StagingRecord, download_file, is_as_recorded

if TYPE_CHECKING:  # Every reading process imports this module, but does not need the settings.
    from crmuons import config

logger = logging.getLogger(__name__)

# After a failure, no download to a directory for this time. Otherwise a full disk would be tried for each file, and would
# slow down the remote reads.
PAUSE_S = 60.0
REPORT = "staging"  # Folder in a run's directory for each rank's progress, and for a warning.
WARNING = "warning.txt"


class StagingListener(Protocol):
    """Receives read notifications, for a stager that downloads files ahead of their use."""

    def begin(self) -> None:
        """Note that reading begins."""

    def used(self, file: File, *, whole: bool, staged: bool) -> bool:
        """Note that a file was read, whole or in part, from the directory (`staged`) or remotely.

        Returns:
            Whether the listener decides when to remove the file.
        """


@dataclass
class CachedFile:
    """An open staged file, which is not removed until it is released.

    Attributes:
        file: the file, open for reading.
        lock: the shared lock on it.
    """

    file: IO[bytes]
    lock: FileLock

    def release(self) -> None:
        """Close the file, and allow its removal."""
        self.file.close()
        self.lock.release()


@dataclass(frozen=True)
class Staging:
    """A staging directory and the way it is used.

    Attributes:
        cache: the directory.
        files_ahead: number of files that are staged before they are read.
        delete_after_use: remove a file once it was read whole.
        in_parts: also stage the files that are read in parts, because all of them fit into the directory.
        began: start of the run in seconds since 1970. The checksum of a file that was last used earlier is verified before
            its next use.
        report: folder for progress and warnings to the user; None to log warnings.
        name: name of this rank, for its file in that folder.
        helper: receives read notifications.
    """

    cache: CacheDir
    files_ahead: int
    delete_after_use: bool = False
    in_parts: bool = False
    began: float = 0.0
    report: Path | None = None
    name: str = "rank-0"
    helper: StagingListener | None = None

    @classmethod
    def of(cls, settings: "config.Staging") -> "Staging | None":
        """Return the staging that the settings describe; None if they name no directory."""
        if settings.dir is None:
            return None
        cache = CacheDir(Path(settings.dir).expanduser().absolute(), settings.max_bytes, settings.max_files)
        return cls(cache, settings.files_ahead, settings.delete_after_use, began=time.time())

    def of_run(self, data: Sequence[File], in_parts: Collection[File], directory: Path, name: str) -> "Staging | None":
        """Return the staging of one rank of a run; None if there is nothing to stage.

        Args:
            data: the files that the run reads.
            in_parts: the files that are read in parts.
            directory: the run's directory.
            name: the rank's name.
        """
        if not any(is_remote(file.url) for file in data):
            return None
        # Parts of a file are read at many times of an epoch. If it were removed meanwhile, each part would need a download.
        fit = len(in_parts) <= self.cache.max_files and sum(file.size for file in in_parts) <= self.cache.max_bytes
        return replace(self, in_parts=fit, report=directory / REPORT, name=name)

    def without_eviction(self) -> "Staging":
        """Return this staging with files kept after use, for a sample of files that will be read again."""
        return replace(self, delete_after_use=False)

    def begin(self) -> None:
        """Notify the listener that reading begins."""
        if self.helper is not None:
            self.helper.begin()

    @contextmanager
    def open(self, file: File, *, whole: bool, digests: Digests | None = None) -> Iterator[IO[bytes]]:
        """Open a file in the staging directory, after a download if it is missing; open it remotely if this is not possible.

        Args:
            file: the file.
            whole: the file is read whole. If only a part is read, this does not start or wait for a download.
            digests: see identity.open_listed.
        """
        # A file that is read in parts is staged before by the stager, or not at all: no reader waits for it.
        takes = self.should_stage(file, whole=whole)
        held = self.hold(file, download=whole) if takes else None
        try:
            # Staging never makes a read fail: a file that cannot be staged is read remotely.
            with open_listed(file, digests) if held is None else held.file as opened:
                if held is not None:
                    check_copy(file, opened, digests)
                yield opened
        finally:
            if held is not None:
                held.release()
            followed = (
                takes and self.helper is not None and self.helper.used(file, whole=whole, staged=held is not None)
            )
            # Without a stager, or on another node than the stager's, the reader itself removes the file.
            if takes and whole and not followed:
                self.evict(file)

    def should_stage(self, file: File, *, whole: bool) -> bool:
        """Return whether to stage a file."""
        return is_remote(file.url) and (whole or self.in_parts)

    def hold(self, file: File, *, download: bool = True) -> CachedFile | None:
        """Open the staged file; download it if it is missing, or wait while another process downloads it.

        Returns:
            None if the file is missing and `download` is not set, if there is no room, or if the directory cannot be used.
            A directory that cannot be used is reported to the user.

        Raises:
            OSError: if the remote file cannot be read, or its checksum differs from the server's.
        """
        # In the pause, files that are staged already are still used.
        paused = _paused_until.get(self.cache.folder, 0.0) > time.monotonic()
        try:
            return self._hold(file, download=download and not paused)
        except NoRoomError as reason:
            logger.debug("%s", reason)
        except CannotStageError as reason:
            _paused_until[self.cache.folder] = time.monotonic() + PAUSE_S
            self._report_once(str(reason))
        return None

    def evict(self, file: File) -> None:
        """Remove a file after its use, if `delete_after_use` is set and no process holds it."""
        if self.delete_after_use:
            with suppress(CannotStageError):  # The next file to stage will report it.
                self.cache.remove(file)

    def check(self) -> None:
        """Check at the start, while a user watches, that the directory can be used.

        Raises:
            OSError: if it cannot be used, with the directory and the remedy.
        """
        try:
            self.cache.check()
        except CannotStageError as error:
            msg = f"data.staging.dir = {self.cache.folder} cannot be used: {error.__cause__}; give a directory that can be written"
            raise OSError(msg) from error

    def _hold(self, file: File, *, download: bool) -> CachedFile | None:
        path = self.cache.path(file)
        lock = FileLock(path.with_suffix(".lock"))
        # A loop, because another process may have evicted the file between the download and the lock.
        while download or path.exists():
            if not self.cache.lock(lock, shared=True):
                return None
            if (opened := self._open_whole(file, lock)) is not None:
                return CachedFile(opened, lock)
            lock.release()
            if download and not self._make_whole(file, lock):
                return None
        return None

    def _make_whole(self, file: File, lock: FileLock) -> bool:
        """Download a file; return False if another process is stuck downloading it. The lock is free afterwards."""
        if not self.cache.lock(lock, shared=False):
            return False
        try:
            if (opened := self._open_whole(file, lock)) is not None:  # Another process was faster.
                opened.close()
            else:
                download_file(self.cache, file, lock)
        except BaseException:  # Also Ctrl-C, because other processes would wait for the file.
            with suppress(OSError):  # The first error is raised.
                lock.remove()
            raise
        lock.release()  # flock cannot change an exclusive lock to a shared one without a gap.
        return True

    def _open_whole(self, file: File, lock: FileLock) -> IO[bytes] | None:
        """Open the file if it is complete. Verify its checksum first if it was last used before this run."""
        path = whole_of(lock)
        with self.cache.faults():
            record = os.fstat(lock.descriptor)
            # Checksums of files of earlier runs are verified once, because a disk may have changed the files.
            checked = record.st_size > 0 and record.st_mtime >= self.began
            whole = path.exists() and is_copy(path, file) and (checked or is_as_recorded(path, file, lock))
        # A copy of an earlier content of the URL must not be read in place of the listed file.
        current = whole and (file.digest is not None or self._is_current(path, file, lock))
        with self.cache.faults():
            if current:
                os.utime(lock.descriptor)
                return path.open("rb")
            path.unlink(missing_ok=True)
            return None

    def _is_current(self, path: Path, file: File, lock: FileLock) -> bool:
        """Return whether a staged copy is a copy of the listed file: by the server's stamp, or by the file's present end."""
        try:
            entry = StagingRecord.of(lock)
        except ValueError:
            return False
        if file.stamp is not None and entry.stamp == file.stamp:
            return True
        if entry.compared < self.began and not is_copy_of_present(path, file):
            return False
        with self.cache.faults():
            replace(entry, stamp=file.stamp, compared=time.time()).write(lock)
        return True

    def _report_once(self, sentence: str) -> None:
        """Report a sentence once in a run, in a file that the driver reads and shows."""
        if self.report is None:
            logger.warning("%s", sentence)
            return
        try:
            # The file is created exclusively, so only one of a hundred readers reports a full disk.
            self.report.mkdir(exist_ok=True)
            with (self.report / WARNING).open("x", encoding="utf-8") as file:
                file.write(sentence + "\n")
        except FileExistsError:
            logger.debug("%s", sentence)
        except OSError as error:
            logger.warning("%s; this cannot be written to %s either: %s", sentence, self.report, error)


_paused_until: dict[Path, float] = {}
