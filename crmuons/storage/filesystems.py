"""The file system of a path or a URL."""

import os
import re

import fsspec
from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem

from crmuons.config.schemes import check_scheme, schemes_that_work
from crmuons.storage import pelican
from crmuons.storage.http import is_web, web_files
from crmuons.storage.reach import unreachable_reason
from crmuons.storage.redact import refuse_secrets
from crmuons.storage.stores import Named, StoreError

FEDERATED = ("pelican://", "osdf://")
WEB = ("https://", "http://")
HUGGING_FACE = "hf://"
ENDPOINTS = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL")
_reached: set[str] = set()  # Endpoints that this process has reached.


def filesystem(url: str) -> tuple[fsspec.AbstractFileSystem, str]:
    """Return the file system of a path or a URL, and the path in it.

    Raises:
        ValueError: if no file system of this scheme is installed, or the URL carries a secret or chains file systems.
    """
    if "://" not in url:  # fsspec would look for file systems in `a::b` and for the content of a file in `data:x`.
        return LocalFileSystem(), LocalFileSystem._strip_protocol(url)
    refuse_secrets(url)
    if url.startswith(FEDERATED):
        return pelican.filesystem(url), pelican.split_url(url)[1]
    if url.startswith(WEB):
        return web_files(), url.rstrip("/")
    if "::" in url:
        # The inner file system would not be checked for secrets, hosts, sizes and links in archives.
        msg = f"'{url}' chains file systems with '::', which crmuons does not read; copy or unpack the data, and give the files"
        raise ValueError(msg)
    check_scheme(url)
    try:
        fs, path = url_to_fs(url)
    except ImportError as error:
        if url.startswith(HUGGING_FACE):
            msg = f"'{url}' cannot be opened without huggingface_hub: pip install 'crmuons[hf]'"
            raise ValueError(msg) from error
        msg = f"'{url}' cannot be opened: {error} (pip install); or {schemes_that_work()}"
        raise ValueError(msg) from error
    except Exception as error:  # A library may raise anything if its URL is incomplete; most raise TypeError.
        raise _unusable(url, error) from error
    if isinstance(fs, LocalFileSystem):
        return fs, path
    _check_endpoint(fs, url)
    return Named(fs, url), path


def _check_endpoint(fs: fsspec.AbstractFileSystem, url: str) -> None:
    """Refuse an S3 endpoint that cannot be reached, because boto would try for minutes. A reached endpoint is not tried again."""
    if not url.startswith(("s3://", "s3a://")):
        return
    named = (getattr(fs, "endpoint_url", None), (getattr(fs, "client_kwargs", None) or {}).get("endpoint_url"))
    endpoint = next(filter(None, (*named, *map(os.environ.get, ENDPOINTS))), None)
    if endpoint is None or endpoint in _reached:
        return
    if (reason := unreachable_reason(endpoint)) is not None:
        msg = f"{url}: {reason}; check the endpoint (such as AWS_ENDPOINT_URL), and that the server is up"
        raise StoreError(msg)
    _reached.add(endpoint)


def _unusable(url: str, error: Exception) -> ValueError:
    said = next(iter(str(error).splitlines()), "")[:200]
    return ValueError(
        f"'{url}' cannot be opened ({type(error).__name__}: {said}); copy the data, and {schemes_that_work()}"
    )


def with_scheme(fs: fsspec.AbstractFileSystem, name: str) -> str:
    """Return the URL of a path in a file system; for local files the path itself."""
    if pelican.is_federation(fs):
        return fs.url(name)
    return name if isinstance(fs, LocalFileSystem) or is_web(fs) else str(fs.unstrip_protocol(name))


def without_query(url: str) -> str:
    """Return a web server's URL without its query (`?key=value` at the end, unlike the `?` of a glob); other URLs unchanged."""
    return re.sub(r"\?[\w.~-]+=[^/]*$", "", url) if url.startswith(WEB) else url


def is_remote(url: str) -> bool:
    """Return whether a path or URL is not on a mounted disk."""
    return "://" in url and not url.startswith(("file://", "local://"))


def without_links(url: str) -> str:
    """Return a local path without links and scheme; a URL unchanged."""
    return url if is_remote(url) else os.path.realpath(re.sub(r"^(file|local)://", "", url))
