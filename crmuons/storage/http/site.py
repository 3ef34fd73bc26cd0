"""The file system of http:// and https:// URLs."""

import asyncio
import logging
import os
import threading
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import aiohttp
from fsspec.asyn import AsyncFileSystem, sync
from yarl import URL

from crmuons.storage.bounds import check_number
from crmuons.storage.http.by_info import ByInfo
from crmuons.storage.http.exchange import steady
from crmuons.storage.http.globs import glob
from crmuons.storage.http.index_pages import entries
from crmuons.storage.http.reading import Reader
from crmuons.storage.http.remote_file import RemoteFile
from crmuons.storage.http.sources import Fault, FinalError
from crmuons.storage.http.web import Web, raise_if_refused

logger = logging.getLogger(__name__)

MAX_PAGE_BYTES = 64 * 2**20  # Largest index page: 500,000 entries.
DATA = (".parquet", ".pq", ".arrow")  # If such a file is listed but missing, that is an error: rows would be lost.

Info = dict[str, Any]


class WebFiles(ByInfo, AsyncFileSystem):  # type: ignore[misc]  # fsspec is untyped
    """Files of web servers, to read. A path is a URL; directories are read from their index pages.

    Raises (all methods):
        FileNotFoundError: if the server says that there is no such file.
        PermissionError: if the server refuses.
        ConnectionError: if no data came for Waits.patience_s (Waits.start_s from a host that never answered).
        FinalError: if a file has changed since it was listed, or a redirect must not be followed.
    """

    cachable = False  # fsspec would keep one instance per thread.
    protocol = ("http", "https")

    def __init__(self) -> None:
        super().__init__()
        self.web = Web(self.loop)
        self.reader = Reader(self.web)

    def __reduce__(self) -> "tuple[Callable[[], WebFiles], tuple[()]]":
        return web_files, ()

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return path.rstrip("/")

    def open(self, path: str, mode: str = "rb", *, size: int | None = None, **_: Any) -> RemoteFile:
        """Open a file for reading; `size` in bytes, if known, saves a request."""
        if mode != "rb":
            _refuse_writing(path)
        # A listing of thousands of files already has their sizes; without `size`, each file would need another request.
        return RemoteFile(self, path, size=self.info(path)["size"] if size is None else size)

    def digest_headers(self, url: str, algorithms: str) -> dict[str, str]:
        """Return the headers `Digest` and `Content-MD5` that a server gives a file, in one request; empty if none."""
        return dict(sync(self.loop, self._digest_headers, url, algorithms))

    async def _digest_headers(self, url: str, algorithms: str) -> dict[str, str]:
        try:
            async with self.web.exchange("HEAD", url, {"Want-Digest": algorithms}) as answer:
                # An error page has other headers.
                given = answer.headers if answer.status == 200 else {}
                return {name: given[name] for name in ("Digest", "Content-MD5") if name in given}
        except (Fault, FinalError):  # If the fault also prevents reading the file, the read will raise it.
            return {}

    async def _cat_file(
        self, path: str, start: int | None = None, end: int | None = None, *, size: int | None = None, **_: Any
    ) -> bytes:
        """Read bytes start .. end - 1 of a file; see `open` for `size`."""
        if size is None:
            size = (await self._info(path))["size"]
        start, end, _step = slice(start, end).indices(size)
        # HTTP cannot express an empty range.
        return await self.reader.read(path, start, end, size) if start < end else b""

    async def _put_file(self, _lpath: str | Path, rpath: str, **_: Any) -> None:
        _refuse_writing(rpath)

    async def _rm_file(self, path: str, **_: Any) -> None:
        _refuse_writing(path)

    async def _makedirs(self, path: str, **_: Any) -> None:
        _refuse_writing(path)

    async def _info(self, path: str, **_: Any) -> Info:
        entry = await self.web.ask(path)
        if entry.is_page:
            return {"name": path.rstrip("/"), "type": "directory", "size": 0}
        # Later reads are compared with this answer, so that the listed version is the version that is read.
        self.reader.note(path, entry)
        # If the server sends no length, only the whole file shows it.
        size = await self.reader.download(path, None) if entry.size is None else entry.size
        return {"name": path, "type": "file", "size": size}

    async def _ls(self, path: str, detail: bool = True, *, most: int | None = None, **_: Any) -> list[Any]:
        html, page = await self._page(path)
        listed = entries(html, page)
        if most is not None:
            check_number(len(listed), path, most)
        # A page instead of a file is usually a login page.
        if not listed and path.endswith(DATA):
            msg = f"{path} answers with a web page that names no file below it, perhaps to log in; give the URL of the file itself"
            raise FinalError(msg)
        if not listed:
            logger.warning(
                "%s is a web page that names no file below it: an empty directory, a login page, or listing is off",
                path,
            )
        # Sizes need a request for each file; REQUESTS_AT_ONCE requests run at the same time.
        answers = await asyncio.gather(*(self._entry(path, name, folder) for name, folder in listed.items()))
        infos = [info for info in answers if info is not None]
        return infos if detail else [info["name"] for info in infos]

    async def _glob(self, path: str, maxdepth: int | None = None, **options: Any) -> Any:
        assert maxdepth is None, "the depth follows from the pattern"
        matches = await glob(path, self._folder, self._limited_ls(path), shown=unquote)
        return matches if options.get("detail") else list(matches)

    async def _folder(self, path: str) -> Info:
        return {"name": path, "type": "directory", "size": 0}  # The listing will show whether it exists.

    async def _entry(self, folder: str, name: str, is_folder: bool) -> Info | None:
        url = f"{folder.rstrip('/')}/{name}"
        if is_folder:
            return {"name": url, "type": "directory", "size": 0}
        try:
            return await self._info(url)
        except FileNotFoundError:
            if url.endswith(DATA):
                raise
            logger.warning("%s is named in the listing of its directory, but the server has no such file", url)
            return None

    async def _page(self, path: str) -> tuple[str, URL]:
        """Return the index page of a directory, and its URL."""
        patience, sources = self.web.patience(path), self.web.sources(path)
        url = path.rstrip("/") + "/"
        while True:
            source = await patience.next(sources)
            try:
                async with self.web.exchange("GET", url, {}) as answer:
                    if answer.status == 404 and url.endswith("/"):  # aiohttp lists a directory without the slash only.
                        url = url.rstrip("/")
                        continue
                    raise_if_refused(path, answer)
                    # Other content is a file, or a listing in an unknown format.
                    if answer.status != 200 or answer.content_type not in ("text/html", "application/xhtml+xml"):
                        msg = f"{path} cannot be listed (HTTP {answer.status}, {answer.content_type}); name the files themselves"
                        raise FinalError(msg)
                    text = await _text(path, answer, self.web.waits.read_s)
                sources.worked(source)
            except Fault as fault:
                patience.record(sources, fault)
            else:
                return text, answer.url


