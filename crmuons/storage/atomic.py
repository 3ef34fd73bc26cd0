"""Files and directories that appear under their names only once they are complete.

Each is written under a hidden partial name next to its target, on the same file system, and renamed at the end. The
partial name has a random part, so that no process writes to, renames or removes the partial file of another.
"""

import errno
import json
import os
import re
import shutil
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

OWNER_FOLDER = ".owner"  # In an output: the mark of its owner (claims.py). Readers of a Parquet folder ignore it.
# Exactly the names that `_partial` gives, so that no other hidden file is ever removed.
_PARTIAL = re.compile(r"/\.[^/]+\.[0-9a-f]{8}\.partial$")
# For each output that this process owns, by directory or URL: a function that raises an error if another process has taken
# over (ownership.py).
_guards: dict[str, Callable[[], None]] = {}


@contextmanager
def guarded(place: str, confirm: Callable[[], None]) -> Iterator[None]:
    """Call `confirm` before anything gets its name below a directory or a URL, for the duration of the block."""
    _guards[place] = confirm
    try:
        yield
    finally:
        del _guards[place]


def check_owned(target: str | Path) -> None:
    """Call the guards of the outputs that hold a path or a URL."""
    name = f"{target.absolute() if isinstance(target, Path) else target}/"
    for place, confirm in list(_guards.items()):
        if name.startswith(f"{place.rstrip('/')}/"):
            confirm()


FULL = (errno.ENOSPC, errno.EDQUOT)


class DiskFullError(OSError):
    """Raised if a disk or a quota is full: names the file, the bytes written so far, and the free space.

    Args:
        error: the system's error.
        path: the file or directory that cannot be written.
        written: number of its bytes that were written.
    """

    def __init__(self, error: OSError, path: Path, written: int) -> None:
        super().__init__(error.errno, os.strerror(error.errno or errno.ENOSPC))
        self.path = path
        there = next(parent for parent in (path.absolute(), *path.absolute().parents) if parent.exists())
        disk = shutil.disk_usage(there)
        quota = " and your quota is used up" if error.errno == errno.EDQUOT else ""
        self.remedy = (
            f"free space there ({size_text(disk.free)} of {size_text(disk.total)} are free{quota}; "
            f"{size_text(written)} of it were written)"
        )

    def __str__(self) -> str:
        return f"{self.path} cannot be written ({self.strerror}); {self.remedy}"


def size_text(num_bytes: float) -> str:
    """Return a size for people, such as 3.1 MB."""
    for unit in ("B", "kB", "MB", "GB"):
        if num_bytes < 1000:
            return f"{num_bytes:.0f} B" if unit == "B" else f"{num_bytes:.1f} {unit}"
        num_bytes /= 1000
    return f"{num_bytes:.1f} TB"


@contextmanager
def full_disk_named(path: Path, *, written: Callable[[], int] = lambda: 0) -> Iterator[None]:
    """Turn the error of a full disk in the block into a DiskFullError that names `path`; other errors stay unchanged."""
    try:
        yield
    except DiskFullError:
        raise
    except OSError as error:
        if error.errno not in FULL:
            raise
        raise DiskFullError(error, path, written()) from error


def _bytes_in(path: Path) -> int:
    return sum(entry.stat().st_size for entry in (path, *path.rglob("*")) if entry.is_file())


@contextmanager
def atomic_file(path: Path, *, fsync: bool = False) -> Iterator[Path]:
    """Yield a partial path to write to, and rename it to `path` when the block ends without an error.

    Any number of processes and threads may write the same file; the last one wins. An error removes the partial file. A
    killed process leaves it; the next owner of the directory removes it (`remove_partials`).

    Args:
        path: the file to create or replace. Its directory exists.
        fsync: flush the content to the disk before the rename. Otherwise a power cut may leave an empty or cut file
            under the final name.
    """
    partial = _partial(path)
    try:
        with full_disk_named(path, written=lambda: _bytes_in(partial)):
            yield partial
            if fsync:
                # The content goes to the disk before the name: after a power cut the name could exist without the content.
                with partial.open("rb") as file:
                    os.fsync(file.fileno())
            check_owned(path)
            # rename(2) within one file system is atomic: readers see the old file or the new one, whole.
            partial.replace(path)
    except BaseException:  # Ctrl-C too must leave no partial file; the error is raised again.
        with suppress(OSError):
            partial.unlink()
        raise


