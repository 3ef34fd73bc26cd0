"""Ask an origin for the checksums of its files (RFC 3230). XRootD caches answer such requests with 405."""

import asyncio
import logging
import time

from fsspec.asyn import sync

from crmuons.storage.http.sources import Patience
from crmuons.storage.pelican.federation import Federation
from crmuons.storage.pelican.refusals import Access

logger = logging.getLogger(__name__)

PAUSE_S = 600.0  # Pause after an unanswered request. XRootD 5.5.3 sometimes stops to answer such requests.


def digest(federation: Federation, path: str, algorithms: str) -> str:
    """Return the origin's `Digest` header for a file; empty if it gives none.

    Args:
        federation: the federation that holds the file.
        path: the file's path.
        algorithms: comma-separated names, the preferred first.
    """
    return str(sync(federation.loop, _digest, federation, path, algorithms))


async def _digest(federation: Federation, path: str, algorithms: str) -> str:
    namespace = await federation.servers.namespace(path, listing=True)
    # Caches answer 405, and a namespace without listings has no known origin.
    if namespace.origin is None:
        return ""
    servers = federation.servers
    try:
        # One request at a time, with a time limit: staging waits for the answer, but does not need it.
        async with servers.digesting, asyncio.timeout(servers.waits.digest_s):
            if time.monotonic() < servers.no_digest_before.get(namespace.prefix, 0.0):
                return ""
            # There is no second attempt: without a checksum only the size is compared.
            once = Patience(0, federation.url(path))
            answer = await servers.request(
                "HEAD", namespace.origin, Access(namespace, path), once, headers={"Want-Digest": algorithms}
            )
    except TimeoutError:
        servers.no_digest_before[namespace.prefix] = time.monotonic() + PAUSE_S
        logger.warning(
            "%s: the origin gave no checksum within %g s (CRMUONS_PELICAN_DIGEST_S) and is not asked again for %.0f"
            " min; until then only the size of staged files is checked",
            federation.url(path), servers.waits.digest_s, PAUSE_S / 60,
        )  # fmt: skip
        return ""
    except OSError as error:  # If the fault also prevents reading the file, the read will raise it.
        logger.debug("no checksum: %s", error)
        return ""
    return answer.headers.get("Digest", "") if answer.status == 200 else ""
