"""The file system of a federation: pelicanfs' file system with fault-tolerant reading, listing and writing.

pelicanfs implements the protocol (addresses, the director's headers) and fsspec the file system interface. This module
decides which server to ask, for how long, and which answers to trust.
"""

import asyncio
import os
import threading
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import aiohttp
from fsspec.asyn import AsyncFileSystem, sync
from pelicanfs.core import PelicanFileSystem

from crmuons.storage.changed import ChangedError
from crmuons.storage.http.by_info import ByInfo
from crmuons.storage.http.exchange import DENIED, checked_redirects, steady
from crmuons.storage.http.globs import glob
from crmuons.storage.http.ranges import check_range
from crmuons.storage.http.remote_file import RemoteFile
from crmuons.storage.http.sources import Fault, Patience, Source, Sources
from crmuons.storage.pelican.addresses import split_url
from crmuons.storage.pelican.director import Namespace
from crmuons.storage.pelican.refusals import Access, judge_refusal
from crmuons.storage.pelican.servers import Servers
from crmuons.storage.pelican.tokens import Token
from crmuons.storage.pelican.waits import Waits
from crmuons.storage.pelican.webdav import check_inside, parse_listing
from crmuons.storage.pelican.writing import Writer

# A glob over hundreds of folders would otherwise ask an origin for all at once.
LISTINGS_AT_ONCE = 16