@contextmanager
def atomic_directory(path: Path, *, replace: bool = False) -> Iterator[Path]:
    """Yield a new, empty partial directory, and rename it to `path` when the block ends without an error.

    An error removes the partial directory. A killed process leaves it, as above.

    Args:
        path: the directory to create. Its parents are made.
        replace: replace a directory of that name; otherwise only an empty one may exist.
    """
    partial = _partial(path)
    try:
        with full_disk_named(path, written=lambda: _bytes_in(partial)):
            partial.mkdir(parents=True)
            yield partial
            check_owned(path)
            if replace:
                remove_atomically(path)
            partial.rename(path)
    except BaseException:  # As above.
        shutil.rmtree(partial, ignore_errors=True)
        raise


@contextmanager
def filled_directory(path: Path, *, last: str) -> Iterator[Path]:
    """Yield a partial directory, and move its entries into `path`, which may exist, when the block ends without an error.

    Args:
        path: the directory to fill. It and its parents are made.
        last: the entry that comes last: a directory that has it is complete.
    """
    partial = _partial(path / "new")
    try:
        with full_disk_named(path, written=lambda: _bytes_in(partial)):
            partial.mkdir(parents=True)
            yield partial
            check_owned(path)
            # One by one, because an existing directory cannot be replaced in one operation.
            for entry in sorted(partial.iterdir(), key=lambda entry: entry.name == last):
                entry.replace(path / entry.name)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def remove_atomically(directory: Path) -> None:
    """Remove a directory if it exists. It is renamed first, so that no reader uses a half-removed directory."""
    if directory.exists():
        doomed = _partial(directory)
        directory.rename(doomed)
        shutil.rmtree(doomed)


def remove_partials(folder: Path) -> None:
    """Remove the partial files of killed processes in a directory and the directories in it. Only its owner may do this.

    Directories in it that have their own owner are left alone. So are all names that crmuons does not give.
    """
    for inside in (
        folder,
        *(path for path in folder.iterdir() if path.is_dir() and not (path / OWNER_FOLDER).exists()),
    ):
        for partial in filter(_PARTIAL.search, map(str, inside.glob(".*.partial"))):
            if Path(partial).is_dir():
                shutil.rmtree(partial, ignore_errors=True)
            else:
                Path(partial).unlink(missing_ok=True)


def make_directory(folder: Path, *, private: Path | None = None) -> list[Path]:
    """Make a directory and its missing parents, and return the new ones. Other users cannot write to them.

    Args:
        folder: the directory.
        private: a new directory that only its owner and group may read.

    Raises:
        FileExistsError: if one of them is a link to nothing.
    """
    # Found before they are made, because only new directories get other modes.
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    if link := next((path for path in missing if path.is_symlink()), None):
        msg = f"'{folder}' cannot be made: {link} is a link to {link.readlink()}, which does not exist; make that, or remove the link"
        raise FileExistsError(msg)
    folder.mkdir(parents=True, exist_ok=True)
    for path in missing:
        with suppress(PermissionError):  # Another user made it at this moment, or the file system has no modes.
            path.chmod(path.stat().st_mode & 0o7777 & ~(0o007 if path == private else 0o002))
    return missing


def write_json(path: Path, content: Any) -> None:
    """Write a small JSON file."""
    write_text(path, json.dumps(content, indent=1))


def write_text(path: Path, text: str) -> None:
    """Write a small text file."""
    with atomic_file(path) as partial:
        partial.write_text(text, encoding="utf-8")


def reason_of(error: BaseException) -> str:
    """Return the reason of an error from writing, without the path and the remedy."""
    return str(error.strerror) if isinstance(error, DiskFullError) else str(error)


def remedy_for(error: BaseException) -> str:
    """Return the remedy for an error from writing, as half a sentence for its message."""
    number = getattr(error, "errno", None)
    if number in FULL:
        return error.remedy if isinstance(error, DiskFullError) else "free space there"
    if number == errno.ENAMETOOLONG:
        return "choose a shorter name"
    if number in {errno.ENOTEMPTY, errno.EEXIST}:
        return "remove what is in it"
    if number == errno.EFBIG:
        return "raise the limit of the size of files (ulimit -f)"
    if number in {errno.EACCES, errno.EPERM, errno.EROFS}:
        return "choose a place where you may write"
    return "repair it, or choose another place"


def _partial(path: Path) -> Path:
    return path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.partial")
