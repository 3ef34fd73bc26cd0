"""Remote files staged in a local directory while they are read: one download for all processes of a node."""

import logging
import os
import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, TYPE_CHECKING, Protocol

from crmuons.storage import files
from crmuons.storage.files import File, is_remote
from crmuons.storage.staging.cache_dir import CacheDir, CannotStageError, NoRoomError, whole_of
from crmuons.storage.staging.locks import FileLock
from crmuons.storage.staging.transfer import download, is_as_recorded

if TYPE_CHECKING:  # Every process that reads imports this module, and none of them makes settings.
    from crmuons import config

logger = logging.getLogger(__name__)

PAUSE_S = 60.0  # After a directory could not be used, before anything is downloaded to it again.
REPORT = "staging"  # Folder in a run's directory: how far each rank is, and a warning.
WARNING = "warning.txt"


class StagingListener(Protocol):
    """Who stages files ahead of their use, and wants to know what is read."""

    def begin(self) -> None:
        """Reading begins."""

    def used(self, file: File, *, whole: bool, staged: bool) -> bool:
        """Take note that a file was read, whole or in part, from the directory (staged) or where it lies.

        Returns:
            Whether the listener decides what becomes of the file now.
        """


@dataclass
class CachedFile:
    """A staged file, open, which stays until it is released.

    Attributes:
        file: open for reading.
        lock: shared.
    """

    file: IO[bytes]
    lock: FileLock

    def release(self) -> None:
        """Let the file be removed."""
        self.file.close()
        self.lock.release()


