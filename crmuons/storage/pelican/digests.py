"""Checksums that an origin keeps of its files, asked for as RFC 3230 says. XRootD caches answer such requests with 405."""

import asyncio
import logging
import time

from fsspec.asyn import sync

from crmuons.storage.pelican.federation import Federation
from crmuons.storage.pelican.refusals import Access
from crmuons.storage.pelican.sources import Patience

logger = logging.getLogger(__name__)

PAUSE_S = 600.0  # After a request that was not answered. XRootD 5.5.3 sometimes answers no such request any more.


def digest(federation: Federation, path: str, wanted: str) -> str:
    """The origin's `Digest` header for a file; empty where it has none to give.

    Args:
        federation: where the file is.
        path: its path.
        wanted: the algorithms, the preferred first.
    """
    return str(sync(federation.loop, _digest, federation, path, wanted))


async def _digest(federation: Federation, path: str, wanted: str) -> str:
    namespace = await federation.servers.namespace(path, listing=True)
    if namespace.origin is None:
        return ""
    servers = federation.servers
    try:
        async with servers.digesting, asyncio.timeout(servers.waits.digest_s):
            if time.monotonic() < servers.no_digest_before.get(namespace.prefix, 0.0):
                return ""
            once = Patience(0, federation.url(path))
            answer = await servers.request(
                "HEAD", namespace.origin, Access(namespace, path), once, headers={"Want-Digest": wanted}
            )
    except TimeoutError:
        servers.no_digest_before[namespace.prefix] = time.monotonic() + PAUSE_S
        logger.warning(
            "%s: the origin told no checksum within %g s (CRMUONS_PELICAN_DIGEST_S), and is asked for none in the next %.0f min:"
            " of files staged by then the size alone is checked",
            federation.url(path), servers.waits.digest_s, PAUSE_S / 60,
        )  # fmt: skip
        return ""
    except OSError as error:  # Whatever keeps the file from being read as well is found by reading it.
        logger.debug("no checksum: %s", error)
        return ""
    return answer.headers.get("Digest", "") if answer.status == 200 else ""
