"""Send requests to web servers: one session for all hosts, retries, and the description of a URL from an answer."""

import asyncio
import weakref
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import aiohttp
from fsspec.implementations.http import HTTPFileSystem
from yarl import URL

from crmuons.storage.http.exchange import (
    DENIED,
    NETWORK_ERRORS,
    TRANSIENT,
    describe,
    fault_of,
    following,
    trusted_authorities,
)
from crmuons.storage.http.sources import Fault, FinalError, Patience, Sources
from crmuons.storage.http.waits import Waits

REQUESTS_AT_ONCE = 16
PLAIN = {"Accept-Encoding": "identity"}  # Lengths and ranges must be those of the file, not of a compressed form.
MISSING = frozenset({404, 410})


@dataclass(frozen=True)
class Version:
    """Values that change when a file is replaced: its ETag and its date of change. They are empty if the server gives none."""

    etag: str
    changed: str

    @classmethod
    def of(cls, answer: aiohttp.ClientResponse) -> "Version":
        """Return the version in an answer's headers."""
        return cls(answer.headers.get("ETag", ""), answer.headers.get("Last-Modified", ""))

    def differs(self, other: "Version") -> bool:
        """Return whether two answers are about different contents."""
        # Only values that both answers have count, because a server behind a load balancer may leave one out.
        pairs = ((self.etag, other.etag), (self.changed, other.changed))
        return any(mine and theirs and mine != theirs for mine, theirs in pairs)


@dataclass(frozen=True)
class Entry:
    """A server's description of a URL.

    Attributes:
        is_page: whether it is a web page, which may list a directory.
        has_ranges: whether the server sends ranges of it.
        size: size in bytes; None if the server does not give it.
        version: the version of the file.
        url: the URL after all redirects.
    """

    is_page: bool
    has_ranges: bool
    size: int | None
    version: Version
    url: URL


class Web:
    """Web servers. Proxies come from `https_proxy`, `http_proxy` and `no_proxy`; user and password from `~/.netrc`.

    Args:
        loop: the event loop that its methods run on.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.waits = Waits.from_environment()
        self._loop, self._trust = loop, trusted_authorities()
        self._session: aiohttp.ClientSession | None = None
        self._hosts: dict[str, Sources] = {}
        # Hosts that have answered. A typing error in a host must end soon; a host that has worked gets more time.
        self._answered: set[str] = set()
        self._at_once = asyncio.Semaphore(REQUESTS_AT_ONCE)

    def sources(self, url: str) -> Sources:
        """Return the server of a URL, as the only source of its files."""
        host = str(URL(url).origin())
        return self._hosts.setdefault(host, Sources.of([host]))

    def patience(self, url: str) -> Patience:
        """Return the time limit of an operation on a URL: short for a host that never answered."""
        if str(URL(url).origin()) in self._answered:
            return Patience(self.waits.patience_s, url, "CRMUONS_HTTP_PATIENCE_S")
        return Patience(self.waits.start_s, url, "CRMUONS_HTTP_START_S")

    @asynccontextmanager
    async def exchange(self, method: str, url: str, headers: dict[str, str]) -> AsyncIterator[aiohttp.ClientResponse]:
        """Send one request, and yield its answer. A network error in the block counts as the server's fault.

        Raises:
            Fault: if the server cannot be reached, interrupts the answer, or is overloaded or broken.
            FinalError: if repeating is useless.
        """
        # A URL names one host, so there is no other server.
        (source,) = self.sources(url).sources
        try:
            session = await self._open_session()
            # Each request demands this, because some servers compress all that they can.
            sent = {**PLAIN, **headers}
            timeout = self._timeout(known=source.url in self._answered)
            options = {"ssl": self._trust, "timeout": timeout}
            async with (
                self._at_once,
                following(session, method, URL(url), self.waits.headers_s, headers=sent, **options) as answer,
            ):
                if answer.status in TRANSIENT:
                    raise await fault_of(source, answer)
                self._answered.add(source.url)
                yield answer
        except (FinalError, FileNotFoundError, PermissionError):
            raise
        except aiohttp.ClientConnectorCertificateError as error:
            # A certificate does not become valid by waiting.
            msg = f"{url}: {describe(error)}"
            raise FinalError(msg) from None
        except NETWORK_ERRORS as error:
            raise Fault(source, describe(error)) from None

    async def ask(self, url: str) -> Entry:
        """Request the first byte of a URL to describe it. Unlike HEAD, this works with signed URLs and gives the total size.

        Raises:
            FileNotFoundError, PermissionError, OSError: if the server has no such file, refuses, or answers otherwise.
            ConnectionError: if it does not answer in time.
        """
        patience, sources = self.patience(url), self.sources(url)
        while True:
            source = await patience.next(sources)
            try:
                # One byte shows more than a HEAD: the total size, and whether ranges work at all.
                async with self.exchange("GET", url, {"Range": "bytes=0-0"}) as answer:
                    entry = _entry(url, answer)
                    # The body is the whole file, or a page: nobody reads it here.
                    if answer.status != 206:
                        answer.close()  # Without reading the rest of the file.
                sources.worked(source)
            except Fault as fault:
                patience.record(sources, fault)
            else:
                return entry

    def _timeout(self, *, known: bool) -> aiohttp.ClientTimeout:
        # The whole answer has no limit, because a large file may take an hour; each read has one. Looking up the name of a
        # host has no separate limit; it is part of the first connection.
        connect_s = None if known else self.waits.start_s
        return aiohttp.ClientTimeout(
            total=None, connect=connect_s, sock_connect=self.waits.connect_s, sock_read=self.waits.read_s
        )

    async def _open_session(self) -> aiohttp.ClientSession:
        if self._session is None:
            self._session = aiohttp.ClientSession(trust_env=True, auto_decompress=False)
            weakref.finalize(self, HTTPFileSystem.close_session, self._loop, self._session)
        return self._session


def raise_if_refused(url: str, answer: aiohttp.ClientResponse) -> None:
    """Raise if a server says that a file is missing, or refuses it.

    Raises:
        FileNotFoundError, PermissionError: with the remedy.
    """
    if answer.status in MISSING:
        msg = f"{url}: no such file or directory at the server (HTTP {answer.status}); check the path"
        raise FileNotFoundError(msg)
    if answer.status in DENIED:
        host = URL(url).host
        msg = (
            f"{url}: the server refuses (HTTP {answer.status}); check the path, or write 'machine {host} login USER"
            " password PASSWORD' in ~/.netrc"
        )
        raise PermissionError(msg)


def _entry(url: str, answer: aiohttp.ClientResponse) -> Entry:
    raise_if_refused(url, answer)
    # The number after the slash is the size of the whole file; it is * if the server does not know it.
    total = answer.headers.get("Content-Range", "").rpartition("/")[2]
    size = int(total) if answer.status in (206, 416) and total.isdigit() else None
    if answer.status == 200 and answer.headers.get("Content-Encoding", "identity") == "identity":
        size = answer.content_length
    elif answer.status not in (200, 206) and size != 0:  # 416: an empty file has no first byte.
        msg = f"{url} cannot be read: the server answered HTTP {answer.status}"
        raise FinalError(msg)
    # A URL that ends with .html names a page as a file. Any other page is a listing, a login or an error.
    named_page = answer.url.path.endswith((".html", ".htm"))
    is_page = answer.content_type in ("text/html", "application/xhtml+xml") and not named_page
    return Entry(is_page, answer.status != 200, size, Version.of(answer), answer.url)
