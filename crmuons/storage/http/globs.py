"""Globs over a remote tree that list only the folders that can hold a match."""

import asyncio
import re
from collections.abc import Awaitable, Callable
from fnmatch import fnmatchcase
from functools import partial
from typing import Any

Entry = dict[str, Any]
ListFolder = Callable[[str], Awaitable[list[Entry]]]


async def glob(
    pattern: str, stat: Callable[[str], Awaitable[Entry]], ls: ListFolder, shown: Callable[[str], str] = str
) -> dict[str, Entry]:
    """Return the entries that match a pattern, by their paths, sorted.

    `*`, `?` and `[...]` match within a path component. A component `**` matches any number of folders.

    Args:
        pattern: an absolute path with wildcards.
        stat: returns the entry of a path, or raises FileNotFoundError.
        ls: returns the entries in a folder.
        shown: turns the last component of a path into the name that a pattern is compared with.
    """
    root, components = split_pattern(pattern)
    try:
        matches = {root: await stat(root)}
    # No match, like in a shell; the caller's error names the pattern.
    except FileNotFoundError:
        matches = {}
    for i, component in enumerate(components):
        # Components are matched one after the other, so a folder whose name does not match is never listed.
        step = _descend if component == "**" else partial(_match, shown)
        folders = [path for path, entry in matches.items() if entry["type"] == "directory"]
        with_files = i == len(components) - 1
        levels = await asyncio.gather(*(step(ls, folder, component, with_files) for folder in folders))
        matches = {entry["name"]: entry for entries in levels for entry in entries}
    return dict(sorted(matches.items()))


async def _match(
    shown: Callable[[str], str], ls: ListFolder, folder: str, component: str, with_files: bool
) -> list[Entry]:
    entries = [entry for entry in await ls(folder) if with_files or entry["type"] == "directory"]
    return [entry for entry in entries if fnmatchcase(shown(entry["name"].rpartition("/")[2]), component)]


async def _descend(ls: ListFolder, folder: str, component: str, with_files: bool) -> list[Entry]:
    """Return a folder and every folder below it, and the files in them if wanted."""
    entries = await ls(folder)
    folders = [entry["name"] for entry in entries if entry["type"] == "directory"]
    deeper = await asyncio.gather(*(_descend(ls, inside, component, with_files) for inside in folders))
    # `**` also matches zero folders, so a folder counts as below itself.
    own: list[Entry] = [{"name": folder, "type": "directory", "size": 0}]
    own += [entry for entry in entries if with_files and entry["type"] == "file"]
    return own + [entry for below in deeper for entry in below]


def split_pattern(path: str) -> tuple[str, list[str]]:
    """Split a pattern into the folder above its first wildcard, and the path components from there on.

    Raises:
        ValueError: if `**` is only a part of a component.
    """
    parts = path.split("/")
    first = next(i for i, part in enumerate(parts) if re.search(r"[*?\[]", part))
    for part in parts[first:]:
        if "**" in part and part != "**":
            msg = f"'{path}': '**' must stand alone between slashes, as in /data/**/*.parquet"
            raise ValueError(msg)
    return "/".join(parts[:first]) or "/", parts[first:]
