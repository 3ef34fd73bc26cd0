"""Expand names of data like a shell: braces, `{a,b}` and `{0000..0019}`, and `[^...]`."""

import re
from collections.abc import Iterable, Iterator
from itertools import islice

MAX_ALTERNATIVES = 100_000  # Largest number of names for which braces may stand; each costs a disk access or a request.


def expand_braces(pattern: str) -> list[str]:
    """Expand `{a,b}` and `{08..11}` in a pattern; numbers are padded with zeros to the width of the first.

    Raises:
        ValueError: if a range is empty, or the pattern stands for more than MAX_ALTERNATIVES names.
    """
    expanded = list(islice(_expand(pattern), MAX_ALTERNATIVES + 1))
    if len(expanded) > MAX_ALTERNATIVES:
        msg = f"'{pattern}': its braces stand for more than {MAX_ALTERNATIVES:,} names; use a glob such as *, or smaller ranges"
        raise ValueError(msg)
    return expanded


def python_glob(pattern: str) -> str:
    """Write `[^...]` of a shell as `[!...]`: fnmatch and fsspec would look for the character `^` itself."""
    return pattern.replace("[^", "[!")


def _expand(pattern: str) -> Iterator[str]:
    braces = re.search(r"\{([^{}]*,[^{}]*|\d+\.\.\d+)\}", pattern)
    if braces is None:
        yield pattern
        return
    inside = braces[1]
    words: Iterable[str] = inside.split(",")
    if "," not in inside:
        first, last = inside.split("..")
        if int(first) > int(last):
            msg = f"'{pattern}': the range {{{inside}}} is empty; write the smaller number first"
            raise ValueError(msg)
        words = (str(number).zfill(len(first)) for number in range(int(first), int(last) + 1))
    before, after = pattern[: braces.start()], pattern[braces.end() :]
    for word in words:
        yield from _expand(f"{before}{word}{after}")
