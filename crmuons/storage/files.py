"""The one door to files: paths, directories, globs and URLs of any fsspec scheme become a sorted list of files.

`pelican://` and `osdf://` go through crmuons.pelican, every other scheme through fsspec's own file system.
"""

import logging
import os
import shutil
import tempfile
import uuid
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import IO

import fsspec
from fsspec.implementations.local import LocalFileSystem

from crmuons.storage import pelican
from crmuons.storage.atomic import atomic_file
from crmuons.storage.filesystems import FEDERATED, filesystem, is_remote, with_scheme
from crmuons.storage.listing import PARQUET_SUFFIXES, File, expand_braces, list_files

logger = logging.getLogger(__name__)

__all__ = [
    "FEDERATED",
    "PARQUET_SUFFIXES",
    "File",
    "check_writable",
    "exists",
    "expand_braces",
    "get",
    "get_tree",
    "is_remote",
    "list_files",
    "names",
    "open_file",
    "put",
    "put_tree",
    "read_bytes",
    "remove",
    "remove_tree",
    "sizes",
]


def open_file(url: str, size: int | None = None) -> IO[bytes]:
    """Open one file for reading in binary.

    Args:
        url: path or URL.
        size: the file's size in bytes where it is known from a listing; it saves a request.
    """
    fs, path = filesystem(url)
    if isinstance(fs, pelican.Federation):
        return fs.open(path, "rb", size=size)
    return fs.open(path, "rb")


def read_bytes(url: str) -> bytes:
    """The content of a small file."""
    fs, path = filesystem(url)
    return bytes(fs.cat_file(path))


def exists(url: str) -> bool:
    """Whether there is a file or a directory."""
    fs, path = filesystem(url)
    return bool(fs.exists(path))


def names(url: str) -> list[str]:
    """The names in a folder as they are now, sorted; none where there is no folder."""
    fs, path = filesystem(url)
    fs.invalidate_cache()  # Some file systems remember listings.
    try:
        return sorted(str(name).rstrip("/").rpartition("/")[2] for name in fs.ls(path, detail=False))
    except FileNotFoundError:
        return []


def sizes(url: str) -> dict[str, int]:
    """The files below a folder as they are now: their sizes in bytes by their paths in it; none without a folder."""
    fs, root = filesystem(url)
    fs.invalidate_cache()
    return {PurePosixPath(name).relative_to(root).as_posix(): size for name, size in _sizes(fs, root).items()}


def get(url: str, local: Path) -> None:
    """Copy a file to a local name, under which it appears once it is whole; folders are made."""
    fs, path = filesystem(url)
    local.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(local, shared=True) as partial:
        fs.get_file(path, str(partial))


def remove(url: str) -> None:
    """Remove a file.

    Raises:
        OSError: if it may not be removed, a PermissionError where the token does not cover it.
    """
    fs, path = filesystem(url)
    fs.rm_file(path)


def remove_tree(url: str) -> None:
    """Remove a folder with all that is in it; that there is none is as good.

    Raises:
        OSError: if it may not be removed, a PermissionError where the token does not cover it.
    """
    fs, root = filesystem(url)
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
    fs, path = filesystem(url)
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
    fs, root = filesystem(url)
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
    fs, root = filesystem(url)
    there = _sizes(fs, root)
    if not there:
        msg = f"nothing to copy below '{url}': no such directory, or it is empty; check the path"
        raise FileNotFoundError(msg)
    copied = []
    for name, size in there.items():
        target = folder / PurePosixPath(name).relative_to(root)
        if not target.is_file() or target.stat().st_size != size:
            get(with_scheme(fs, name), target)
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
    fs, path = filesystem(url)
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
    fs, path = filesystem(probe)
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


def _sizes(fs: fsspec.AbstractFileSystem, root: str) -> dict[str, int]:
    """The sizes in bytes of the files below a directory; none where there is no directory."""
    if not fs.isdir(root):
        return {}
    return {name: int(entry["size"]) for name, entry in fs.find(root, detail=True).items()}
