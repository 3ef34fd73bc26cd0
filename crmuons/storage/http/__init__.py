"""Files of web servers, read with retries, checked ranges and checked versions. pelican/ uses the same parts.

aiohttp is imported at the first URL of a web server, because a machine with its data on disk does not need it.
"""

import sys
from typing import TYPE_CHECKING, TypeGuard

if TYPE_CHECKING:
    from crmuons.storage.http.site import WebFiles

__all__ = ["is_web", "web_files"]


def web_files() -> "WebFiles":
    """Return the file system of web servers: one per process, shared by all threads."""
    from crmuons.storage.http import site  # noqa: PLC0415

    return site.web_files()


def is_web(fs: object) -> "TypeGuard[WebFiles]":
    """Return whether a file system is the file system of web servers."""
    site = sys.modules.get("crmuons.storage.http.site")  # If one exists, the module is loaded.
    return site is not None and isinstance(fs, site.WebFiles)
