"""The servers of a federation: which there are, asking them with the right token, and what a refusal means."""

import asyncio
import json
import logging
import os
import re
import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO
from urllib.parse import urlsplit

import aiohttp
from pelicanfs.dir_header_parser import parse_director_response
from yarl import URL

from crmuons.storage.pelican import login
from crmuons.storage.pelican.sources import Fault, Patience, Source, Sources, retry_after_s
from crmuons.storage.pelican.tokens import Operation, Token, choose, find_tokens, is_below, places
from crmuons.storage.pelican.waits import Waits

logger = logging.getLogger(__name__)

NAMESPACE_GOOD_FOR_S = 15 * 60.0  # As long as pelicanfs believes the director.
SECONDS_BETWEEN_REFRESHES = 10.0
TRANSIENT = frozenset({408, 425, 429, 500, 502, 503, 504})
DENIED = frozenset({401, 403})
NETWORK_ERRORS = (aiohttp.ClientError, asyncio.TimeoutError, OSError)
TO_ORIGIN = "/api/v1.0/director/origin"


@dataclass
class Namespace:
    """What the director says of a part of the federation.

    Attributes:
        prefix: where it begins.
        needs_token: whether reading takes a token; writing always does.
        issuers: whose tokens its servers take; empty if the director does not say.
        base_paths: what the scopes of tokens are relative to.
        scope_depth: how many folders deep its issuer lets scopes go, None for any number.
        origin: where listings are asked for, None where there are none.
        caches: where files are read, None until somebody asked.
        accepted: the token that a server took last.
    """

    prefix: str
    needs_token: bool
    issuers: list[str]
    base_paths: list[str]
    scope_depth: int | None
    origin: Sources | None
    caches: Sources | None
    accepted: Token | None = None
    asked_at: float = field(default_factory=time.monotonic)


@dataclass(frozen=True)
class Access:
    """What is wanted: to read or to write this path. Without a namespace it is a question to the director."""

    namespace: Namespace | None
    path: str
    operation: Operation = "read"

    def accepted(self, token: Token | None) -> None:
        """A server answered a request with this token."""
        if token is not None and self.namespace is not None:
            self.namespace.accepted = token


