"""Which files paths, directories, globs and URLs name."""

import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from crmuons.storage.filesystems import filesystem, with_scheme

logger = logging.getLogger(__name__)

PARQUET_SUFFIXES = (".parquet", ".pq")


@dataclass(frozen=True, order=True)
class File:
    """A readable file: its path or URL, and its size in bytes."""

    url: str
    size: int


def list_files(patterns: str | Sequence[str], *, suffixes: tuple[str, ...] = PARQUET_SUFFIXES) -> list[File]:
    """Return the files that paths, directories, globs and URLs name, sorted and without duplicates.

    A directory gives the files below it that end in one of the suffixes, without hidden ones. A path or a glob gives
    what it matches. `{a,b}` and `{0000..0019}` expand to each alternative; one that matches nothing logs a warning.

    Raises:
        FileNotFoundError: if a pattern matches nothing.
    """
    files: set[File] = set()
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        files.update(_all_matches(pattern, suffixes))
    return sorted(files)


def expand_braces(pattern: str) -> list[str]:
    """Expand `{a,b}` and `{08..11}` in a pattern; numbers are padded with zeros to the width of the first.

    Raises:
        ValueError: if a range is empty.
    """
    braces = re.search(r"\{([^{}]*,[^{}]*|\d+\.\.\d+)\}", pattern)
    if braces is None:
        return [pattern]
    inside = braces[1]
    if "," in inside:
        words = inside.split(",")
    else:
        first, last = inside.split("..")
        words = [str(number).zfill(len(first)) for number in range(int(first), int(last) + 1)]
        if not words:
            msg = f"'{pattern}': the range {{{inside}}} is empty; write the smaller number first"
            raise ValueError(msg)
    before, after = pattern[: braces.start()], pattern[braces.end() :]
    return [expanded for word in words for expanded in expand_braces(f"{before}{word}{after}")]


def _all_matches(pattern: str, suffixes: tuple[str, ...]) -> list[File]:
    alternatives = expand_braces(pattern)
    matches = {alternative: _matches(alternative, suffixes) for alternative in alternatives}
    for alternative, (files, hint) in matches.items():
        if not files and len(alternatives) > 1:
            logger.warning("%s: %s", alternative, hint)
    files = [file for matching, _ in matches.values() for file in matching]
    if not files:
        hint = matches[alternatives[0]][1]
        msg = (
            f"nothing to read at '{pattern}': {hint}; check the path (a relative one starts from the working directory)"
        )
        raise FileNotFoundError(msg)
    return files


def _matches(pattern: str, suffixes: tuple[str, ...]) -> tuple[list[File], str]:
    """Return the files that a pattern without braces matches, and a hint in case there are none."""
    fs, path = filesystem(pattern)
    entries: list[dict[str, Any]] = []
    if any(character in path for character in "*?["):
        entries = [entry for entry in fs.glob(path, detail=True).values() if entry["type"] == "file"]
        hint = "the glob matches no file"
    elif fs.isdir(path):
        entries = [entry for entry in fs.find(path, detail=True).values() if _is_data(entry["name"], path, suffixes)]
        hint = f"the directory holds no file ending in {' or '.join(suffixes)}"
    elif fs.exists(path):
        entries, hint = [fs.info(path)], ""
    else:
        hint = "no such file or directory"
    return [File(with_scheme(fs, entry["name"]), int(entry["size"])) for entry in entries], hint


def _is_data(name: str, root: str, suffixes: tuple[str, ...]) -> bool:
    """Return whether a file below a directory is data. Hidden files and folders are temporary."""
    below = PurePosixPath(name).relative_to(root)
    return name.endswith(suffixes) and not any(part.startswith((".", "_")) for part in below.parts)
