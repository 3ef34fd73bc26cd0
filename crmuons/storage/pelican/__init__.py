"""Files in a Pelican federation. Failing caches, a failing director or an expired token do not end a run.

See docs/pelican.md. pelicanfs and aiohttp are imported at the first use of a federation: a machine without federations
needs neither.
"""

import sys
from typing import TYPE_CHECKING, Any, TypeGuard

from crmuons.storage.pelican.addresses import split_url

if TYPE_CHECKING:
    from crmuons.storage.pelican.digests import digest
    from crmuons.storage.pelican.federation import Federation, filesystem

__all__ = ["digest", "filesystem", "is_federation", "split_url"]


def is_federation(fs: object) -> "TypeGuard[Federation]":
    """Return whether a file system is that of a federation."""
    federation = sys.modules.get(f"{__name__}.federation")
    return federation is not None and isinstance(fs, federation.Federation)


def __getattr__(name: str) -> Any:
    if name == "digest":
        from crmuons.storage.pelican.digests import digest  # noqa: PLC0415

        return digest
    if name == "filesystem":
        from crmuons.storage.pelican.federation import filesystem  # noqa: PLC0415

        return filesystem
    msg = f"module {__name__!r} has no attribute {name!r}"
    raise AttributeError(msg)