@dataclass(frozen=True)
class Answer:
    """An HTTP answer that has been read."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class Servers:
    """A federation's discovery, director, caches and origins.

    Args:
        host: the federation, HOST or HOST:PORT.
        session: gives the HTTP session, on the loop that will use it.
        waits: how long to wait for what.
    """

    def __init__(self, host: str, session: Callable[[], Awaitable[aiohttp.ClientSession]], waits: Waits) -> None:
        self.host, self.waits, self._session = host, waits, session
        named = os.environ.get("SSL_CERT_FILE")
        if named and not Path(named).is_file():  # OpenSSL passes over it in silence.
            msg = f"SSL_CERT_FILE is '{named}', and there is no such file; give your authority's PEM file, or unset it"
            raise ValueError(msg)
        self._trust = ssl.create_default_context()  # Reads SSL_CERT_FILE now; aiohttp's own did when it was imported.
        self._namespaces: dict[str, Namespace] = {}
        self._director: Sources | None = None
        self._asking = asyncio.Lock()
        self.digesting = asyncio.Lock()  # XRootD makes who asks for a third checksum at once wait for 30 s.
        self.no_digest_before: dict[str, float] = {}  # By namespace; time.monotonic().
        self._refreshing: set[asyncio.Task[None]] = set()  # Tasks live only as long as somebody holds them.

    def url(self, path: str) -> str:
        """The URL of a path in the federation."""
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
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """One request to one server. An OSError in the block counts as the server's.

        Raises:
            Fault: if the server cannot be reached, breaks off, is overloaded or broken, or refuses.
        """
        session = await self._session()
        url = URL(source.url).with_path(path)
        if token is not None and url.scheme != "https":
            raise Fault(source, "it would get a token over a connection that is not encrypted")
        secret = {} if token is None else {"Authorization": f"Bearer {token.value}"}
        try:
            async with session.request(
                method, url, headers={**(headers or {}), **secret}, data=data, ssl=self._trust, allow_redirects=follow
            ) as answer:
                if answer.status in TRANSIENT | DENIED:
                    raise await _fault(source, answer, token)
                yield answer
        # Without the cause: it may hold the request's headers, and so the token.
        except NETWORK_ERRORS as error:
            raise Fault(source, _describe(error)) from None

    async def request(
        self,
        method: str,
        sources: Sources,
        access: Access,
        patience: Patience,
        *,
        headers: Mapping[str, str] | None = None,
        follow: bool = True,
    ) -> Answer:
        """A request that is repeated until a server answers it, whatever the answer."""
        while True:
            source = await patience.next(sources)
            try:
                token = await self.token(access)
                async with self.exchange(
                    method, source, access.path, token=token, headers=headers, follow=follow
                ) as answer:
                    body = await answer.read()
                sources.worked(source)
                access.accepted(token)
                return Answer(answer.status, answer.headers, body)
            except Fault as fault:
                if fault.status in DENIED:
                    await self.refused(fault, access, sources, patience)
                patience.record(sources, fault)

    async def namespace(self, path: str, *, listing: bool) -> Namespace:
        """What the director says of the namespace of a path; asked once in a while.

        Args:
            path: any path in it.
            listing: whether it is for a listing (at the origin), rather than for reading (at the caches).

        Raises:
            FileNotFoundError: if the director knows no such namespace.
        """
        async with self._asking:
            known = self._known(path)
            if known is None or (known.origin if listing else known.caches) is None:
                return await self._ask_director(path, listing, Patience(self.waits.patience_s, self.url(path)))
        due_s = SECONDS_BETWEEN_REFRESHES if known.caches and known.caches.all_failing() else NAMESPACE_GOOD_FOR_S
        if time.monotonic() - known.asked_at > due_s:
            known.asked_at = time.monotonic()
            task = asyncio.create_task(self._refresh(path, listing=known.caches is None))
            self._refreshing.add(task)
            task.add_done_callback(self._refreshing.discard)
        return known

    async def upload_target(self, path: str) -> Sources:
        """The origin that takes a new file of this path."""
        patience = Patience(self.waits.patience_s, self.url(path))
        async with self._asking:
            director = await self._find_director()
        answer = await self.request("GET", director, Access(None, TO_ORIGIN + path), patience, follow=False)
        if "Location" not in answer.headers:
            msg = f"{self.url(path)}: the director names no origin to write to (HTTP {answer.status}); check the path"
            raise OSError(msg)
        return Sources.of([str(URL(answer.headers["Location"]).origin())])

    async def token(self, access: Access) -> Token | None:
        """The token to send, looked up now; None where none is needed or none fits."""
        namespace = access.namespace
        if namespace is None or (access.operation == "read" and not namespace.needs_token):
            return None
        # In a thread: a stored login may be renewed at its issuer.
        return await asyncio.to_thread(_find_token, namespace, access)

    async def refused(self, fault: Fault, access: Access, sources: Sources, patience: Patience) -> None:
        """Decide on a refusal: return if another server or another token may do better.

        Raises:
            PermissionError: if not, with what was tried and what to do.
        """
        sent, namespace = fault.credential, access.namespace
        if namespace is None:
            msg = f"{patience.what}: {fault}; a federation answers such requests without a token: check the URL"
            raise PermissionError(msg)
        if not isinstance(sent, Token):
            namespace.needs_token = True
            if await self.token(access) is None and not self._may_come_back(fault, namespace, patience):
                raise PermissionError(self.no_token(patience.what, namespace))
        elif sent.expired():
            if patience.since_first("token expired") > self.waits.token_s:
                msg = (
                    f"{patience.what}: permission denied with {sent}, and it was not renewed; {_remedy(patience.what)}"
                )
                raise PermissionError(msg)
            fault.retry_after_s = 1.0
        else:
            patience.refused.add((fault.source.url, sent))
            everywhere = all((source.url, sent) in patience.refused for source in sources.sources)
            if everywhere and (sent == namespace.accepted or not self._may_come_back(fault, namespace, patience)):
                msg = f"{patience.what}: permission denied ({fault}) with {sent}; {_remedy(patience.what)}"
                raise PermissionError(msg)

    def _may_come_back(self, fault: Fault, namespace: Namespace, patience: Patience) -> bool:
        """Whether to wait for a good token: there was one, and whoever renews it may be in the middle of it."""
        if namespace.accepted is None or patience.since_first("token replaced") > self.waits.token_s:
            return False
        fault.retry_after_s = 1.0
        return True

    def no_token(self, what: str, namespace: Namespace) -> str:
        """The sentence that says that no token fits."""
        others = [token for token in find_tokens() if token.issuer not in (None, *namespace.issuers)]
        wanted = f"a token of {' or '.join(namespace.issuers) or 'its issuer'}"
        found = f"found {others[0]}, issued by {others[0].issuer}" if others else f"looked in {places()}"
        return f"{what}: {namespace.prefix} takes {wanted}; {found}; {_remedy(what)}"

    def _known(self, path: str) -> Namespace | None:
        holding = [each for each in self._namespaces.values() if is_below(path, each.prefix)]
        return max(holding, key=lambda each: len(each.prefix), default=None)

    async def _find_director(self) -> Sources:
        if self._director is None:
            where = "/.well-known/pelican-configuration"
            what = f"pelican://{self.host}: asking https://{self.host}{where}"
            patience = Patience(self.waits.start_s, what, "CRMUONS_PELICAN_START_S")
            answer = await self.request("GET", Sources.of([f"https://{self.host}"]), Access(None, where), patience)
            self._director = Sources.of([_director_endpoint(self.host, answer)])
        return self._director

    async def _ask_director(self, path: str, listing: bool, patience: Patience) -> Namespace:
        director = await self._find_director()
        answer = await self.request(
            "PROPFIND" if listing else "GET", director, Access(None, path), patience, follow=False
        )
        at_origin = answer.status == 404 and not listing  # No cache is up, perhaps.
        if at_origin:
            answer = await self.request("GET", director, Access(None, TO_ORIGIN + path), patience, follow=False)
        namespace = self._parse(answer, listing)
        if namespace is None:
            msg = (
                f"{self.url(path)}: no such file or namespace, says the director (HTTP {answer.status}); check the path"
            )
            raise FileNotFoundError(msg)
        if at_origin:  # Ask for caches again soon: the origin is not there to be read by all.
            namespace.asked_at -= NAMESPACE_GOOD_FOR_S - SECONDS_BETWEEN_REFRESHES
        self._namespaces[namespace.prefix] = namespace
        return namespace

    async def _refresh(self, path: str, *, listing: bool) -> None:
        """Ask again, once, while reading goes on: a director that is slow or down holds nobody up."""
        try:
            await self._ask_director(path, listing, Patience(0, self.url(path)))
        except OSError as error:
            logger.info("%s: going on with the servers known before", error)

    def _parse(self, answer: Answer, listing: bool) -> Namespace | None:
        """The namespace that a director's answer names, with what was known of it before."""
        response = parse_director_response(answer.headers)
        said = response.x_pel_ns_hdr
        object_servers = _linked(answer.headers.get("Link", ""))
        if said is None or not object_servers:
            return None
        old = self._namespaces.get(said.namespace)
        old_origin, old_caches = (old.origin, old.caches) if old else (None, None)
        caches = old_caches if listing else Sources.of(map(_server, object_servers), old_caches)
        return Namespace(
            prefix=said.namespace,
            needs_token=said.require_token,
            issuers=response.x_pel_tok_gen_hdr.issuers if response.x_pel_tok_gen_hdr else [],
            base_paths=_said_of_tokens(answer, "base-path") or [said.namespace],
            scope_depth=min(map(int, _said_of_tokens(answer, "max-scope-depth")), default=None),
            origin=Sources.of([_server(said.collections_url)], old_origin) if said.collections_url else None,
            caches=caches,
            accepted=old.accepted if old else None,
        )


