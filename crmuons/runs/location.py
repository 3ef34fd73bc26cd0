"""Where runs live: a directory, or a URL with a local copy."""

import hashlib
import os
import re
from pathlib import Path

from crmuons import config


def storage_path(settings: config.Config) -> Path:
    """The directory of the runs on this machine: for a URL, of their local copies.

    A Ray job runs in a temporary copy of its working directory; there a relative path is below the home.
    """
    if (url := storage_url(settings)) is not None:
        return local_copy(f"{url}/name").parent
    path = Path(settings.run.storage_path.removeprefix("file://")).expanduser()
    if path.is_absolute() or not in_ray_job():
        return path.absolute()
    return Path.home() / path


def storage_url(settings: config.Config) -> str | None:
    """The URL where runs are kept; None where that is a directory."""
    path = settings.run.storage_path
    return path.rstrip("/") if "://" in path and not path.startswith("file://") else None


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
