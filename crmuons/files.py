"""The one door to files: paths, directories, globs and URLs of any fsspec scheme become a sorted list of files."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import IO

import fsspec
from fsspec.core import url_to_fs

PARQUET_SUFFIXES = (".parquet", ".pq")


@dataclass(frozen=True, order=True)
class File:
    """A file that can be read: its path or URL, and its size in bytes."""

    url: str
    size: int


def list_files(patterns: str | Sequence[str], *, suffixes: tuple[str, ...] = PARQUET_SUFFIXES) -> list[File]:
    """Every file that a path, a directory, a glob or a URL names, sorted and without repeats.

    A directory gives the files below it with one of the suffixes; a path or a glob gives what it matches.

    Raises:
        FileNotFoundError: if a pattern matches nothing, with the pattern and what to check.
    """
    files: set[File] = set()
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        files.update(_matches(pattern, suffixes))
    return sorted(files)


def open_file(url: str) -> IO[bytes]:
    """Open one file for reading in binary."""
    fs, path = url_to_fs(url)
    return fs.open(path, "rb")


def _matches(pattern: str, suffixes: tuple[str, ...]) -> list[File]:
    fs, path = url_to_fs(pattern)
    if any(character in path for character in "*?["):
        found = [entry for entry in fs.glob(path, detail=True).values() if entry["type"] == "file"]
        hint = "the glob matches no file"
    elif fs.isdir(path):
        found = [entry for entry in fs.find(path, detail=True).values() if _is_data(entry["name"], path, suffixes)]
        hint = f"the directory holds no file ending in {' or '.join(suffixes)}"
    elif fs.exists(path):
        found = [fs.info(path)]
        hint = ""
    else:
        found, hint = [], "no such file or directory"
    if not found:
        msg = (
            f"nothing to read at '{pattern}': {hint}; check the path (a relative one starts from the working directory)"
        )
        raise FileNotFoundError(msg)
    return [File(_with_scheme(fs, entry["name"]), int(entry["size"])) for entry in found]


def _is_data(name: str, root: str, suffixes: tuple[str, ...]) -> bool:
    """Whether a file below a directory is data: hidden files and folders are temporary ones."""
    below = PurePosixPath(name).relative_to(root)
    return name.endswith(suffixes) and not any(part.startswith((".", "_")) for part in below.parts)


def _with_scheme(fs: fsspec.AbstractFileSystem, name: str) -> str:
    return name if "file" in fs.protocol else str(fs.unstrip_protocol(name))