@dataclass(frozen=True)
class Staging:
    """A staging directory, and how it is used.

    Attributes:
        shelf: the directory.
        files_ahead: how many files are staged before they are read.
        delete_after_use: a file that is read whole is removed then.
        in_parts: files of which a part is read at a time are staged too: all of them fit in.
        began: seconds since 1970; what was last used before is checked before it is used again.
        report: folder for what the user should know; None to log it.
        name: of this rank, for its own words in that folder.
        helper: told what is read.
    """

    shelf: CacheDir
    files_ahead: int
    delete_after_use: bool = False
    in_parts: bool = False
    began: float = 0.0
    report: Path | None = None
    name: str = "rank-0"
    helper: StagingListener | None = None

    @classmethod
    def of(cls, settings: "config.Staging") -> "Staging | None":
        """As the settings say; None without a directory."""
        if settings.dir is None:
            return None
        shelf = CacheDir(Path(settings.dir).expanduser().absolute(), settings.max_bytes, settings.max_files)
        return cls(shelf, settings.files_ahead, settings.delete_after_use, began=time.time())

    def of_run(self, data: Sequence[File], in_parts: Collection[File], directory: Path, name: str) -> "Staging | None":
        """Return the staging of one rank of a run; None if there is nothing to stage.

        Args:
            data: the files that the run reads.
            in_parts: those of them that are read a part at a time.
            directory: of the run.
            name: of the rank.
        """
        if not any(is_remote(file.url) for file in data):
            return None
        # Parts of a file are read all over an epoch: removed between, it would be downloaded for every part.
        fit = len(in_parts) <= self.shelf.max_files and sum(file.size for file in in_parts) <= self.shelf.max_bytes
        return replace(self, in_parts=fit, report=directory / REPORT, name=name)

    def without_eviction(self) -> "Staging":
        """For a sample of what will be read again."""
        return replace(self, delete_after_use=False)

    def begin(self) -> None:
        """An item of the plan is read now."""
        if self.helper is not None:
            self.helper.begin()

    @contextmanager
    def open(self, file: File, *, whole: bool) -> Iterator[IO[bytes]]:
        """Open a file from the staging directory, downloading it first if need be, or else where it lies.

        Args:
            file: the file.
            whole: it is read whole. A file of which a part is read is not waited for until all of it is downloaded.
        """
        takes = self.should_stage(file, whole=whole)
        held = self.hold(file, download=whole) if takes else None
        try:
            with files.open_file(file.url, file.size) if held is None else held.file as opened:
                yield opened
        finally:
            if held is not None:
                held.release()
            followed = (
                takes and self.helper is not None and self.helper.used(file, whole=whole, staged=held is not None)
            )
            if takes and whole and not followed:
                self.evict(file)

    def should_stage(self, file: File, *, whole: bool) -> bool:
        """Whether a file is one to stage."""
        return is_remote(file.url) and (whole or self.in_parts)

    def hold(self, file: File, *, download: bool = True) -> CachedFile | None:
        """The staged file, downloaded if it is not there; while another process downloads it, that is waited for.

        Returns:
            None where it is not there and not to be downloaded, where there is no room, or where the directory cannot be
            used; the user learns of the last.

        Raises:
            OSError: if the file cannot be read where it lies, or what comes has another checksum than its server says.
        """
        paused = _paused_until.get(self.shelf.folder, 0.0) > time.monotonic()
        try:
            return self._hold(file, download=download and not paused)
        except NoRoomError as reason:
            logger.debug("%s", reason)
        except CannotStageError as reason:
            _paused_until[self.shelf.folder] = time.monotonic() + PAUSE_S
            self._tell(str(reason))
        return None

    def evict(self, file: File) -> None:
        """Remove a file after its use, if that is wanted and nobody holds it."""
        if self.delete_after_use:
            with suppress(CannotStageError):  # Said when the next file is staged.
                self.shelf.remove(file)

    def check(self) -> None:
        """See that the directory can be used, now that a user watches.

        Raises:
            OSError: if not, naming the directory and the remedy.
        """
        try:
            self.shelf.check()
        except CannotStageError as error:
            msg = f"data.staging.dir = {self.shelf.folder} cannot be used: {error.__cause__}; give a directory that can be written"
            raise OSError(msg) from error

    def _hold(self, file: File, *, download: bool) -> CachedFile | None:
        path = self.shelf.path(file)
        lock = FileLock(path.with_suffix(".lock"))
        while download or path.exists():
            if not self.shelf.lock(lock, shared=True):
                return None
            if (opened := self._open_whole(file, lock)) is not None:
                return CachedFile(opened, lock)
            lock.release()
            if download and not self._make_whole(file, lock):
                return None
        return None

    def _make_whole(self, file: File, lock: FileLock) -> bool:
        """Download a file; False if whoever is at it got stuck. The lock is free afterwards."""
        if not self.shelf.lock(lock, shared=False):
            return False
        try:
            if (opened := self._open_whole(file, lock)) is not None:  # Somebody else was faster.
                opened.close()
            else:
                download(self.shelf, file, lock)
        except BaseException:  # Ctrl-C too must not leave a file that others wait for.
            with suppress(OSError):  # What went wrong first is said.
                lock.remove()
            raise
        lock.release()  # flock does not turn one kind of lock into the other without a gap.
        return True

    def _open_whole(self, file: File, lock: FileLock) -> IO[bytes] | None:
        """The file if it is there whole; one last used before this run has its checksum looked at."""
        path = whole_of(lock)
        with self.shelf.faults():
            record = os.fstat(lock.descriptor)
            checked = record.st_size > 0 and record.st_mtime >= self.began
            if path.exists() and (checked or is_as_recorded(path, file, lock)):
                os.utime(lock.descriptor)
                return path.open("rb")
            path.unlink(missing_ok=True)
            return None

    def _tell(self, sentence: str) -> None:
        """Say it once a run: workers may be anywhere, and the process that the user watches reads the report."""
        if self.report is None:
            logger.warning("%s", sentence)
            return
        try:
            self.report.mkdir(exist_ok=True)
            with (self.report / WARNING).open("x") as file:
                file.write(sentence + "\n")
        except FileExistsError:
            logger.debug("%s", sentence)
        except OSError as error:
            logger.warning("%s; this cannot be written to %s either: %s", sentence, self.report, error)


_paused_until: dict[Path, float] = {}
