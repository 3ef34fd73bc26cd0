"""What to ask an issuer for, given the URLs that a run uses."""

import re
from collections.abc import Iterable

from crmuons.storage.pelican.addresses import split_url
from crmuons.storage.pelican.director import Namespace
from crmuons.storage.pelican.federation import filesystem
from crmuons.storage.pelican.tokens import is_below


def scopes_by_issuer(read: Iterable[str], write: Iterable[str]) -> dict[str, list[str]]:
    """The issuers of the URLs' namespaces, and the scopes to ask each for.

    Args:
        read: URLs, directories or globs to read.
        write: URLs to write below; they can be read as well, since a run reads what it resumes from.

    Raises:
        ValueError: if a namespace names no issuer.
        OSError: if the federation cannot be asked.
    """
    wanted: dict[str, list[str]] = {}
    for urls, names in ((read, ("storage.read",)), (write, ("storage.read", "storage.create", "storage.modify"))):
        for url in urls:
            namespace = filesystem(url).namespace(split_url(folder(url))[1])
            if not namespace.issuers:
                msg = f"{url}: the namespace {namespace.prefix} names no token issuer; ask who runs it for a token"
                raise ValueError(msg)
            scopes = [f"{name}:{scope_path(url, namespace)}" for name in names]
            wanted.setdefault(namespace.issuers[0], []).extend(scopes)
    return {issuer: list(dict.fromkeys(scopes)) for issuer, scopes in wanted.items()}


def folder(url: str) -> str:
    """The folder that holds everything a URL names: above the first wildcard, and above a file."""
    fixed = re.split(r"[*?\[{]", url)[0]
    is_folder = fixed == url and "." not in url.rpartition("/")[2]
    return url if is_folder else fixed.rpartition("/")[0]


def scope_path(url: str, namespace: Namespace) -> str:
    """The folder of a URL as its issuer counts: below the namespace's base path, and not too deep."""
    path = split_url(folder(url))[1]
    base = max((each for each in namespace.base_paths if is_below(path, each)), key=len, default="")
    parts = path.removeprefix(base.rstrip("/")).strip("/").split("/")
    return "/" + "/".join(parts[: namespace.scope_depth])
