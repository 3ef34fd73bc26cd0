"""Where runs are stored: in a directory, or at a URL with a local copy."""

import hashlib
import os
import re
from dataclasses import dataclass
from pathlib import Path

from crmuons import config


@dataclass(frozen=True)
class RunStorage:
    """Where the runs of one command are stored. The driver resolves it once and passes it on.

    Attributes:
        directory: parent of the runs' directories on this machine; for runs stored at a URL, parent of their local copies.
        url: the URL where the runs are stored; None if they are stored in `directory`.
    """

    directory: Path
    url: str | None = None

    @classmethod
    def of(cls, settings: config.Config) -> "RunStorage":
        """Resolve run.storage_path.

        A relative path starts at the working directory; in a Ray job, which runs in a temporary copy of it, at the
        home directory.
        """
        place = settings.run.storage_path
        if "://" in place and not place.startswith("file://"):
            # The local copies of all runs of this URL have the same parent.
            url = place.rstrip("/")
            return cls(local_copy(f"{url}/name").parent, url)
        # A job's working directory is a temporary copy that Ray removes, so runs there would be lost.
        path = Path(place.removeprefix("file://")).expanduser()
        return cls(path.absolute() if path.is_absolute() or not in_ray_job() else Path.home() / path)


def local_copy(url: str) -> Path:
    """Return the path of this machine's copy of a run that is stored at a URL: below $XDG_CACHE_HOME, or ~/.cache."""
    storage, _, name = url.rpartition("/")
    # A readable name for people who look into the cache; the digest makes it unique.
    readable = re.sub(r"[^A-Za-z0-9.-]+", "_", storage)[-60:]
    digest = hashlib.sha256(storage.encode()).hexdigest()[:8]
    return caches() / f"{readable}-{digest}" / "runs" / name


def caches() -> Path:
    """Return the parent directory of this machine's copies of runs and models that are stored at URLs."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "crmuons"


def in_ray_job() -> bool:
    """Return whether `ray job submit` started this process."""
    return "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ
