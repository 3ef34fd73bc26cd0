"""The output of a command: a directory, or a URL to which complete files are copied."""

import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from itertools import takewhile
from pathlib import Path, PurePosixPath
from typing import IO

from fsspec.implementations.local import LocalFileSystem

from crmuons.storage import atomic, files, ownership
from crmuons.storage.atomic import atomic_file, full_disk_named
from crmuons.storage.braces import python_glob
from crmuons.storage.claims import FOLDER
from crmuons.storage.filesystems import filesystem, is_remote
from crmuons.storage.listing import GLOB, walked_folders


@dataclass(frozen=True)
class Output:
    """A directory or URL whose files appear once they are complete.

    Attributes:
        url: an absolute path or a URL.
    """

    url: str

    @classmethod
    def at(cls, place: str | Path) -> "Output":
        """Return the output at a URL, or at a path that may be relative."""
        return cls(place if isinstance(place, str) and "://" in place else str(Path(place).absolute()))

    def __str__(self) -> str:
        return self.url

    @property
    def folder(self) -> Path | None:
        """The local directory; None for a URL."""
        return None if "://" in self.url else Path(self.url)

    def of(self, name: str) -> str:
        """Return the path or URL of a file in it."""
        return f"{self.url.rstrip('/')}/{name}"

    def names(self) -> list[str]:
        """Return the names in it, without hidden names: partial files, and the mark of the owner."""
        return [name for name in files.names(self.url) if not name.startswith(".")]

    def check_writable(self) -> None:
        """Check, before long work, that it can be written.

        Raises:
            PermissionError, NotADirectoryError: if it cannot; see `files.check_writable`.
        """
        files.check_writable(self.url)

    def read(self, name: str) -> bytes:
        """Return the content of a small file in it."""
        return files.read_bytes(self.of(name))

    def open(self, name: str) -> IO[bytes]:
        """Open a file in it for reading in binary."""
        return files.open_file(self.of(name))

    @contextmanager
    def writing(self, name: str) -> Iterator[Path]:
        """Yield a local path to write to; the file appears under `name` when the block ends without an error.

        An existing file of that name is replaced. At a URL it is removed first, because a federation does not overwrite.

        Raises:
            PermissionError: if the existing file may not be removed, or the new file may not be written.
        """
        if self.folder is None:
            with tempfile.TemporaryDirectory(prefix="crmuons-") as folder:
                with full_disk_named(Path(folder) / name):
                    yield Path(folder) / name
                if files.exists(self.of(name)):
                    files.remove(self.of(name))
                files.put(Path(folder) / name, self.of(name))
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        with atomic_file(self.folder / name, fsync=True) as partial:
            yield partial


def check_apart(out: Path, data: Sequence[str]) -> None:
    """Refuse an output directory that a listing of the data reads, because the next listing would take it as data.

    Raises:
        FileNotFoundError: if there are no data.
        ValueError: with both names; links and `..` are followed.
    """
    real = Path(os.path.realpath(out.expanduser()))  # Unlike resolve, it accepts a link to itself.
    walked = walked_folders(data)
    named = next((walked[str(folder)] for folder in (*real.parents, real) if str(folder) in walked), None)
    named = named or next((pattern for pattern in data if not is_remote(pattern) and _would_match(pattern, real)), None)
    if named is not None:
        msg = f"{out} lies inside the data directory {named}; name a directory outside it with --out"
        raise ValueError(msg)


def _would_match(pattern: str, real: Path) -> bool:
    """Return whether a glob would match a folder, or a folder above it, once the folder exists."""
    fs, path = filesystem(pattern)
    parts = PurePosixPath(path).parts
    fixed = list(takewhile(lambda part: not GLOB.search(part), parts))
    root, rest = Path(os.path.realpath(Path(*fixed))), parts[len(fixed) :]
    if not rest or not isinstance(fs, LocalFileSystem) or not real.is_relative_to(root):
        return False
    below = real.relative_to(root).parts
    return "**" in rest or (len(below) >= len(rest) and all(map(fnmatchcase, below, map(python_glob, rest))))


@contextmanager
def folder_at(place: str, *, new: bool = False) -> Iterator[Path]:
    """Own `place`, and yield a directory to write to: `place` itself, or a local directory that is copied to a URL at the end.

    Args:
        place: a path or a URL. Before the block runs, it is checked that it can be written. Nothing is copied after an error.
        new: refuse a URL that already holds files.

    Raises:
        HeldError: if another process writes there.
        PermissionError, NotADirectoryError: if it cannot be written.
        FileExistsError: if a federation holds a file of the same name and another size, or `new` is set and the URL
            holds files.
    """
    with ownership.hold(place):
        if "://" not in place:
            yield Path(place)
            return
        if new and set(files.names(place)) - {FOLDER}:
            msg = f"{place} is not empty: name a new directory with --out"
            raise FileExistsError(msg)
        with tempfile.TemporaryDirectory(prefix="crmuons-") as folder:
            with full_disk_named(Path(folder)):
                yield Path(folder)
            atomic.check_owned(place)
            files.put_tree(Path(folder), place)
