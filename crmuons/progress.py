"""Progress of long work: a live line in a terminal, a plain line now and then anywhere else."""

import io
import sys
from typing import Any

from tqdm import tqdm

SECONDS_BETWEEN_PLAIN_LINES = 10.0


def progress(total: float | None, *, unit: str, what: str, initial: float = 0) -> "tqdm[Any]":
    """A progress display with rate and time left, on standard error.

    Args:
        total: the amount of work; None where it is not known.
        unit: what is counted, such as "events".
        what: the work, in a word or two.
        initial: the work already done before, of which the rate takes no account.
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
    """Standard error for a log file: what would redraw a line begins a new one."""

    def write(self, text: str) -> int:
        line = text.strip("\r\n ")
        if line:
            sys.stderr.write(f"{line}\n")
        return len(text)

    def flush(self) -> None:
        sys.stderr.flush()
