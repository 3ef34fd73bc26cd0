"""List the files that a path, a directory, a glob or a URL names.

On a local disk links are followed, and each folder and each file is read once. In globs and in folders, names that begin with
`.` or `_` are left out, because they are temporary or hold no data (Spark's `_SUCCESS` and `_temporary`). One warning counts
and names everything that is passed over.
"""

import logging
import os
import re
import stat
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import PurePosixPath

import fsspec
from fsspec.implementations.local import LocalFileSystem

from crmuons.storage.braces import expand_braces, python_glob
from crmuons.storage.filesystems import filesystem, is_remote, with_scheme, without_query

logger = logging.getLogger(__name__)

PARQUET_SUFFIXES = (".parquet", ".pq")
GLOB, WILDCARD = re.compile(r"[*?\[]"), re.compile(r"[*?]")
# Keys of fsspec's entries, the most reliable first.
STAMPS = ("ETag", "LastModified", "Last-Modified", "mtime", "created")
NOT_READABLE, NO_FILES = "not readable", "neither files nor folders"  # Reasons to pass over a name.
_logged: set[str] = set()  # Warnings given so far, because a command lists the same data several times.


@dataclass(frozen=True, order=True)
class File:
    """A readable file. Files of the same URL and size count as equal; storage.identity compares their content.

    Attributes:
        url: its path or URL.
        size: size in bytes.
        stamp: a text that changes when the file is written again: a local file's time in ns, or a server's ETag or date.
        digest: digest of its end (storage.identity); None if it was not read.
        first_url: the place at which the run first found it, if it has moved since.
    """

    url: str
    size: int
    stamp: str | None = field(default=None, compare=False)
    digest: str | None = field(default=None, compare=False)
    first_url: str | None = field(default=None, compare=False)


def list_files(patterns: str | Sequence[str], *, suffixes: tuple[str, ...] = PARQUET_SUFFIXES) -> list[File]:
    """List every file that paths, directories, globs or URLs name, sorted and without repeats.

    A directory, given or matched by a glob, gives the files below it with one of the suffixes. A path or a glob gives the
    files that it matches. `{a,b}` and `{0000..0019}` stand for each of the alternatives; a warning names an alternative that
    matches nothing. A local path that exists is never a glob.

    Raises:
        FileNotFoundError: if a pattern matches nothing, with the pattern and what to check.
        ValueError: if a pattern is empty, or its braces stand for no name or too many names.
    """
    listing = _Listing(suffixes)
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        listing.add_pattern(pattern)
    listing.log_passed_over()
    return sorted(listing.files.values())


def walked_folders(patterns: Sequence[str]) -> dict[str, str]:
    """Return every local folder that a listing of the patterns reads: its path in the listing, by its path without links.

    Raises:
        FileNotFoundError: if a pattern matches nothing.
    """
    listing = _Listing(("",))
    for pattern in patterns:
        if not is_remote(pattern):
            listing.add_pattern(pattern)
    return listing.real


