"""Send one HTTP request, follow its redirects safely, and describe failures in words."""

import asyncio
import logging
import os
import ssl
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, contextmanager
from typing import Any

import aiohttp
from aiohttp.helpers import get_env_proxy_for_url
from yarl import URL

from crmuons.config.options import shown
from crmuons.progress import SAY_AFTER_S, clock_time
from crmuons.storage.http.sources import SECONDS_BETWEEN_WARNINGS, Fault, FinalError, Source, retry_after_s

logger = logging.getLogger(__name__)

# 520 to 527: a proxy of Cloudflare gets no answer from its server.
TRANSIENT = frozenset({408, 425, 429, 500, 502, 503, 504, *range(520, 528)})
DENIED = frozenset({401, 403})
NETWORK_ERRORS = (aiohttp.ClientError, asyncio.TimeoutError, OSError)
# 300 and 304 are left out, because they have no new place for this request.
REDIRECTS = frozenset({301, 302, 303, 307, 308})
MAX_REDIRECTS = 10
# Bytes of a body that must come within the time limit: otherwise a server could delay a reader with a byte a minute.
LEAST_BYTES = 1024


_said_at: dict[str, float] = {}  # time.monotonic() of the last message about a silent server.


def trusted_authorities() -> ssl.SSLContext:
    """Return the certificate authorities to trust: the system's, or those of SSL_CERT_FILE.

    Raises:
        ValueError: if SSL_CERT_FILE names no file.
    """
    named = os.environ.get("SSL_CERT_FILE")
    if named and not os.path.isfile(named):  # noqa: PTH113  Path raises for a long name. OpenSSL ignores a missing file.
        msg = f"SSL_CERT_FILE is {shown(named)}, which does not exist; name your authority's PEM file, or unset the variable"
        raise ValueError(msg)
    return ssl.create_default_context()  # Reads SSL_CERT_FILE now; aiohttp reads it at import.


@contextmanager
def spoken(server: str, what: str, within_s: float) -> Iterator[None]:
    """If a wait for a server takes longer than SAY_AFTER_S, log the reason and the end of the wait.

    Args:
        server: scheme, host and port. Many requests may wait for it; only one of them logs.
        what: the awaited answer, without secrets.
        within_s: the limit of the wait.
    """
    begun = time.time()

    def say() -> None:
        now = time.monotonic()
        if now - _said_at.get(server, -SECONDS_BETWEEN_WARNINGS) < SECONDS_BETWEEN_WARNINGS:
            return
        _said_at[server] = now
        logger.warning(
            "%s has been silent since %s: waiting for %s until %s at the latest",
            server, clock_time(begun), what, clock_time(begun + within_s),
        )  # fmt: skip

    waiting = asyncio.get_running_loop().call_later(SAY_AFTER_S, say) if within_s > SAY_AFTER_S else None
    try:
        yield
    finally:
        if waiting is not None:
            waiting.cancel()


@asynccontextmanager
async def following(
    session: aiohttp.ClientSession,
    method: str,
    url: URL,
    within_s: float,
    *,
    headers: Mapping[str, str],
    **options: Any,
) -> AsyncIterator[aiohttp.ClientResponse]:
    """Send a request, follow its redirects, and yield the last answer.

    The headers of an answer must come in `within_s` seconds; aiohttp's own limit begins again with each byte. Another origin
    (scheme, host or port) does not get the `Authorization` header. Each host has its own proxy, or none.

    Raises:
        FinalError: if a redirect leaves https or http, goes from https to http, or there are too many.
    """
    seen = {url}
    asked_for = url.path  # Messages show this path, because the targets of redirects may hold a secret.
    for _ in range(MAX_REDIRECTS + 1):
        sent = {**options, **proxy_of(url)}
        # Redirects are followed here: from https to http is refused, and the header stays with its origin.
        asked = session.request(method, url, headers=headers, allow_redirects=False, **sent)
        async with asyncio.timeout(within_s) as limit, _answer(asked, str(url.origin()), asked_for, within_s) as answer:
            limit.reschedule(None)
            if answer.status not in REDIRECTS or "Location" not in answer.headers:
                yield answer
                return
            target = _target(url, answer.headers["Location"])
        _check_target(url, target)
        if target.origin() != url.origin():
            headers = {name: value for name, value in headers.items() if name.lower() != "authorization"}
        is_loop = target in seen  # Not refused yet: a portal may redirect back once, with a cookie.
        seen.add(target)
        url = target
    what = f"in a loop of {len(seen)} addresses" if is_loop else f"more than {MAX_REDIRECTS} times"
    msg = f"{url.origin()} redirects {what}; tell who runs the server, or give the URL of the file itself"
    raise FinalError(msg)


def _check_target(url: URL, target: URL) -> None:
    """Raise a FinalError for a redirect that must not be followed."""
    if target.scheme not in ("https", "http") or (url.scheme, target.scheme) == ("https", "http"):
        # The message leaves out the target's path and query, which may hold a secret.
        msg = f"{url.origin()} redirects to {target.scheme}://{target.host or ''}, which is not followed: give the URL of the file itself"
        raise FinalError(msg)


