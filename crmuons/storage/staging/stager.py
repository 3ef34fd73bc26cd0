"""Staging ahead of use: who reads says which files come next, and threads bring them to the staging directory before."""

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

from crmuons.storage.atomic import atomic_file
from crmuons.storage.files import File
from crmuons.storage.staging.download import CachedFile, Staging

logger = logging.getLogger(__name__)

DOWNLOADS_AT_ONCE = 4
WINDOWS = 4  # Items that one rank may read at once, two executions of two: what none of them needs is let go.
RETRY_S = 1.0  # After there was no room.
SECONDS_BETWEEN_RECORDS = 1.0


class FileUse(NamedTuple):
    """A file in an epoch.

    Attributes:
        epoch: of the plan.
        file: the file.
        whole: it is read at once, not a part now and another later.
    """

    epoch: int
    file: File
    whole: bool


class StagerClient(Protocol):
    """Whom a reader tells what it reads: a Stager in this process, or the door to one in another."""

    def ahead(self, window: Sequence[FileUse]) -> None:
        """The uses that come now, in their order."""

    def used(self, use: FileUse, staged: bool) -> bool:
        """A file was read, in the directory or where it lies; whether the stager sees to what becomes of it now."""


class Stager:
    """Stages the files of the windows it is told of, and holds them until they are used.

    Args:
        staging: the directory. At most `files_ahead` files are held; how far it is, is said in NAME.json in the report's folder.
    """

    def __init__(self, staging: Staging) -> None:
        self.staging = staging
        self._record = None if staging.report is None else staging.report / f"{staging.name}.json"
        self._changed = threading.Condition()
        self._windows: deque[Sequence[FileUse]] = deque(maxlen=WINDOWS)
        self._held: dict[FileUse, CachedFile] = {}
        self._active: set[FileUse] = set()
        self._past: set[FileUse] = set()  # Used, and still in a window.
        self._counted: set[FileUse] = set()
        self._done = self._said = (0, 0)  # Files and bytes that are staged, or were.
        self._next_record = 0.0
        self._closed = False
        self._threads = [threading.Thread(target=self._work, daemon=True) for _ in range(DOWNLOADS_AT_ONCE)]
        for thread in self._threads:
            thread.start()

    def __enter__(self) -> "Stager":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self.close()

    def ahead(self, window: Sequence[FileUse]) -> None:
        """Stage what comes next; what is in no recent window any more is let go."""
        with self._changed:
            self._windows.append(window)
            wanted = set(chain.from_iterable(self._windows))
            for use in self._held.keys() - wanted:
                self._release(use)
            self._past &= wanted
            self._counted &= wanted
            self._changed.notify_all()

    def used(self, use: FileUse, staged: bool) -> bool:
        """Let a file go once it was read."""
        with self._changed:
            self._past.add(use)
            if staged:
                self._count(use)
            self._release(use)
            self._maybe_evict(use)
            self._changed.notify_all()
        return True

    def close(self) -> None:
        """Stage no more, and let everything go; a download that is under way ends with the process."""
        with self._changed:
            self._closed = True
            for use in list(self._held):
                self._held.pop(use).release()
            self._changed.notify_all()

    def _work(self) -> None:
        while (use := self._next()) is not None:
            held = self._hold(use.file)
            with self._changed:
                self._active.discard(use)
                if held is None:
                    self._changed.wait(RETRY_S)
                elif self._closed or use not in self._pending():
                    held.release()
                    self._maybe_evict(use)
                else:
                    self._held[use] = held
                    self._count(use)

    def _next(self) -> FileUse | None:
        """The next use to stage, waited for; None at the end."""
        with self._changed:
            while not self._closed:
                if len(self._held) + len(self._active) < self.staging.files_ahead:
                    begun = self._held.keys() | self._active
                    use = next((each for each in self._pending() if each not in begun), None)
                    if use is not None:
                        self._active.add(use)
                        return use
                self._say_how_far()
                self._changed.wait(SECONDS_BETWEEN_RECORDS)
        return None

    def _pending(self) -> Iterator[FileUse]:
        """What the recent windows hold and was not used yet, in order."""
        return (use for use in chain.from_iterable(self._windows) if use not in self._past)

    def _hold(self, file: File) -> CachedFile | None:
        try:
            return self.staging.hold(file)
        except Exception as error:  # noqa: BLE001  whoever reads the file meets it again, and raises it
            logger.debug("%s", error)
            return None

    def _release(self, use: FileUse) -> None:
        held = self._held.pop(use, None)
        if held is not None:
            held.release()

    def _maybe_evict(self, use: FileUse) -> None:
        """Remove a file that was used, if that is wanted, unless it is about to be used again."""
        if use in self._past and use.whole and not any(use.file == other.file for other in self._pending()):
            self.staging.evict(use.file)

    def _count(self, use: FileUse) -> None:
        if use not in self._counted:
            self._counted.add(use)
            self._done = self._done[0] + 1, self._done[1] + use.file.size
            self._say_how_far()

    def _say_how_far(self) -> None:
        """Write down how far staging is, now and then; what the run's disk does not take is left out."""
        if self._record is None or self._said == self._done or time.monotonic() < self._next_record:
            return
        self._said, self._next_record = self._done, time.monotonic() + SECONDS_BETWEEN_RECORDS
        try:
            self._record.parent.mkdir(exist_ok=True)
            with atomic_file(self._record) as partial:
                partial.write_text(json.dumps(self._done))
        except OSError as error:
            logger.debug("%s: %s", self._record, error)


def read_progress(report: Path) -> tuple[int, int]:
    """Files and bytes that all of a run's workers staged."""
    done = [json.loads(path.read_text()) for path in report.glob("*.json")]
    return sum(files for files, _ in done), sum(size for _, size in done)


def metrics(report: Path) -> dict[str, float]:
    """How far staging is, as metrics; nothing where nothing is staged."""
    num_files, num_bytes = read_progress(report)
    return {"staging/files": num_files, "staging/gigabytes": num_bytes / 1e9} if num_files else {}