class Federation(ByInfo, PelicanFileSystem):  # type: ignore[misc]  # pelicanfs is untyped
    """The files of one federation.

    Files are read as HTTP ranges of checked length. A failed range continues at the next cache from the byte where it
    stopped, with backoff, until no data has come for Waits.patience_s. Tokens are looked up for each request. A pickle
    holds only the federation's host.

    Raises (all methods):
        FileNotFoundError: if the origin, not only a cache, says that there is no such file.
        PermissionError: if the servers refuse, with the token that was sent and the remedy.
        ConnectionError: if no data came for Waits.patience_s, with the last fault.
    """

    cachable = False  # fsspec would keep one instance per thread.

    def __init__(self, host: str) -> None:
        self.host, self.waits = host, Waits.from_environment()
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=self.waits.connect_s, sock_read=self.waits.read_s)
        options = {"timeout": timeout, "trace_configs": [checked_redirects()]}
        super().__init__(f"pelican://{host}/", client_kwargs=options)
        self.servers = Servers(host, self.http_file_system.set_session, self.waits)
        # The writer gets sizes from the origin, because caches do not know a new file.
        self.writer = Writer(self.servers, self._size)
        self._listings = asyncio.Semaphore(LISTINGS_AT_ONCE)

    def __reduce__(self) -> "tuple[Callable[[str], Federation], tuple[str]]":
        return _federation, (self.host,)

    def url(self, path: str) -> str:
        """Return the URL of a path."""
        return self.servers.url(path)

    def namespace(self, path: str) -> Namespace:
        """Ask the director for the namespace of a path."""
        return sync(self.loop, self.servers.namespace, path, listing=True)

    def open(self, path: str, mode: str = "rb", *, size: int | None = None, **_: Any) -> "RemoteFile":
        """Open a file for reading.

        Args:
            path: the file's path.
            mode: "rb" only; files are written whole, by `put_file`.
            size: the size in bytes, if known; it saves a request.
        """
        if mode != "rb":
            msg = f"{self.url(path)}: files of a federation are read with mode 'rb' and written whole; mode is '{mode}'"
            raise ValueError(msg)
        return RemoteFile(self, self._check_fspath(path), size=size)

    async def _cat_file(
        self, path: str, start: int | None = None, end: int | None = None, *, size: int | None = None, **_: Any
    ) -> bytes:
        """Read bytes start .. end - 1 of a file; see `open` for `size`."""
        path = self._check_fspath(path)
        if size is None:
            size = (await self._info(path))["size"]
        # Like a Python slice: negative and missing ends count from the end of the file.
        start, end, _step = slice(start, end).indices(size)
        # Received pieces are kept: the next server continues from the byte after them.
        pieces: list[bytes] = []
        patience = Patience(self.waits.patience_s, self.url(path))
        while start < end:
            namespace = await self.servers.namespace(path, listing=False)
            assert namespace.caches is not None
            access = Access(namespace, path)
            source = await patience.next(namespace.caches)
            token = await access.token(source)
            try:
                async for piece in self._range(access, source, token, range(start, end), size):
                    pieces.append(piece)
                    start += len(piece)
                    patience.progress()
                    access.accepted(token)
                    namespace.caches.worked(source)  # Even if it fails later, ask it again soon.
            except Fault as fault:
                await self._judge(fault, access, namespace.caches, size, patience)
                patience.record(namespace.caches, fault)
        return b"".join(pieces)

    async def _range(
        self, access: Access, source: Source, token: Token | None, span: range, size: int
    ) -> AsyncIterator[bytes]:
        """Yield a range in pieces from one server, and raise a Fault if it stops early."""
        headers = {"Range": f"bytes={span[0]}-{span[-1]}", "Accept-Encoding": "identity"}
        async with self.servers.exchange("GET", source, access.path, token=token, headers=headers) as answer:
            # A cache may hold another version, which its total size shows.
            check_range(answer, source, span[0], size)
            left = len(span)
            async for piece in steady(answer, self.waits.read_s):
                yield piece[:left]
                left -= len(piece)
                if left < 0:  # A server that ignores ranges sends the whole file.
                    return
        if left:
            raise Fault(source, f"the body ended {left} bytes too early")

    async def _judge(self, fault: Fault, access: Access, caches: Sources, size: int, patience: Patience) -> None:
        """Raise an error if a fault is final: a permanent refusal, or a file that is missing or changed at the origin."""
        # The fault may come from the token, from this server, or from the file; the first two may be temporary.
        if fault.status in DENIED:
            await judge_refusal(fault, access, caches, patience, self.waits.token_s)
        # After a fault of the network, the next server may have the file.
        if not fault.doubtful:
            return
        # The origin decides, because caches keep old content.
        origin_size = (await self._info(access.path))["size"]
        if origin_size != size:
            msg = (
                f"{self.url(access.path)} has changed while in use: {size} bytes when it was listed, {origin_size} now;"
                " list it again"
            )
            raise ChangedError(msg)

    async def _put_file(self, lpath: str | Path, rpath: str, **_: Any) -> None:
        """Copy a local file to a new name; see Writer.put."""
        await self.writer.put(Path(lpath), self._check_fspath(rpath))

    def rm_file(self, path: str) -> None:
        """Remove a file or an empty folder; see Writer.remove."""
        sync(self.loop, self.writer.remove, self._check_fspath(path))

    def check_writable(self, path: str) -> bool:
        """Return whether a token's scopes show that it allows writing here; False if only a test write can show it.

        Raises:
            PermissionError: if there is no token, or its scopes do not allow it.
        """
        return bool(sync(self.loop, self.writer.check, self._check_fspath(path)).names_storage)

    async def _makedirs(self, path: str, exist_ok: bool = False) -> None:
        """Do nothing, because an origin makes the folders of the files that it receives."""

    async def _info(self, path: str, **_: Any) -> dict[str, Any]:
        path = self._check_fspath(path)
        # Without listings, only a cache can be asked, and only about one file by its name.
        if (await self.servers.namespace(path, listing=True)).origin is None:
            return await self._head(path)
        return await self._entry(path) | {"name": path}

    async def _head(self, path: str) -> dict[str, Any]:
        """Ask the caches about a file in a namespace without listings."""
        namespace = await self.servers.namespace(path, listing=False)
        assert namespace.caches is not None
        patience = Patience(self.waits.patience_s, self.url(path))
        answer = await self.servers.request("HEAD", namespace.caches, Access(namespace, path), patience)
        if answer.status != 200 or not answer.headers.get("Content-Length", "").isdigit():
            msg = (
                f"{self.url(path)}: no such file (HTTP {answer.status}); check the path, which must name one file:"
                f" {namespace.prefix} gives no listings"
            )
            raise FileNotFoundError(msg)
        return {"name": path, "type": "file", "size": int(answer.headers["Content-Length"])}

    async def _size(self, path: str) -> int | None:
        """Return the size of a file; None if it does not exist."""
        try:
            return int((await self._info(path))["size"])
        except FileNotFoundError:
            return None

    async def _ls(self, path: str, detail: bool = True, **_: Any) -> list[Any]:
        path = self._check_fspath(path).rstrip("/")
        async with self._listings:
            entries = await self._propfind(path, depth=1)
        # A WebDAV listing also contains the listed folder itself.
        inside = [entry for entry in entries if entry["name"] != path]
        listed = inside if inside or entries[0]["type"] == "directory" else entries
        return listed if detail else [entry["name"] for entry in listed]

    # These use the methods above; pelicanfs' own versions would ask the servers themselves.
    _walk = AsyncFileSystem._walk
    _find = ByInfo._find
    _du = AsyncFileSystem._du
    _cat = AsyncFileSystem._cat
    _get = AsyncFileSystem._get
    _expand_path = AsyncFileSystem._expand_path
    open_async = AsyncFileSystem.open_async

    async def _glob(self, path: str, maxdepth: int | None = None, **options: Any) -> Any:
        assert maxdepth is None, "the depth follows from the pattern"
        matches = await glob(self._check_fspath(path), self._entry, self._limited_ls(path))
        return matches if options.get("detail") else list(matches)

    async def _entry(self, path: str) -> dict[str, Any]:
        return (await self._propfind(path, depth=0))[0]

    async def _propfind(self, path: str, depth: int) -> list[dict[str, Any]]:
        """Ask the origin for the entry of a path and, with depth 1, the entries inside it."""
        namespace = await self.servers.namespace(path, listing=True)
        if namespace.origin is None:
            msg = f"{self.url(path)} cannot be listed: {namespace.prefix} gives no listings; name the files themselves"
            raise OSError(msg)
        patience = Patience(self.waits.patience_s, self.url(path))
        answer = await self.servers.request(
            "PROPFIND", namespace.origin, Access(namespace, path), patience, headers={"Depth": str(depth)}
        )
        if answer.status == 404:
            msg = f"{self.url(path)}: no such file or directory at the origin; check the path"
            raise FileNotFoundError(msg)
        if answer.status != 207:
            msg = f"{self.url(path)} cannot be listed: {namespace.origin.best().url} answered HTTP {answer.status}"
            raise OSError(msg)
        try:
            entries = parse_listing(answer.body)
            check_inside(entries, path)
        except ValueError as error:
            msg = f"{self.url(path)} cannot be listed at {namespace.origin.best().url}: {error}"
            raise ValueError(msg) from error
        return entries


_federations: dict[tuple[int, str], Federation] = {}
_creating = threading.Lock()


def filesystem(url: str) -> Federation:
    """Return the file system of a URL's federation: one per process and federation, shared by all threads."""
    return _federation(split_url(url)[0])


def _federation(host: str) -> Federation:
    with _creating:
        key = (os.getpid(), host)  # A forked child cannot use its parent's connections.
        if key not in _federations:
            _federations[key] = Federation(host)
        return _federations[key]


def _after_fork() -> None:
    global _creating  # noqa: PLW0603  another thread of the parent may have held it
    _creating = threading.Lock()


os.register_at_fork(after_in_child=_after_fork)
