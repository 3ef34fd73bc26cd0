"""Read, copy and remove files at paths and at URLs of any fsspec scheme.

crmuons.storage.pelican handles `pelican://` and `osdf://` URLs, crmuons.storage.http handles `http://` and `https://`, and
fsspec's file systems handle all other schemes.
"""

import os
import shutil
import tempfile
import uuid
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import IO

import fsspec
from fsspec.implementations.local import LocalFileSystem

from crmuons.storage import bounds, pelican
from crmuons.storage.atomic import atomic_file
from crmuons.storage.braces import expand_braces
from crmuons.storage.filesystems import FEDERATED, WEB, filesystem, is_remote, with_scheme
from crmuons.storage.http import is_web
from crmuons.storage.inside import inside
from crmuons.storage.listing import PARQUET_SUFFIXES, File, exists_locally, list_files

__all__ = [
    "FEDERATED",
    "PARQUET_SUFFIXES",
    "WEB",
    "File",
    "check_writable",
    "exists",
    "exists_locally",
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


MAX_SMALL_BYTES = 2**28  # Largest manifest or listing: enough for the manifest of a million shards.


def open_file(url: str, size: int | None = None) -> IO[bytes]:
    """Open one file for reading in binary.

    Args:
        url: path or URL.
        size: the file's size in bytes, if a listing gave it; it saves a request.
    """
    fs, path = filesystem(url)
    if is_web(fs) or pelican.is_federation(fs):
        return fs.open(path, "rb", size=size)
    return fs.open(path, "rb")


def read_bytes(url: str, most: int | None = None) -> bytes:
    """Return the content of a small file.

    Args:
        url: path or URL.
        most: largest number of bytes from a server, by default MAX_SMALL_BYTES.

    Raises:
        ValueError: if a server sends more.
    """
    most = MAX_SMALL_BYTES if most is None else most
    fs, path = filesystem(url)
    if not (is_web(fs) or pelican.is_federation(fs)):
        return bytes(fs.cat_file(path))
    content = bytes(fs.cat_file(path, 0, most + 1))
    if len(content) > most:
        msg = f"{url} has more than {most >> 20} MiB, too much for a file of this name; check the file at the server"
        raise ValueError(msg)
    return content


def exists(url: str) -> bool:
    """Return whether a file or a directory of this name exists."""
    fs, path = filesystem(url)
    return bool(fs.exists(path))


def names(url: str) -> list[str]:
    """List a folder again, and return its sorted names; none if there is no folder."""
    fs, path = filesystem(url)
    fs.invalidate_cache()  # Some file systems cache listings.
    try:
        return sorted(str(name).rstrip("/").rpartition("/")[2] for name in fs.ls(path, detail=False))
    except FileNotFoundError:
        return []


def sizes(url: str) -> dict[str, int]:
    """List a folder of at most `bounds.MAX_FILES` files again; return each file's size in bytes, by its path in the folder."""
    fs, root = filesystem(url)
    fs.invalidate_cache()
    return {
        PurePosixPath(name).relative_to(root).as_posix(): size
        for name, size in _sizes(fs, root, bounds.MAX_FILES).items()
    }


def get(url: str, local: Path) -> None:
    """Copy a file to a local path, where it appears once it is complete. Parent folders are made."""
    fs, path = filesystem(url)
    local.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(local) as partial:
        fs.get_file(path, str(partial))


def remove(url: str) -> None:
    """Remove a file.

    Raises:
        PermissionError: if the token does not allow it.
        OSError: if the storage refuses.
    """
    fs, path = filesystem(url)
    fs.rm_file(path)


def remove_tree(url: str) -> None:
    """Remove a folder and everything in it. Do nothing if it does not exist.

    Raises:
        PermissionError: if the token does not allow it.
        OSError: if the storage refuses.
    """
    fs, root = filesystem(url)
    fs.invalidate_cache()
    if not fs.isdir(root):
        return
    if not pelican.is_federation(fs):
        fs.rm(root, recursive=True)
        return
    entries = fs.find(root, withdirs=True)
    for path in sorted(entries, key=len, reverse=True):  # The content of a folder is removed before the folder.
        fs.rm_file(path)
    fs.rm_file(root)


def put(local: Path, url: str) -> None:
    """Copy a local file to a path or a URL, where it appears once it is complete. Parent folders are made.

    Raises:
        FileExistsError: if the file exists in a federation, whose caches would continue to serve the old content.
        PermissionError: if no token allows it, or the folder is not writable.
    """
    fs, path = filesystem(url)
    # Object stores write a file atomically, and in a federation its size is checked at the origin.
    if not isinstance(fs, LocalFileSystem):
        fs.put_file(str(local), path)
        return
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(target) as partial:
        shutil.copyfile(local, partial)


def put_tree(folder: Path, url: str) -> list[str]:
    """Copy every file below a local folder to a URL, except hidden files and files that exist there with the same size.

    Returns:
        The URLs of the copied files; none when called again.

    Raises:
        FileExistsError, PermissionError: see `put`.
    """
    fs, root = filesystem(url)
    remote_sizes = _sizes(fs, root)
    copied = []
    for path in sorted(entry for entry in folder.rglob("*") if entry.is_file()):
        below = path.relative_to(folder)
        missing = remote_sizes.get(f"{root.rstrip('/')}/{below.as_posix()}") != path.stat().st_size
        if missing and not any(part.startswith(".") for part in below.parts):
            copied.append(f"{url.rstrip('/')}/{below.as_posix()}")
            put(path, copied[-1])
    return copied


def get_tree(url: str, folder: Path) -> list[Path]:
    """Copy every file below a URL to a local folder, except files that exist there with the same size.

    Returns:
        The copied files.

    Raises:
        FileNotFoundError: if there is no file below the URL.
        TooMuchError: if there are more files or bytes than a model or a run can have.
        OutsideError: if the listing names a file outside the URL, or a link in the folder leads out of the folder.
    """
    fs, root = filesystem(url)
    remote_sizes = _sizes(fs, root, bounds.MAX_FILES)
    if not remote_sizes:
        msg = f"nothing to copy below '{url}': no such directory, or it is empty; check the path"
        raise FileNotFoundError(msg)
    bounds.check_copy(remote_sizes, url, folder)
    copied = []
    for name, size in remote_sizes.items():
        target = inside(folder, name.removeprefix(f"{root.rstrip('/')}/"), url)
        if not target.is_file() or target.stat().st_size != size:
            get(with_scheme(fs, name), target)
            copied.append(target)
    return copied


def check_writable(url: str) -> None:
    """Check, before long work, that its results can be written below a URL.

    The token's scopes or the folder's permissions decide. If they are not enough, a small file is written and removed.

    Raises:
        PermissionError: if no token covers the URL, the local folder cannot be made or written, or the test write
            failed.
        NotADirectoryError: if a component of the path is a file.
    """
    fs, path = filesystem(url)
    if isinstance(fs, LocalFileSystem):
        _check_local_folder(url, Path(path))
    elif not (pelican.is_federation(fs) and fs.check_writable(path)):
        _try_writing(url)


def _check_local_folder(url: str, path: Path) -> None:
    folder = next(parent for parent in (path, *path.parents) if parent.exists())
    if not folder.is_dir():
        msg = f"'{url}' cannot be written: {folder} is a file; choose another name"
        raise NotADirectoryError(msg)
    if not os.access(folder, os.W_OK | os.X_OK):
        msg = f"'{url}' cannot be written: no permission to write to {folder}"
        raise PermissionError(msg)


def _try_writing(url: str) -> None:
    """Write a file of one byte and remove it. It stays if the storage does not allow removing it."""
    probe = f"{url.rstrip('/')}/.probe-{uuid.uuid4().hex}"
    fs, path = filesystem(probe)
    with tempfile.NamedTemporaryFile() as byte:
        byte.write(b"0")
        byte.flush()
        try:
            put(Path(byte.name), probe)
        except Exception as error:  # Each storage library has its own error classes.
            msg = f"'{url}' cannot be written: {type(error).__name__}: {error}; name another place, or supply its credentials"
            raise PermissionError(msg) from error
    # Removing may be forbidden, or not implemented for this scheme in fsspec.
    with suppress(OSError, NotImplementedError):
        fs.rm_file(path)


def _sizes(fs: fsspec.AbstractFileSystem, root: str, most: int | None = None) -> dict[str, int]:
    """Return the size in bytes of each file below a directory, by its path; none if there is no directory.

    Raises:
        TooMuchError: if there are more than `most` files and folders.
    """
    if not fs.isdir(root):
        return {}
    # Our own file systems stop at the limit; other stores answer with the whole list.
    limit = {"most": most} if is_web(fs) or pelican.is_federation(fs) else {}
    found = fs.find(root, detail=True, **limit)
    if most is not None:
        bounds.check_number(len(found), with_scheme(fs, root), most)
    return {name: int(entry["size"]) for name, entry in found.items()}
