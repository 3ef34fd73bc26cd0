"""Find the servers of a federation, and send them requests with the right token."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from typing import IO

import aiohttp
from yarl import URL

from crmuons.storage.http.exchange import (
    DENIED,
    NETWORK_ERRORS,
    TRANSIENT,
    describe,
    fault_of,
    following,
    proxy_of,
    steady,
    trusted_authorities,
)
from crmuons.storage.http.sources import Fault, FinalError, Patience, Source, Sources
from crmuons.storage.pelican.director import Answer, Namespace, director_endpoint, parse_namespace
from crmuons.storage.pelican.refusals import Access, judge_refusal
from crmuons.storage.pelican.tokens import Token, is_below
from crmuons.storage.pelican.waits import Waits

logger = logging.getLogger(__name__)

NAMESPACE_GOOD_FOR_S = 15 * 60.0  # The time for which pelicanfs trusts the director's answer.
# While all caches fail, the director is asked more often, because it may know other caches.
SECONDS_BETWEEN_REFRESHES = 10.0
MAX_ANSWER_BYTES = 2**28  # Enough for a listing of half a million files.
TO_ORIGIN = "/api/v1.0/director/origin"


class Servers:
    """A federation's discovery, director, caches and origins.

    Args:
        host: the federation, HOST or HOST:PORT.
        session: returns the HTTP session, on the event loop that uses it.
        waits: the time limits.
    """

    def __init__(self, host: str, session: Callable[[], Awaitable[aiohttp.ClientSession]], waits: Waits) -> None:
        self.host, self.waits, self._session = host, waits, session
        self._trust = trusted_authorities()
        self._namespaces: dict[str, Namespace] = {}
        self._director: Sources | None = None
        # At the start many threads open files at the same time; only the first asks the director.
        self._asking = asyncio.Lock()
        self.digesting = asyncio.Lock()  # XRootD delays a third concurrent checksum request by 30 s.
        self.no_digest_before: dict[str, float] = {}  # time.monotonic() by namespace prefix.
        self._refreshing: set[asyncio.Task[None]] = set()  # asyncio keeps only weak references to tasks.

    def url(self, path: str) -> str:
        """Return the URL of a path in the federation."""
        return f"pelican://{self.host}{path}"

    @asynccontextmanager
    async def exchange(
        self,
        method: str,
        source: Source,
        path: str,
        *,
        token: Token | None = None,
        headers: Mapping[str, str] | None = None,
        data: IO[bytes] | None = None,
        follow: bool = True,
        within_s: float | None = None,
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """Send one request to one server, and yield its answer. An OSError in the block counts as the server's fault.

        Raises:
            Fault: if the server cannot be reached, interrupts the answer, is overloaded or broken, or refuses.
        """
        session = await self._session()
        url = URL(source.url).with_path(path)
        if token is not None and url.scheme != "https":
            # A fault of this server, because another server of the namespace may use encryption.
            raise Fault(source, "a token is not sent over an unencrypted connection")
        secret = {} if token is None else {"Authorization": f"Bearer {token.value}"}
        try:
            sent = {**(headers or {}), **secret}
            # With a body, aiohttp follows redirects itself, because only it can send the body again.
            async with (
                following(
                    session, method, url, within_s or self.waits.headers_s, headers=sent, data=data, ssl=self._trust
                )
                if follow and data is None
                else session.request(
                    method, url, headers=sent, data=data, ssl=self._trust, allow_redirects=follow, **proxy_of(url)
                )
            ) as answer:
                if answer.status in TRANSIENT | DENIED:
                    raise await fault_of(
                        source, answer, secret=None if token is None else token.value, credential=token
                    )
                yield answer
        # `from None`, because the cause may hold the request's headers with the token.
        except FinalError as error:
            raise Fault(source, str(error), lasting=True) from None
        except NETWORK_ERRORS as error:
            raise Fault(source, describe(error)) from None

    async def request(
        self,
        method: str,
        sources: Sources,
        access: Access,
        patience: Patience,
        *,
        headers: Mapping[str, str] | None = None,
        follow: bool = True,
        within_s: float | None = None,
    ) -> Answer:
        """Repeat a request until a server answers it, with any status that is neither transient nor a refusal.

        Each attempt has `within_s` seconds for the headers of its answer, by default Waits.headers_s.

        Raises:
            PermissionError: if the servers refuse.
            ConnectionError: if patience ran out.
        """
        while True:
            source = await patience.next(sources)
            try:
                token = await access.token(source)
                async with self.exchange(
                    method, source, access.path, token=token, headers=headers, follow=follow, within_s=within_s
                ) as answer:
                    body = await _body(answer, source, self.waits.read_s)
                # Even for 404 the server works; the caller judges the answer.
                sources.worked(source)
                access.accepted(token)
                return Answer(answer.status, answer.headers, body)
            except Fault as fault:
                if fault.status in DENIED:
                    await judge_refusal(fault, access, sources, patience, self.waits.token_s)
                patience.record(sources, fault)

    async def namespace(self, path: str, *, listing: bool) -> Namespace:
        """Return the namespace of a path; the director is asked at first use and again from time to time.

        Args:
            path: any path in the namespace.
            listing: whether to list (at the origin) rather than to read (from caches).

        Raises:
            FileNotFoundError: if the director knows no such namespace.
        """
        async with self._asking:
            known = self._known(path)
            if known is None or (known.origin if listing else known.caches) is None:
                return await self._ask_director(path, listing, Patience(self.waits.patience_s, self.url(path)))
        # In the background: reading continues with the known servers, even if the director is away for hours.
        due_s = SECONDS_BETWEEN_REFRESHES if known.caches and known.caches.all_failing() else NAMESPACE_GOOD_FOR_S
        if time.monotonic() - known.asked_at > due_s:
            known.asked_at = time.monotonic()
            task = asyncio.create_task(self._refresh(path, listing=known.caches is None))
            self._refreshing.add(task)
            task.add_done_callback(self._refreshing.discard)
        return known

    async def upload_target(self, path: str) -> Sources:
        """Ask the director for the origin to which a new file of this path is written.

        Raises:
            OSError: if the director names none.
        """
        patience = Patience(self.waits.patience_s, self.url(path))
        async with self._asking:
            director = await self._find_director()
        answer = await self.request("GET", director, Access(None, TO_ORIGIN + path), patience, follow=False)
        if "Location" not in answer.headers:
            msg = f"{self.url(path)}: the director names no origin to write to (HTTP {answer.status}); check the path"
            raise OSError(msg)
        return Sources.of([str(URL(answer.headers["Location"]).origin())])

    def _known(self, path: str) -> Namespace | None:
        # The longest prefix, because namespaces may contain each other and need different tokens.
        holding = [namespace for namespace in self._namespaces.values() if is_below(path, namespace.prefix)]
        return max(holding, key=lambda namespace: len(namespace.prefix), default=None)

    async def _find_director(self) -> Sources:
        if self._director is None:
            where = "/.well-known/pelican-configuration"
            what = f"pelican://{self.host}: asking https://{self.host}{where}"
            # A short time limit: this is the first request, and finds a name with a typing error.
            patience = Patience(self.waits.start_s, what, "CRMUONS_PELICAN_START_S")
            try:
                # Also if the name is not found for minutes, or the host takes the connection and says nothing.
                async with asyncio.timeout(self.waits.start_s + 1.0):
                    answer = await self.request(
                        "GET",
                        Sources.of([f"https://{self.host}"]),
                        Access(None, where),
                        patience,
                        within_s=self.waits.start_s,
                    )
            except TimeoutError as error:
                msg = (
                    f"{what}: no answer in {self.waits.start_s:.0f} s; check the host's name and that it is up, or wait "
                    "longer with CRMUONS_PELICAN_START_S"
                )
                raise ConnectionError(msg) from error
            self._director = Sources.of([director_endpoint(self.host, answer)])
        return self._director

    async def _ask_director(self, path: str, listing: bool, patience: Patience) -> Namespace:
        director = await self._find_director()
        answer = await self.request(
            "PROPFIND" if listing else "GET", director, Access(None, path), patience, follow=False
        )
        at_origin = answer.status == 404 and not listing  # Perhaps no cache is up.
        if at_origin:
            answer = await self.request("GET", director, Access(None, TO_ORIGIN + path), patience, follow=False)
        namespace = parse_namespace(self.host, answer, self._namespaces, listing=listing)
        if namespace is None:
            msg = (
                f"{self.url(path)}: the director knows no such file or namespace (HTTP {answer.status}); check the path"
            )
            raise FileNotFoundError(msg)
        if at_origin:  # Ask for caches again soon: the origin should not serve all reads.
            namespace.asked_at -= NAMESPACE_GOOD_FOR_S - SECONDS_BETWEEN_REFRESHES
        self._namespaces[namespace.prefix] = namespace
        return namespace

    async def _refresh(self, path: str, *, listing: bool) -> None:
        """Ask the director again in the background, once, so that a slow or dead director delays no read."""
        try:
            await self._ask_director(path, listing, Patience(0, self.url(path)))
        except OSError as error:
            logger.info("%s: continuing with the known servers", error)
        except RuntimeError as error:
            # Python is ending: the threads that look names up take no more work, and nobody reads any more.
            if "cannot schedule new futures" not in str(error):
                raise


async def _body(answer: aiohttp.ClientResponse, source: Source, within_s: float) -> bytes:
    """Return the body of an answer, which may have no end.

    Raises:
        ValueError: if it is longer than MAX_ANSWER_BYTES.
    """
    content = bytearray()
    async for piece in steady(answer, within_s):
        content += piece
        if len(content) > MAX_ANSWER_BYTES:
            answer.close()
            msg = f"{source.url} sends an answer of more than {MAX_ANSWER_BYTES >> 20} MiB; name a folder with fewer files"
            raise ValueError(msg)  # An OSError would count as a fault that passes.
    return bytes(content)
