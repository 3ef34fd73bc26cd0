"""Methods that the file systems of web servers and of federations derive from `_info` and `_cat_file` alone."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from crmuons.storage.atomic import atomic_file
from crmuons.storage.bounds import check_number
from crmuons.storage.http.sources import FinalError

COPY_BYTES = 32 * 2**20
MAX_FOLDERS = 10_000  # A limit, because a directory may link to itself under new names without end.


class ByInfo:
    """Methods of an asynchronous fsspec file system; they override the methods of its library.

    fsspec's own `_isfile` and `_isdir` return False for any error of `_info`: a server that is down would have no files.
    """

    if TYPE_CHECKING:  # The file system that inherits this class has these methods.

        async def _info(self, path: str, **_: Any) -> dict[str, Any]: ...

        async def _ls(self, path: str, detail: bool = True, *, most: int | None = None, **_: Any) -> list[Any]: ...

        async def _cat_file(
            self, path: str, start: int | None = None, end: int | None = None, *, size: int | None = None, **_: Any
        ) -> bytes: ...

    async def _get_file(self, rpath: str, lpath: str | Path, **_: Any) -> None:
        """Copy a file to a local path, where it appears once it is complete. For a folder, make a local folder."""
        info, target = await self._info(rpath), Path(lpath)
        if info["type"] == "directory":
            target.mkdir(parents=True, exist_ok=True)
            return
        target.parent.mkdir(parents=True, exist_ok=True)
        with atomic_file(target) as partial, partial.open("wb") as file:
            for start in range(0, info["size"], COPY_BYTES):
                file.write(await self._cat_file(info["name"], start, start + COPY_BYTES, size=info["size"]))

    async def _find(
        self,
        path: str,
        maxdepth: int | None = None,
        withdirs: bool = False,
        *,
        detail: bool = False,
        most: int | None = None,
        **_: Any,
    ) -> Any:
        """Return all files below a directory, sorted. fsspec's own method would leave out a folder that cannot be listed.

        Raises:
            TooMuchError: if there are more than `most` files and folders.
        """
        info = await self._info(path)
        found, folders = ([info], []) if info["type"] == "file" else ([], [info["name"]])
        # Level by level: all folders of a level are listed at once.
        ls, depth = self._limited_ls(path, most), 0
        while folders and (maxdepth is None or depth < maxdepth):
            depth += 1
            levels = await asyncio.gather(*(ls(folder) for folder in folders))
            inside = [entry for level in levels for entry in level]
            folders = [entry["name"] for entry in inside if entry["type"] == "directory"]
            found += [entry for entry in inside if withdirs or entry["type"] == "file"]
        # Each file once, although two pages may link the same file.
        by_name = {entry["name"]: entry for entry in sorted(found, key=lambda entry: str(entry["name"]))}
        return by_name if detail else list(by_name)

    def _limited_ls(self, path: str, most: int | None = None) -> Callable[[str], Awaitable[list[dict[str, Any]]]]:
        """Return `_ls` for one listing of a path; it raises an error for too many directories or files."""
        folders = listed = 0

        async def ls(folder: str) -> list[dict[str, Any]]:
            nonlocal folders, listed
            folders += 1
            if folders > MAX_FOLDERS:
                msg = f"{path} has more than {MAX_FOLDERS} directories, or one that links to itself; name a part of it"
                raise FinalError(msg)
            found = await self._ls(folder, most=most)
            listed += len(found)
            if most is not None:
                check_number(listed, path, most)
            return found

        return ls

    async def _exists(self, path: str, **_: Any) -> bool:
        return await self._type(path) is not None

    async def _isdir(self, path: str) -> bool:
        return await self._type(path) == "directory"

    async def _isfile(self, path: str) -> bool:
        return await self._type(path) == "file"

    async def _type(self, path: str) -> str | None:
        try:
            return str((await self._info(path))["type"])
        except FileNotFoundError:
            return None
