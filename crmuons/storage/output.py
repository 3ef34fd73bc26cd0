"""Where a generated data set goes: a directory, or a URL to which whole files are copied (every scheme of crmuons.files)."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from crmuons.storage import files
from crmuons.storage.atomic import atomic_file


@dataclass(frozen=True)
class Output:
    """A place for files that appear under their names once they are whole.

    Attributes:
        url: an absolute path, or a URL.
    """

    url: str

    @classmethod
    def at(cls, place: str | Path) -> "Output":
        """A URL, or a path that may be relative."""
        return cls(place if isinstance(place, str) and "://" in place else str(Path(place).absolute()))

    def __str__(self) -> str:
        return self.url

    @property
    def folder(self) -> Path | None:
        """The directory; None for a URL."""
        return None if "://" in self.url else Path(self.url)

    def of(self, name: str) -> str:
        """The path or URL of a file."""
        return f"{self.url.rstrip('/')}/{name}"

    def names(self) -> list[str]:
        """What is there now, without hidden files, which are partial ones."""
        return [name for name in files.names(self.url) if not name.startswith(".")]

    def check_writable(self) -> None:
        """Find out before long work whether it can be written.

        Raises:
            PermissionError, NotADirectoryError: if not.
        """
        files.check_writable(self.url)

    def read(self, name: str) -> bytes:
        """The content of a small file."""
        return files.read_bytes(self.of(name))

    def open(self, name: str) -> IO[bytes]:
        """A file to read."""
        return files.open_file(self.of(name))

    @contextmanager
    def writing(self, name: str) -> Iterator[Path]:
        """A local file to write, which is given its name when the block ends without an error.

        What bears the name already is replaced. A federation's files are not written over but removed before.

        Raises:
            PermissionError: if it may not be.
        """
        if self.folder is None:
            with tempfile.TemporaryDirectory(prefix="crmuons-") as folder:
                yield Path(folder) / name
                if files.exists(self.of(name)):
                    files.remove(self.of(name))
                files.put(Path(folder) / name, self.of(name))
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        with atomic_file(self.folder / name, fsync=True, shared=True) as partial:
            yield partial

    def remove_partials(self) -> None:
        """Remove what killed processes left, once everything is there and nothing is being written."""
        for partial in self.folder.glob(".*.partial") if self.folder is not None else ():
            partial.unlink(missing_ok=True)


@contextmanager
def folder_at(place: str, *, new: bool = False) -> Iterator[Path]:
    """A directory to write: the place itself, or for a URL a local one, from which all is copied when the block ends well.

    Args:
        place: a path or a URL. That it can be written is found out before the block.
        new: refuse a URL with something below it.

    Raises:
        PermissionError, NotADirectoryError: if it cannot be written.
        FileExistsError: if a federation has a file of that name and of another size, or `new` is not the case.
    """
    files.check_writable(place)
    if "://" not in place:
        yield Path(place)
        return
    if new and files.names(place):
        msg = f"{place} is not empty: name a new directory with --out"
        raise FileExistsError(msg)
    with tempfile.TemporaryDirectory(prefix="crmuons-") as folder:
        yield Path(folder)
        files.put_tree(Path(folder), place)