def _find_token(namespace: Namespace, access: Access) -> Token | None:
    candidates = [*find_tokens(), *login.stored_tokens(namespace.issuers)]
    return choose(candidates, namespace.issuers, access.operation, access.path, namespace.base_paths)


async def _fault(source: Source, answer: aiohttp.ClientResponse, token: Token | None) -> Fault:
    """What an answer that is none says, in the server's own words as far as one line of them goes."""
    words = (await answer.content.read(200)).decode(errors="replace").strip().partition("\n")[0]
    telling = words and "<" not in words and (token is None or token.value not in words)
    return Fault(
        source,
        f"HTTP {answer.status}{f', {words}' if telling else ''}",
        status=answer.status,
        retry_after_s=retry_after_s(answer.headers.get("Retry-After")),
        credential=token,
    )


def _linked(header: str) -> list[str]:
    """The URLs of a Link header (RFC 8288), the preferred first; pelicanfs' parser takes commas in a path for its end."""
    links = re.findall(r"<([^>]*)>((?:\s*;[^,;]*)*)", header)
    priority = [re.search(r"pri=\"?(\d+)", parameters) for _, parameters in links]
    ranked = sorted(
        zip((int(each[1]) if each else 99 for each in priority), (url for url, _ in links), strict=True),
        key=lambda link: link[0],
    )
    return [url for _, url in ranked]


def _server(url: str) -> str:
    return str(URL(url).origin())


def _said_of_tokens(answer: Answer, key: str) -> list[str]:
    """What the director says of a namespace's tokens; pelicanfs reads the issuers alone."""
    pairs = [word.strip().partition("=") for word in answer.headers.get("X-Pelican-Token-Generation", "").split(",")]
    return [value for name, _, value in pairs if name == key]


def _director_endpoint(host: str, answer: Answer) -> str:
    try:
        endpoint = str(json.loads(answer.body)["director_endpoint"]) if answer.status == 200 else ""
    except (ValueError, KeyError, TypeError):
        endpoint = ""
    if urlsplit(endpoint).scheme != "https":
        msg = (
            f"pelican://{host} is no Pelican federation: https://{host}/.well-known/pelican-configuration answered"
            f" HTTP {answer.status} without a director; check the host name"
        )
        raise OSError(msg)
    return _server(endpoint)


def _describe(error: BaseException) -> str:
    if isinstance(error, aiohttp.ClientConnectorCertificateError):
        reason = error.certificate_error
        return f"its certificate is not trusted ({reason}); name its authority's file in SSL_CERT_FILE"
    if isinstance(error, aiohttp.ClientConnectorError):
        return f"cannot connect: {error.os_error.strerror or error.os_error}"
    return f"{type(error).__name__}{': ' if str(error) else ''}{error}"


def _remedy(url: str) -> str:
    return f"log in with 'crmuons login {url}', or name a file with a good token in BEARER_TOKEN_FILE"
