"""The file system of a path or a URL."""

import fsspec
from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem

from crmuons.storage import pelican

FEDERATED = ("pelican://", "osdf://")


def filesystem(url: str) -> tuple[fsspec.AbstractFileSystem, str]:
    """Return the file system of a path or a URL, and the path in it.

    Raises:
        ValueError: if no file system of this scheme is installed.
    """
    if url.startswith(FEDERATED):
        return pelican.filesystem(url), pelican.split_url(url)[1]
    try:
        fs, path = url_to_fs(url)
    except ValueError as error:
        if "://" not in url or "Protocol not known" not in str(error):
            raise
        scheme = url.partition("://")[0]
        msg = f"'{url}': no installed file system reads '{scheme}://'; write pelican://HOST/path for a federation, or s3://, https://, ..."
        raise ValueError(msg) from error
    return fs, path


def with_scheme(fs: fsspec.AbstractFileSystem, name: str) -> str:
    """Return the URL of a path in a file system; for local files the path itself."""
    if pelican.is_federation(fs):
        return fs.url(name)
    return name if isinstance(fs, LocalFileSystem) else str(fs.unstrip_protocol(name))


def is_remote(url: str) -> bool:
    """Return whether a path or URL is not on a mounted disk."""
    return "://" in url and not url.startswith(("file://", "local://"))
