"""What the file systems of web servers and of federations derive from `_info` and `_cat_file` alone."""

from pathlib import Path
from typing import Any

from crmuons.storage.atomic import atomic_file

COPY_BYTES = 32 * 2**20


class ByInfo:
    """Methods of an asynchronous fsspec file system; they stand in front of those of its library.

    With fsspec's own `_isfile` and `_isdir`, any error of `_info` means no: a server that is down would have no files.
    """

    async def _info(self, path: str, **_: Any) -> dict[str, Any]:
        raise NotImplementedError

    async def _cat_file(
        self, path: str, start: int | None = None, end: int | None = None, *, size: int | None = None, **_: Any
    ) -> bytes:
        raise NotImplementedError

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
