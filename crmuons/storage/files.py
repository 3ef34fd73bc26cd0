"""The one door to files: paths, directories, globs and URLs of any fsspec scheme become a sorted list of files.

`pelican://` and `osdf://` go through crmuons.pelican, every other scheme through fsspec's own file system.
"""

import logging
import os
import re
import shutil
import tempfile
import uuid
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any

import fsspec
from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem

from crmuons.storage import pelican
from crmuons.storage.atomic import atomic_file

logger = logging.getLogger(__name__)

PARQUET_SUFFIXES = (".parquet", ".pq")
FEDERATED = ("pelican://", "osdf://")


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


def open_file(url: str, size: int | None = None) -> IO[bytes]:
    """Open one file for reading in binary.

    Args:
        url: path or URL.
        size: the file's size in bytes where it is known from a listing; it saves a request.
    """
    fs, path = _filesystem(url)
    if isinstance(fs, pelican.Federation):
        return fs.open(path, "rb", size=size)
    return fs.open(path, "rb")


def read_bytes(url: str) -> bytes:
    """The content of a small file."""
    fs, path = _filesystem(url)
    return bytes(fs.cat_file(path))


def exists(url: str) -> bool:
    """Whether there is a file or a directory."""
    fs, path = _filesystem(url)
    return bool(fs.exists(path))


def names(url: str) -> list[str]:
    """The names in a folder as they are now, sorted; none where there is no folder."""
    fs, path = _filesystem(url)
    fs.invalidate_cache()  # Some file systems remember listings.
    try:
        return sorted(str(name).rstrip("/").rpartition("/")[2] for name in fs.ls(path, detail=False))
    except FileNotFoundError:
        return []


def sizes(url: str) -> dict[str, int]:
    """The files below a folder as they are now: their sizes in bytes by their paths in it; none without a folder."""
    fs, root = _filesystem(url)
    fs.invalidate_cache()
    return {PurePosixPath(name).relative_to(root).as_posix(): size for name, size in _sizes(fs, root).items()}


def get(url: str, local: Path) -> None:
    """Copy a file to a local name, under which it appears once it is whole; folders are made."""
    fs, path = _filesystem(url)
    local.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(local, shared=True) as partial:
        fs.get_file(path, str(partial))


def remove(url: str) -> None:
    """Remove a file.

    Raises:
        OSError: if it may not be removed, a PermissionError where the token does not cover it.
    """
    fs, path = _filesystem(url)
    fs.rm_file(path)


def remove_tree(url: str) -> None:
    """Remove a folder with all that is in it; that there is none is as good.

    Raises:
        OSError: if it may not be removed, a PermissionError where the token does not cover it.
    """
    fs, root = _filesystem(url)
    fs.invalidate_cache()
    if not fs.isdir(root):
        return
    if not isinstance(fs, pelican.Federation):
        fs.rm(root, recursive=True)
        return
    entries = fs.find(root, withdirs=True)
    for path in sorted(entries, key=len, reverse=True):  # What is in a folder before the folder.
        fs.rm_file(path)
    fs.rm_file(root)


def put(local: Path, url: str) -> None:
    """Copy a local file; folders are made, and the file appears under its name only once it is whole.

    Raises:
        FileExistsError: if the URL is a federation's and taken: caches would go on serving the old content.
        PermissionError: if no token covers it, or the folder is not writable.
    """
    fs, path = _filesystem(url)
    if not isinstance(fs, LocalFileSystem):  # Object stores take a file whole; a federation's is checked by its size.
        fs.put_file(str(local), path)
        return
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(target, shared=True) as partial:
        shutil.copyfile(local, partial)


def put_tree(folder: Path, url: str) -> list[str]:
    """Copy every file below a folder that is not there yet in its size, without hidden ones.

    Returns:
        The URLs of what was copied: nothing the second time.

    Raises:
        FileExistsError, PermissionError: see `put`.
    """
    fs, root = _filesystem(url)
    there = _sizes(fs, root)
    copied = []
    for path in sorted(each for each in folder.rglob("*") if each.is_file()):
        below = path.relative_to(folder)
        missing = there.get(f"{root.rstrip('/')}/{below.as_posix()}") != path.stat().st_size
        if missing and not any(part.startswith(".") for part in below.parts):
            copied.append(f"{url.rstrip('/')}/{below.as_posix()}")
            put(path, copied[-1])
    return copied


