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
    """A file that can be read: its path or URL, and its size in bytes."""

    url: str
    size: int


def list_files(patterns: str | Sequence[str], *, suffixes: tuple[str, ...] = PARQUET_SUFFIXES) -> list[File]:
    """Every file that a path, a directory, a glob or a URL names, sorted and without repeats.

    A directory gives the files below it with one of the suffixes; a path or a glob gives what it matches. `{a,b}` and
    `{0000..0019}` stand for each of the alternatives; one that matches nothing is passed over with a warning.

    Raises:
        FileNotFoundError: if a pattern matches nothing, with the pattern and what to check.
    """
    files: set[File] = set()
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        files.update(_all_matches(pattern, suffixes))
    return sorted(files)


def expand_braces(pattern: str) -> list[str]:
    """Every word that `{a,b}` and `{08..11}` (padded with zeros as its ends are) in a pattern stand for."""
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
            msg = f"'{pattern}': the range {{{inside}}} is empty; the smaller number comes first"
            raise ValueError(msg)
    before, after = pattern[: braces.start()], pattern[braces.end() :]
    return [expanded for word in words for expanded in expand_braces(f"{before}{word}{after}")]


def _all_matches(pattern: str, suffixes: tuple[str, ...]) -> list[File]:
    alternatives = expand_braces(pattern)
    found = {each: _matches(each, suffixes) for each in alternatives}
    for each, (files, hint) in found.items():
        if not files and len(alternatives) > 1:
            logger.warning("%s: %s", each, hint)
    files = [file for matches, _ in found.values() for file in matches]
    if not files:
        hint = found[alternatives[0]][1]
        msg = (
            f"nothing to read at '{pattern}': {hint}; check the path (a relative one starts from the working directory)"
        )
        raise FileNotFoundError(msg)
    return files


def _matches(pattern: str, suffixes: tuple[str, ...]) -> tuple[list[File], str]:
    """The files of a pattern without braces, and why there might be none."""
    fs, path = filesystem(pattern)
    found: list[dict[str, Any]] = []
    if any(character in path for character in "*?["):
        found = [entry for entry in fs.glob(path, detail=True).values() if entry["type"] == "file"]
        hint = "the glob matches no file"
    elif fs.isdir(path):
        found = [entry for entry in fs.find(path, detail=True).values() if _is_data(entry["name"], path, suffixes)]
        hint = f"the directory holds no file ending in {' or '.join(suffixes)}"
    elif fs.exists(path):
        found, hint = [fs.info(path)], ""
    else:
        hint = "no such file or directory"
    return [File(with_scheme(fs, entry["name"]), int(entry["size"])) for entry in found], hint


def _is_data(name: str, root: str, suffixes: tuple[str, ...]) -> bool:
    """Whether a file below a directory is data: hidden files and folders are temporary ones."""
    below = PurePosixPath(name).relative_to(root)
    return name.endswith(suffixes) and not any(part.startswith((".", "_")) for part in below.parts)
