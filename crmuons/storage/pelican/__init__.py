"""Files in a Pelican federation. Failing caches, a failing director or an expired token do not end a run.

pelicanfs and aiohttp are imported at the first `pelican://` URL, because a machine with its data on disk needs neither.

See docs/pelican.md.
"""

import sys
from typing import TYPE_CHECKING, TypeGuard

from crmuons.storage.pelican.addresses import split_url

if TYPE_CHECKING:
    from crmuons.storage.pelican.federation import Federation

__all__ = ["digest", "filesystem", "is_federation", "split_url"]


def filesystem(url: str) -> "Federation":
    """Return the file system of a URL's federation: one per process and federation, shared by all threads."""
    from crmuons.storage.pelican import federation  # noqa: PLC0415

    return federation.filesystem(url)


def is_federation(fs: object) -> "TypeGuard[Federation]":
    """Return whether a file system is the file system of a federation."""
    federation = sys.modules.get("crmuons.storage.pelican.federation")  # If one exists, the module is loaded.
    return federation is not None and isinstance(fs, federation.Federation)


def digest(federation: "Federation", path: str, algorithms: str) -> str:
    """Return the origin's `Digest` header for a file; empty if it gives none.

    Args:
        federation: the federation that holds the file.
        path: the file's path.
        algorithms: comma-separated names, the preferred first.
    """
    from crmuons.storage.pelican import digests  # noqa: PLC0415

    return digests.digest(federation, path, algorithms)
