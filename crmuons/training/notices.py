"""Carry the warnings of workers to the driver's screen, because the logs of Ray's workers do not reach it.

Each worker appends its warnings to its own file in the run's directory, and the driver shows new lines. If the nodes do
not share the directory, ray_backend/mirror.py sends the files with other small files.
"""

import logging
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from crmuons.runs.directory import Run
from crmuons.storage.redact import MessageFormatter

logger = logging.getLogger(__name__)

MAX_SHOWN = 200  # Lines of one run: a fault that repeats for days must not bury the rest.


def name_of(rank: int) -> str:
    """Return the name of the file of a worker's warnings, in the run's directory."""
    return f"notices-{rank}.txt"


@contextmanager
def sent_to_driver(run: Run, rank: int, world: int) -> Iterator[None]:
    """Write the warnings that crmuons logs in this process to the worker's file, for the duration of the block."""
    handler = logging.FileHandler(run.directory / name_of(rank), encoding="utf-8", delay=True)
    handler.setLevel(logging.WARNING)
    who = f"worker {rank} of {world} on {platform.node()}".replace("%", "%%")
    handler.setFormatter(MessageFormatter(f"{who}, %(asctime)s: %(message)s", "%H:%M:%S"))
    handler.addFilter(_on_one_line)
    source = logging.getLogger("crmuons")
    source.addHandler(handler)
    try:
        yield
    finally:
        source.removeHandler(handler)
        handler.close()


def _on_one_line(record: logging.LogRecord) -> bool:
    record.msg, record.args = " ".join(record.getMessage().split()), None
    return True


class Notices:
    """Show the warnings that a run's workers have written, each line once. Files of earlier attempts are removed."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self._seen: dict[Path, int] = {}
        self._num_shown = 0
        for path in self._files():
            path.unlink(missing_ok=True)

    def update(self) -> None:
        """Show new lines."""
        for path in self._files():
            content = path.read_bytes()
            whole = content.rfind(b"\n") + 1
            # A worker that was started again on another node begins a new file.
            seen = self._seen.get(path, 0) if self._seen.get(path, 0) <= whole else 0
            self._seen[path] = whole
            for line in content[seen:whole].decode(errors="replace").splitlines():
                self._show(line, path)

    def _show(self, line: str, path: Path) -> None:
        self._num_shown += 1
        if self._num_shown <= MAX_SHOWN:
            logger.warning("%s", line)
        elif self._num_shown == MAX_SHOWN + 1:
            logger.warning("more warnings of workers are in %s", path)

    def _files(self) -> list[Path]:
        return sorted(self.run.directory.glob("notices-*.txt"))
