"""Show progress of long work: a live line in a terminal, a plain line every 10 s elsewhere."""

import io
import sys
from typing import Any

from tqdm import tqdm

SECONDS_BETWEEN_PLAIN_LINES = 10.0


def progress(total: float | None, *, unit: str, what: str, initial: float = 0) -> "tqdm[Any]":
    """Return a tqdm display with rate and remaining time, on standard error.

    Args:
        total: the amount of work; None if it is not known.
        unit: what is counted, such as "events".
        what: the work, in a word or two.
        initial: work that was done earlier; the rate leaves it out.
    """
    terminal = sys.stderr.isatty()
    return tqdm(
        total=total,
        unit=f" {unit}",
        desc=what,
        initial=initial,
        unit_scale=True,
        dynamic_ncols=terminal,
        file=sys.stderr if terminal else _PlainLines(),
        mininterval=0.2 if terminal else SECONDS_BETWEEN_PLAIN_LINES,
        maxinterval=SECONDS_BETWEEN_PLAIN_LINES,
        bar_format=None if terminal else "{desc}: {n_fmt}/{total_fmt} [{elapsed}<{remaining}, {rate_fmt}{postfix}]",
    )


class _PlainLines(io.TextIOBase):
    """Standard error for a log file: each redraw of the line becomes a new line."""

    def write(self, text: str) -> int:
        line = text.strip("\r\n ")
        if line:
            sys.stderr.write(f"{line}\n")
        return len(text)

    def flush(self) -> None:
        sys.stderr.flush()