def checked_redirects() -> aiohttp.TraceConfig:
    """Return a trace that checks the redirects that aiohttp itself follows, because it must send a body again.

    aiohttp removes the `Authorization` header at another origin, but would send a body from https to http.
    """

    async def check(_session: object, _context: object, redirect: aiohttp.TraceRequestRedirectParams) -> None:
        if "Location" in redirect.response.headers:
            _check_target(redirect.response.url, _target(redirect.response.url, redirect.response.headers["Location"]))

    trace = aiohttp.TraceConfig()
    trace.on_request_redirect.append(check)
    return trace


@asynccontextmanager
async def _answer(
    asked: AbstractAsyncContextManager[aiohttp.ClientResponse], server: str, what: str, within_s: float
) -> AsyncIterator[aiohttp.ClientResponse]:
    """Send a request and yield its answer; log a long wait."""
    async with AsyncExitStack() as stack:
        with spoken(server, what, within_s):
            answer = await stack.enter_async_context(asked)
        yield answer


async def steady(answer: aiohttp.ClientResponse, within_s: float) -> AsyncIterator[bytes]:
    """Yield the body of an answer in pieces, as long as it comes fast enough.

    Raises:
        TimeoutError: if fewer than LEAST_BYTES came in `within_s` seconds.
    """
    server, waited_s, num_bytes = str(answer.url.origin()), 0.0, 0
    pieces = answer.content.iter_any()
    while True:
        asked = time.monotonic()  # The time that the reader of the pieces takes does not count.
        with spoken(server, "the rest of an answer", within_s):
            piece = await anext(pieces, b"")
        if not piece:
            return
        waited_s += time.monotonic() - asked
        num_bytes += len(piece)
        if num_bytes >= LEAST_BYTES:
            waited_s, num_bytes = 0.0, 0
        elif waited_s > within_s:
            msg = f"it sent {num_bytes} bytes in {within_s:g} s"
            raise TimeoutError(msg)
        yield piece


def proxy_of(url: URL) -> dict[str, Any]:
    """Return the options of a request that name the proxy of `https_proxy`, `http_proxy` and `no_proxy`; {} if there is none.

    aiohttp's own `trust_env` would also send passwords of ~/.netrc, and would then refuse requests with a token.

    Raises:
        ValueError: if the variable is no address.
    """
    try:
        proxy, account = get_env_proxy_for_url(url)
    except LookupError:
        return {}
    except ValueError:
        proxy, account = URL(), None
    if proxy.scheme not in ("http", "https") or not proxy.host:  # Its text may hold a password.
        msg = f"the variable {url.scheme}_proxy is no address of a proxy, http://HOST:PORT; correct it, or unset it"
        raise ValueError(msg)
    return {"proxy": proxy, "proxy_auth": account}


def _target(url: URL, location: str) -> URL:
    try:
        # Relative locations are allowed (RFC 9110, 10.2.2).
        return url.join(URL(location)).with_fragment(None)
    except ValueError:  # Its text may hold a secret.
        msg = f"{url.origin()} redirects to something that is no URL; give the URL of the file itself"
        raise FinalError(msg) from None


async def fault_of(
    source: Source, answer: aiohttp.ClientResponse, *, secret: str | None = None, credential: object = None
) -> Fault:
    """Return the fault of a transient or refusing answer, with the first line of the server's text.

    Args:
        source: the server.
        answer: its answer.
        secret: a text of the server that contains this is left out.
        credential: what was sent; the fault keeps it.
    """
    # The first bytes alone: an error page may be long, and only a line of it is shown.
    words = (await answer.content.read(200)).decode(errors="replace").strip().partition("\n")[0]
    # Never HTML, and never a line that repeats the secret that was sent.
    is_plain_text = words.isprintable() and words and "<" not in words and (secret is None or secret not in words)
    return Fault(
        source,
        f"HTTP {answer.status}{f', {words}' if is_plain_text else ''}",
        status=answer.status,
        retry_after_s=retry_after_s(answer.headers.get("Retry-After")),
        credential=credential,
    )


def describe(error: BaseException) -> str:
    """Describe a failed connection, without URLs, which may hold secrets."""
    # The most specific classes come first: they are subclasses of the classes below.
    if isinstance(error, aiohttp.ClientConnectorCertificateError):
        reason = error.certificate_error
        return f"its certificate is not trusted ({reason}); name its authority's file in SSL_CERT_FILE"
    if isinstance(error, aiohttp.ClientProxyConnectionError):
        return f"cannot connect to the proxy {error.host}:{error.port} of https_proxy or http_proxy: {error.os_error.strerror or error.os_error}"
    if isinstance(error, aiohttp.ClientConnectorError):
        return f"cannot connect: {error.os_error.strerror or error.os_error}"
    if isinstance(error, aiohttp.ClientHttpProxyError):
        return f"the proxy of https_proxy or http_proxy answered HTTP {error.status}"
    text = str(error)
    if isinstance(error, TimeoutError) and not text:
        return "no whole answer came in time"
    if isinstance(error, aiohttp.ClientResponseError):  # Its text has the URL.
        text = error.message
    return f"{type(error).__name__}{': ' if text else ''}{' '.join(text.split())[:200]}"
