"""Files behind a Pelican federation, read so that no cache, director or expired token ends a run. See docs/pelican.md."""

from crmuons.storage.pelican.addresses import split_url
from crmuons.storage.pelican.digests import digest
from crmuons.storage.pelican.federation import Federation, filesystem

__all__ = ["Federation", "digest", "filesystem", "split_url"]