def get_tree(url: str, folder: Path) -> list[Path]:
    """Copy every file below a URL that is not yet in a folder in its size.

    Returns:
        The files copied.

    Raises:
        FileNotFoundError: if there is nothing below the URL.
    """
    fs, root = _filesystem(url)
    there = _sizes(fs, root)
    if not there:
        msg = f"nothing to copy below '{url}': no such directory, or it is empty; check the path"
        raise FileNotFoundError(msg)
    copied = []
    for name, size in there.items():
        target = folder / PurePosixPath(name).relative_to(root)
        if not target.is_file() or target.stat().st_size != size:
            get(_with_scheme(fs, name), target)
            copied.append(target)
    return copied


def check_writable(url: str) -> None:
    """Find out, before long work, whether its results can be written below a URL.

    A token's scopes or a folder's permissions say so, or else a small file that is written and removed again.

    Raises:
        PermissionError: if not: no token that covers the URL, a local folder that cannot be made or written, or what
            came of trying.
        NotADirectoryError: if there is a file where a folder is due.
    """
    fs, path = _filesystem(url)
    if isinstance(fs, LocalFileSystem):
        _check_local_folder(url, Path(path))
    elif not (isinstance(fs, pelican.Federation) and fs.check_writable(path)):
        _try_writing(url)


def _check_local_folder(url: str, path: Path) -> None:
    folder = next(each for each in (path, *path.parents) if each.exists())
    if not folder.is_dir():
        msg = f"'{url}' cannot be written: {folder} is a file; take another name"
        raise NotADirectoryError(msg)
    if not os.access(folder, os.W_OK | os.X_OK):
        msg = f"'{url}' cannot be written: no permission to write to {folder}"
        raise PermissionError(msg)


def _try_writing(url: str) -> None:
    """Write a file of one byte; where it cannot be removed, it stays."""
    probe = f"{url.rstrip('/')}/.probe-{uuid.uuid4().hex}"
    fs, path = _filesystem(probe)
    with tempfile.NamedTemporaryFile() as byte:
        byte.write(b"0")
        byte.flush()
        try:
            put(Path(byte.name), probe)
        except Exception as error:  # Each storage's library has errors of its own.
            msg = f"'{url}' cannot be written: {type(error).__name__}: {error}; give another place, or the credentials it takes"
            raise PermissionError(msg) from error
    with suppress(
        OSError, NotImplementedError
    ):  # May write and not remove, or (fsspec's NotImplementedError) never can.
        fs.rm_file(path)


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


def _matches(pattern: str, suffixes: tuple[str, ...]) -> tuple[list[File], str]:
    """The files of a pattern without braces, and why there might be none."""
    fs, path = _filesystem(pattern)
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
    return [File(_with_scheme(fs, entry["name"]), int(entry["size"])) for entry in found], hint


def _sizes(fs: fsspec.AbstractFileSystem, root: str) -> dict[str, int]:
    """The sizes in bytes of the files below a directory; none where there is no directory."""
    if not fs.isdir(root):
        return {}
    return {name: int(entry["size"]) for name, entry in fs.find(root, detail=True).items()}


def _is_data(name: str, root: str, suffixes: tuple[str, ...]) -> bool:
    """Whether a file below a directory is data: hidden files and folders are temporary ones."""
    below = PurePosixPath(name).relative_to(root)
    return name.endswith(suffixes) and not any(part.startswith((".", "_")) for part in below.parts)


def _filesystem(url: str) -> tuple[fsspec.AbstractFileSystem, str]:
    if url.startswith(FEDERATED):
        return pelican.filesystem(url), pelican.split_url(url)[1]
    try:
        fs, path = url_to_fs(url)
    except ValueError as error:
        if "://" not in url or "Protocol not known" not in str(error):
            raise
        scheme = url.partition("://")[0]
        msg = f"'{url}': nobody knows how to read '{scheme}://'; for a federation write pelican://HOST/path, for others s3://, https://, ..."
        raise ValueError(msg) from error
    return fs, path


def _with_scheme(fs: fsspec.AbstractFileSystem, name: str) -> str:
    if isinstance(fs, pelican.Federation):
        return fs.url(name)
    return name if isinstance(fs, LocalFileSystem) else str(fs.unstrip_protocol(name))


def is_remote(url: str) -> bool:
    """Whether a file is anywhere but on a disk that is mounted here."""
    return "://" in url and not url.startswith(("file://", "local://"))
