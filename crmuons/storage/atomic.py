"""Files and directories that appear under their names only once they are complete.

Each is written under a hidden partial name beside its target, on the same file system, and renamed at the end.
"""

import json
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any


@contextmanager
def atomic_file(path: Path, *, fsync: bool = False, shared: bool = False) -> Iterator[Path]:
    """Yield a partial path to write to, and rename it to `path` when the block ends without an error.

    An error removes the partial file. A killed process leaves it.

    Args:
        path: the file to create or replace. Its directory exists.
        fsync: flush the content to the disk before the rename. Otherwise a power cut may leave an empty or cut file
            under the final name.
        shared: several processes or threads may write this file at the same time, so each needs a partial name of
            its own. With one writer, the fixed name lets the next attempt overwrite what a killed process left.
    """
    writer = f".{uuid.uuid4().hex[:8]}" if shared else ""
    partial = path.with_name(f".{path.name}{writer}.partial")
    try:
        yield partial
        if fsync:
            with partial.open("rb") as file:
                os.fsync(file.fileno())
        partial.replace(path)
    except BaseException:  # Ctrl-C too must leave no partial file; the error goes on.
        with suppress(OSError):
            partial.unlink()
        raise


@contextmanager
def atomic_directory(path: Path, *, replace: bool = False) -> Iterator[Path]:
    """Yield a new, empty partial directory, and rename it to `path` when the block ends without an error.

    An error removes the partial directory. What a killed process left is removed by the next attempt.

    Args:
        path: the directory to create. Its parents are made.
        replace: replace a directory of that name; otherwise only an empty one may exist.
    """
    partial = path.with_name(f".{path.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
        if replace:
            remove_atomically(path)
        partial.rename(path)
    except BaseException:  # As above.
        shutil.rmtree(partial, ignore_errors=True)
        raise


def remove_atomically(directory: Path) -> None:
    """Remove a directory if it exists. It loses its name first, so that no reader takes a half-removed one."""
    if directory.exists():
        doomed = directory.with_name(f".{directory.name}.old")
        shutil.rmtree(doomed, ignore_errors=True)
        directory.rename(doomed)
        shutil.rmtree(doomed)


def write_json(path: Path, content: Any) -> None:
    """Write a small JSON file, which any number of processes may do at the same time."""
    write_text(path, json.dumps(content, indent=1))


def write_text(path: Path, text: str) -> None:
    """Write a small text file, which any number of processes may do at the same time."""
    with atomic_file(path, shared=True) as partial:
        partial.write_text(text, encoding="utf-8")
