"""Stage files before they are used: the reader announces which files come next, and threads download them."""

import json
import logging
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Protocol

from crmuons.storage import records
from crmuons.storage.atomic import atomic_file
from crmuons.storage.files import File
from crmuons.storage.staging.download import CachedFile, Staging

logger = logging.getLogger(__name__)

DOWNLOADS_AT_ONCE = 4
# Segments that one rank may read at once (two executions of two). Files that no segment needs are released.
WINDOWS = 4
RETRY_S = 1.0  # Pause if there was no room.
SECONDS_BETWEEN_RECORDS = 1.0


class FileUse(NamedTuple):
    """One use of a file.

    Attributes:
        epoch: the epoch of the read plan.
        file: the file.
        whole: whether the file is read at once, not in parts.
    """

    epoch: int
    file: File
    whole: bool


class StagerClient(Protocol):
    """Receives read notifications: the stager of this process, or a proxy of an actor's stager."""

    def ahead(self, window: Sequence[FileUse]) -> None:
        """Announce the next uses, in order."""

    def used(self, use: FileUse, staged: bool) -> bool:
        """Note that a file was read, staged or remotely; return whether the stager decides when to remove it."""


class Stager:
    """Stages the files of the announced windows, and holds them until they are used.

    Args:
        staging: the directory. At most `files_ahead` files are held. The progress is written to NAME.json in the report
            folder.
    """

    def __init__(self, staging: Staging) -> None:
        self.staging = staging
        self._record = None if staging.report is None else staging.report / f"{staging.name}.json"
        self._changed = threading.Condition()
        # The oldest window is dropped automatically; the next announcement releases its files.
        self._windows: deque[Sequence[FileUse]] = deque(maxlen=WINDOWS)
        self._held: dict[FileUse, CachedFile] = {}
        self._active: set[FileUse] = set()
        self._past: set[FileUse] = set()  # Used, but still in a window.
        self._counted: set[FileUse] = set()
        self._done = self._written = (0, 0)  # Files and bytes staged so far.
        self._next_record = 0.0
        self._closed = False
        # Daemon threads, because a download must not keep a process alive after its run has ended.
        self._threads = [threading.Thread(target=self._work, daemon=True) for _ in range(DOWNLOADS_AT_ONCE)]
        for thread in self._threads:
            thread.start()

    def __enter__(self) -> "Stager":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self.close()

    def ahead(self, window: Sequence[FileUse]) -> None:
        """Stage the files of a window, and release files that are no longer in a recent window."""
        with self._changed:
            self._windows.append(window)
            wanted = set(chain.from_iterable(self._windows))
            for use in self._held.keys() - wanted:
                self._release(use)
            # Without this the two sets would grow with every epoch.
            self._past &= wanted
            self._counted &= wanted
            self._changed.notify_all()

    def used(self, use: FileUse, staged: bool) -> bool:
        """Release a file after it was read."""
        with self._changed:
            self._past.add(use)
            if staged:
                self._count(use)
            self._release(use)
            self._maybe_evict(use)
            self._changed.notify_all()
        return True

    def close(self) -> None:
        """Stop staging, and release all files. A running download ends with the process."""
        with self._changed:
            self._closed = True
            for use in list(self._held):
                self._held.pop(use).release()
            self._changed.notify_all()

    def _work(self) -> None:
        while (use := self._next()) is not None:
            # Without the lock, because a download takes minutes.
            held = self._hold(use.file)
            with self._changed:
                self._active.discard(use)
                if held is None:
                    # There is no room, or a failure: wait for files that are released.
                    self._changed.wait(RETRY_S)
                # Its window may have passed during the download.
                elif self._closed or use not in self._pending():
                    held.release()
                    self._maybe_evict(use)
                else:
                    self._held[use] = held
                    self._count(use)

    def _next(self) -> FileUse | None:
        """Wait for the next use to stage, and return it; None at the end."""
        with self._changed:
            while not self._closed:
                # Running downloads count too, because their files will be held.
                if len(self._held) + len(self._active) < self.staging.files_ahead:
                    begun = self._held.keys() | self._active
                    use = next((pending for pending in self._pending() if pending not in begun), None)
                    if use is not None:
                        self._active.add(use)
                        return use
                self._write_progress()
                self._changed.wait(SECONDS_BETWEEN_RECORDS)
        return None

    def _pending(self) -> Iterator[FileUse]:
        """Yield the uses of the recent windows that are still to come, in order."""
        return (use for use in chain.from_iterable(self._windows) if use not in self._past)

    def _hold(self, file: File) -> CachedFile | None:
        try:
            return self.staging.hold(file)
        except Exception as error:  # noqa: BLE001 - reading the file raises it again
            logger.debug("%s", error)
            return None

    def _release(self, use: FileUse) -> None:
        held = self._held.pop(use, None)
        if held is not None:
            held.release()

    def _maybe_evict(self, use: FileUse) -> None:
        """Remove a used file, if staging deletes after use, unless it will soon be used again."""
        # A file that is read in parts stays: its other parts come later in the epoch.
        if use in self._past and use.whole and not any(use.file == other.file for other in self._pending()):
            self.staging.evict(use.file)

    def _count(self, use: FileUse) -> None:
        if use not in self._counted:
            self._counted.add(use)
            self._done = self._done[0] + 1, self._done[1] + use.file.size
            self._write_progress()

    def _write_progress(self) -> None:
        """Write the progress from time to time. A failure to write it is ignored."""
        if self._record is None or self._written == self._done or time.monotonic() < self._next_record:
            return
        self._written, self._next_record = self._done, time.monotonic() + SECONDS_BETWEEN_RECORDS
        try:
            self._record.parent.mkdir(exist_ok=True)
            with atomic_file(self._record) as partial:
                partial.write_text(json.dumps(self._done), encoding="utf-8")
        except OSError as error:
            logger.debug("%s: %s", self._record, error)


def read_progress(report: Path) -> tuple[int, int]:
    """Return the numbers of files and bytes that all workers of a run staged."""
    done = [records.read(path, kind=list) for path in report.glob("*.json")]
    return sum(files for files, _ in done), sum(size for _, size in done)


def staging_metrics(report: Path) -> dict[str, float]:
    """Return the progress of staging as metrics; none if nothing is staged."""
    num_files, num_bytes = read_progress(report)
    return {"staging/files": num_files, "staging/gigabytes": num_bytes / 1e9} if num_files else {}
