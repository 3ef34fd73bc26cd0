"""Show the progress of long work: a live line in a terminal, a plain line every 10 s elsewhere. Report long waits."""

import io
import logging
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TextIO

from tqdm import tqdm

logger = logging.getLogger(__name__)

SAY_AFTER_S = 5.0  # After this time, a message says what the program waits for, and until when.
SECONDS_BETWEEN_PLAIN_LINES = 10.0
MAX_PLAIN = 100_000  # Counts with a larger total are shown as 1.20M.

COUNT = "{n_fmt}/{total_fmt}{unit} [{elapsed}<{remaining}, {rate_fmt}{postfix}]"


def progress(total: float | None, *, unit: str, what: str, initial: float = 0) -> "tqdm[Any]":
    """Return a tqdm display with rate and remaining time, on standard error.

    Args:
        total: the amount of work; None if it is not known.
        unit: what is counted, such as "events".
        what: the work, in a word or two.
        initial: work that was done earlier; it does not count for the rate.
    """
    terminal = sys.stderr.isatty()
    stream = sys.stderr.stream if isinstance(sys.stderr, _AroundBars) else sys.stderr
    line = f"{{desc}}: {COUNT}"
    return tqdm(
        total=total,
        unit=f" {unit}",
        desc=what,
        initial=initial,
        unit_scale=total is None or total > MAX_PLAIN,
        dynamic_ncols=terminal,
        file=stream if terminal else _PlainLines(),
        mininterval=0.2 if terminal else SECONDS_BETWEEN_PLAIN_LINES,
        maxinterval=SECONDS_BETWEEN_PLAIN_LINES,
        # Without a total there is no bar to draw.
        bar_format=f"{{l_bar}}{{bar}}| {COUNT}" if terminal and total is not None else line,
    )


@contextmanager
def spoken_wait(what: Callable[[], str]) -> Iterator[None]:
    """If the block takes longer than SAY_AFTER_S, log what it waits for and until when; `what` then returns these words."""
    since = time.time()
    # A daemon thread: the process does not wait for it at its end.
    timer = threading.Timer(SAY_AFTER_S, lambda: logger.warning("waiting since %s for %s", clock_time(since), what()))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def clock_time(seconds: float) -> str:
    """Return a time of `time.time()` as the hours, minutes and seconds of a clock."""
    return time.strftime("%H:%M:%S", time.localtime(seconds))


def keep_bars_whole() -> None:
    """Let everything that is written to standard error of a terminal stand above the bars, never inside one.

    Libraries log to it with handlers of their own, so the stream itself is replaced.
    """
    if sys.stderr.isatty() and not isinstance(sys.stderr, _AroundBars):
        sys.stderr = _AroundBars(sys.stderr)


class _AroundBars(io.TextIOBase):
    """A terminal's standard error: takes the bars away for each whole line, and draws them again below it."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream
        self._begun = ""  # A line without its end: a bar drawn after it would be overwritten.

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return self.stream.encoding

    def write(self, text: str) -> int:
        whole, newline, self._begun = (self._begun + text).rpartition("\n")
        if newline:
            with tqdm.external_write_mode(file=self.stream):
                self.stream.write(whole + newline)
        return len(text)

    def flush(self) -> None:
        if self._begun and not getattr(tqdm, "_instances", ()):
            self.stream.write(self._begun)
            self._begun = ""
        self.stream.flush()

    def isatty(self) -> bool:
        return True

    def fileno(self) -> int:
        return self.stream.fileno()


class _PlainLines(io.TextIOBase):
    """Standard error for a log file: each redraw of the line becomes a new line."""

    def write(self, text: str) -> int:
        line = text.strip("\r\n ")
        if line:
            sys.stderr.write(f"{line}\n")
        return len(text)

    def flush(self) -> None:
        sys.stderr.flush()
