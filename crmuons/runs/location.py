"""Where runs live: a directory, or a URL with a local copy."""

import hashlib
import os
import re
from dataclasses import dataclass
from pathlib import Path

from crmuons import config


@dataclass(frozen=True)
class RunStorage:
    """Where the runs of one command live. The driver resolves it once and hands it on.

    Attributes:
        directory: parent of the runs' directories on this machine; for runs kept at a URL, of their local copies.
        url: where the runs are kept; None if that is `directory`.
    """

    directory: Path
    url: str | None = None

    @classmethod
    def of(cls, settings: config.Config) -> "RunStorage":
        """Resolve run.storage_path.

        A Ray job runs in a temporary copy of its working directory; there a relative path starts at the home.
        """
        place = settings.run.storage_path
        if "://" in place and not place.startswith("file://"):
            url = place.rstrip("/")
            return cls(local_copy(f"{url}/name").parent, url)
        path = Path(place.removeprefix("file://")).expanduser()
        return cls(path.absolute() if path.is_absolute() or not in_ray_job() else Path.home() / path)


def local_copy(url: str) -> Path:
    """Where this machine has its copy of a run that is kept at a URL: below $XDG_CACHE_HOME, or ~/.cache."""
    storage, _, name = url.rpartition("/")
    readable = re.sub(r"[^A-Za-z0-9.-]+", "_", storage)[-60:]
    digest = hashlib.sha256(storage.encode()).hexdigest()[:8]
    return caches() / f"{readable}-{digest}" / "runs" / name


def caches() -> Path:
    """Where this machine has copies of what is kept at URLs."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "crmuons"


def in_ray_job() -> bool:
    """Whether this process was started by `ray job submit`."""
    return "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ
