"""Checksums that an origin keeps of its files, asked for as RFC 3230 says. XRootD caches answer such requests with 405."""

import logging

from fsspec.asyn import sync

from crmuons.pelican.federation import Federation
from crmuons.pelican.servers import Access
from crmuons.pelican.sources import Patience

logger = logging.getLogger(__name__)


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
    once = Patience(0, federation.url(path))
    try:
        answer = await federation.servers.request(
            "HEAD", namespace.origin, Access(namespace, path), once, headers={"Want-Digest": wanted}
        )
    except OSError as error:  # Whatever keeps the file from being read as well is found by reading it.
        logger.debug("no checksum: %s", error)
        return ""
    return answer.headers.get("Digest", "") if answer.status == 200 else ""
