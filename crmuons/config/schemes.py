"""Which URLs can name data and results: one rule for every option, setting and listing."""

import os
import re
from difflib import get_close_matches

# Schemes that messages offer. Any other file system of fsspec that stores files works too if its library is installed.
OFFERED = ("pelican", "osdf", "https", "http", "s3", "gs", "abfs", "hf", "file")
LOCAL = ("file", "local")
# File systems of fsspec that hold no files of their own: a URL's own text, caches, archives, and wrappers of others.
_CACHES = {"cached", "blockcache", "filecache", "simplecache"}
_ARCHIVES = {"zip", "tar", "libarchive"}
_WRAPPERS = {"data", "reference", "dir", "generic", "async_wrapper", "asyncwrapper", "jupyter", "jlab", "pyscript"}
NO_STORES = _CACHES | _ARCHIVES | _WRAPPERS
_SCHEME = re.compile(r"(.*?)://", re.DOTALL)
# The pattern does not match file:/path, which reads the path. Stored settings are checked too, so every place that an
# earlier version could read must pass.
_FEW_SLASHES = re.compile(rf"({'|'.join(OFFERED[:-1])}):/?(?!/)", re.IGNORECASE)


def schemes_that_work() -> str:
    """Return the end of a message: what to write in place of a URL that cannot be read."""
    *first, last = (f"{scheme}://" for scheme in OFFERED)
    return f"give a path, or a URL of {', '.join(first)} or {last}"


def check_scheme(place: str) -> str:
    """Return a path or URL. Refuse a URL that no file system can read, and a path that looks like a URL.

    Raises:
        ValueError: with the place, the nearest scheme, and the schemes that work.
    """
    scheme = found[1] if (found := _SCHEME.match(place)) else None
    if scheme is None:
        # `Path("s3://b/x")` and typing errors give s3:/b/x, and results would go to a directory `s3:`.
        if (few := _FEW_SLASHES.match(place)) and not os.path.exists(place):  # noqa: PTH110  # Path raises for long names
            msg = f"'{place}' is no URL: two slashes follow its '{few[1]}:'; {schemes_that_work()} (for a path: ./{place})"
            raise ValueError(msg)
        return place
    # Chains are refused when they are opened. Alternatives in braces are checked after they are expanded.
    if "::" in place or "{" in scheme or scheme in (*OFFERED, *LOCAL):
        return place
    from fsspec.registry import known_implementations, registry  # noqa: PLC0415  # 0.1 s of the start of each command

    stores = {*known_implementations, *registry} - NO_STORES
    if scheme not in stores:
        near = get_close_matches(scheme.lower(), OFFERED, 1) or get_close_matches(scheme.lower(), sorted(stores), 1)
        meant = f" (did you mean {near[0]}://?)" if near else ""
        msg = f"'{place}': crmuons reads no {scheme}:// URLs{meant}; {schemes_that_work()}"
        raise ValueError(msg)
    return place
