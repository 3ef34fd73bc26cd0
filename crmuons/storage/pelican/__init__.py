"""Files in a Pelican federation. Failing caches, a failing director or an expired token do not end a run.

See docs/pelican.md.
"""

from crmuons.storage.pelican.addresses import split_url
from crmuons.storage.pelican.digests import digest
from crmuons.storage.pelican.federation import Federation, filesystem

__all__ = ["Federation", "digest", "filesystem", "split_url"]