async def _text(path: str, answer: aiohttp.ClientResponse, within_s: float) -> str:
    """Return the text of a page of limited size."""
    encoding = answer.headers.get("Content-Encoding", "identity")
    content = bytearray()
    decoder = None if encoding == "identity" else zlib.decompressobj(zlib.MAX_WBITS | 32)
    async for piece in steady(answer, within_s):
        content += piece if decoder is None else decoder.decompress(piece, MAX_PAGE_BYTES + 1)
        if len(content) > MAX_PAGE_BYTES:
            answer.close()
            msg = f"{path}: its index page is larger than {MAX_PAGE_BYTES >> 20} MiB; name the files themselves"
            raise FinalError(msg)
    return content.decode(answer.charset or "utf-8", errors="replace")


def _refuse_writing(url: str) -> None:
    msg = f"{url}: web servers are read only; write to a directory, pelican://, s3:// or another store"
    raise PermissionError(msg)


_instances: dict[int, WebFiles] = {}
_creating = threading.Lock()


def web_files() -> WebFiles:
    """Return the file system of web servers: one per process, shared by all threads."""
    with _creating:
        if os.getpid() not in _instances:  # A forked child cannot use its parent's connections.
            _instances[os.getpid()] = WebFiles()
        return _instances[os.getpid()]


def _after_fork() -> None:
    global _creating  # noqa: PLW0603  another thread of the parent may have held it
    _creating = threading.Lock()


os.register_at_fork(after_in_child=_after_fork)