class _Listing:
    """Files found so far, and names that were passed over, by reason."""

    def __init__(self, suffixes: tuple[str, ...]) -> None:
        self.suffixes = suffixes
        self.files: dict[str, File] = {}
        self._passed_over: dict[str, set[str]] = defaultdict(set)
        self.real: dict[str, str] = {}  # The path found first, by the path without links, for local files and folders.

    def add_pattern(self, pattern: str) -> None:
        if not pattern.strip():  # fsspec would read all data below the working directory.
            msg = "an empty path was given for data, perhaps from a variable that is not set; name files, a directory, a glob or a URL"
            raise ValueError(msg)
        alternatives = [pattern] if exists_locally(pattern) else expand_braces(pattern)
        hints = {}
        for alternative in alternatives:
            matched, hint = self._add(alternative)
            if not matched:
                hints[alternative] = hint
        if len(hints) == len(alternatives):
            hint = hints[alternatives[0]]
            msg = f"nothing to read at '{pattern}': {hint}; check the path (a relative one starts from the working directory)"
            raise FileNotFoundError(msg)
        for alternative, hint in hints.items():
            logger.warning("%s: %s", alternative, hint)

    def log_passed_over(self) -> None:
        if not self._passed_over:
            return
        reasons = [f"{len(names)} {reason} ({min(names)})" for reason, names in sorted(self._passed_over.items())]
        sentence = f"passed over, each kind with its first name: {'; '.join(reasons)}"
        if sentence not in _logged:
            _logged.add(sentence)
            logger.warning(sentence)

    def _add(self, pattern: str) -> tuple[bool, str]:
        """Add the files of a pattern without braces; return whether it names any file, and a reason why it may not."""
        fs, path = filesystem(pattern)
        if isinstance(fs, LocalFileSystem):
            return self._add_local(path)
        name = without_query(path)
        # Only names with brackets, such as a[1].parquet, are first looked up as a file, because this costs a request.
        if GLOB.search(name) and (WILDCARD.search(name) or not fs.exists(path)):
            return self._add_remote_glob(fs, path), "the glob matches no file"
        if fs.isdir(path):
            return self._add_remote_folder(fs, path), self._no_file_hint()
        try:
            entry = fs.info(path)  # Without `exists` before it, which would send the same request.
        except FileNotFoundError:
            return False, "no such file or directory"
        return self._add_remote(fs, entry), ""

    def _no_file_hint(self) -> str:
        endings = " or ".join(filter(None, self.suffixes))
        return f"the directory holds no file{' ending in ' if endings else ''}{endings}"

    def _add_local(self, path: str) -> tuple[bool, str]:
        if os.path.isdir(path):
            return self._walk(path, ()), self._why_nothing(self._no_file_hint())
        if os.path.lexists(path):
            return self._add_local_file(path), self._why_nothing("it cannot be read")
        if not GLOB.search(path):
            return False, _missing_hint(path)
        root, *parts = PurePosixPath(path).parts
        matched = [self._add_match(match) for match in sorted(set(self._glob(root, parts, ())))]
        return any(matched), self._why_nothing("the glob matches no file")

    def _why_nothing(self, otherwise: str) -> str:
        """Return why nothing was found: names that were passed over, or another reason."""
        if names := self._passed_over.get(NOT_READABLE):
            return f"no permission to read {min(names)} (a directory needs r and x)"
        if names := self._passed_over.get(NO_FILES):
            return f"{min(names)} is neither a file nor a directory (a pipe, a socket, a device)"
        return otherwise

    def _add_match(self, path: str) -> bool:
        return self._walk(path, ()) if os.path.isdir(path) else self._add_local_file(path)

    def _glob(self, folder: str, parts: Sequence[str], above: tuple[str, ...]) -> Iterator[str]:
        """Yield the paths below a folder that match the parts of a glob, like a shell with `globstar` set."""
        if not parts:
            yield folder
            return
        part, *rest = parts
        path = os.path.join(folder, part)
        if exists := os.path.lexists(path):  # A part such as `run[1]` may be a name that exists.
            yield from self._glob(path, rest, above)
        if exists or not GLOB.search(part):
            return
        if part == "**":
            yield from self._glob(folder, rest, above)
            for path in self._subfolders(folder, above):
                yield from self._glob(path, parts, (*above, os.path.realpath(folder)))
            return
        for name in self._names(folder):
            if fnmatchcase(name, python_glob(part)) and not self._is_left_out(folder, name, part):
                yield from self._glob(os.path.join(folder, name), rest, above)

    def _subfolders(self, folder: str, above: tuple[str, ...]) -> Iterator[str]:
        for name in self._names(folder):
            path = os.path.join(folder, name)
            if (
                os.path.isdir(path)
                and not self._is_left_out(folder, name, "")
                and not self._is_loop(path, (*above, os.path.realpath(folder)))
            ):
                yield path

    def _names(self, folder: str) -> list[str]:
        try:
            return sorted(os.listdir(folder))
        except NotADirectoryError:
            return []
        except PermissionError:
            self._pass_over(NOT_READABLE, folder)
            return []

    def _is_left_out(self, folder: str, name: str, part: str) -> bool:
        """Return whether a name is hidden or begins with `_`, and the part of the glob does not begin in the same way."""
        left_out = name[0] in "._" and not part.startswith(name[0])
        if left_out:
            self._pass_over("hidden, or beginning with _", os.path.join(folder, name))
        return left_out

    def _is_loop(self, path: str, above: tuple[str, ...]) -> bool:
        loop = os.path.realpath(path) in above
        if loop:
            self._pass_over("links to a folder that holds them", path)
        return loop

    def _walk(self, folder: str, above: tuple[str, ...]) -> bool:
        """Add the files below a local folder; return whether it holds any."""
        above = (*above, os.path.realpath(folder))
        if self._is_known(folder):
            return True
        holds = False
        for name in self._names(folder):
            path = os.path.join(folder, name)
            if self._is_left_out(folder, name, ""):
                continue
            if os.path.isdir(path):
                holds |= not self._is_loop(path, above) and self._walk(path, above)
            elif path.endswith(self.suffixes):
                holds |= self._add_local_file(path)
            else:
                self._pass_over("not data by their suffix", path)
        return holds

    def _add_local_file(self, path: str) -> bool:
        try:
            found = os.stat(path)
        except OSError:
            self._pass_over("links to nothing" if os.path.islink(path) else NOT_READABLE, path)
            return False
        if not stat.S_ISREG(found.st_mode):
            self._pass_over(NO_FILES, path)
            return False
        if path not in self.files and not self._is_known(path):
            self.files[path] = File(path, found.st_size, str(found.st_mtime_ns))
        return True

    def _is_known(self, path: str) -> bool:
        """Return whether a file or folder was added before under another path, through a symbolic link."""
        first = self.real.setdefault(os.path.realpath(path), path)
        if first != path:
            self._pass_over("the same as others by a link", path)
        return first != path

    def _add_remote_glob(self, fs: fsspec.AbstractFileSystem, pattern: str) -> bool:
        fixed = GLOB.split(pattern)[0].rpartition("/")[0]
        matched = False
        for name, entry in sorted(fs.glob(python_glob(pattern), detail=True).items()):
            asked = any(part[:1] in ("_", ".") for part in PurePosixPath(pattern).parts)
            below = PurePosixPath(name.removeprefix(fixed).lstrip("/"))
            if not asked and any(part.startswith((".", "_")) for part in below.parts):
                self._pass_over("hidden, or beginning with _", with_scheme(fs, name))
            elif entry["type"] == "directory":
                matched |= self._add_remote_folder(fs, name)
            else:
                matched |= self._add_remote(fs, entry)
        return matched

    def _add_remote_folder(self, fs: fsspec.AbstractFileSystem, root: str) -> bool:
        holds = False
        for name, entry in fs.find(root, detail=True).items():
            if any(part.startswith((".", "_")) for part in PurePosixPath(name).relative_to(root).parts):
                self._pass_over("hidden, or beginning with _", with_scheme(fs, name))
            elif name.endswith(self.suffixes):
                holds |= self._add_remote(fs, entry)
            else:
                self._pass_over("not data by their suffix", with_scheme(fs, name))
        return holds

    def _add_remote(self, fs: fsspec.AbstractFileSystem, entry: dict[str, object]) -> bool:
        url = with_scheme(fs, str(entry["name"]))
        self.files[url] = File(url, int(str(entry["size"])), _stamp(entry))
        return True

    def _pass_over(self, reason: str, name: str) -> None:
        self._passed_over[reason].add(name)


def exists_locally(pattern: str) -> bool:
    """Return whether a local file or folder with exactly this name exists, even if the name has characters of a glob."""
    # Path.exists would raise for a folder without x, and for a name that is too long.
    return "://" not in pattern and os.path.exists(os.path.expanduser(pattern))


def _stamp(entry: Mapping[str, object]) -> str | None:
    return next((str(entry[name]) for name in STAMPS if entry.get(name)), None)


def _missing_hint(path: str) -> str:
    """Return why a path is missing. Below a directory without x, nobody can know whether it exists."""
    for parent in reversed(PurePosixPath(path).parents):
        if os.path.isdir(parent) and not os.access(parent, os.X_OK):
            return f"no permission to look into {parent} (a directory needs r and x)"
    return "no such file or directory"
