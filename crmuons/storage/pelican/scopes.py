"""Derive the token scopes to ask an issuer for from the URLs that a run uses."""

import re
from collections.abc import Iterable

from crmuons.storage.pelican.addresses import split_url
from crmuons.storage.pelican.director import Namespace
from crmuons.storage.pelican.federation import filesystem
from crmuons.storage.pelican.tokens import is_below


def scopes_by_issuer(read: Iterable[str], write: Iterable[str]) -> dict[str, list[str]]:
    """Return the scopes to ask for, by the issuer of the URLs' namespaces.

    Args:
        read: URLs, directories or globs to read.
        write: URLs below which to write. Their scopes include reading, because a run that resumes reads its checkpoints.

    Raises:
        ValueError: if a namespace names no issuer.
        OSError: if the federation does not answer.
    """
    # create writes new names, modify replaces and removes (WLCG profile); a run that prunes its checkpoints needs both.
    by_issuer: dict[str, list[str]] = {}
    for urls, names in ((read, ("storage.read",)), (write, ("storage.read", "storage.create", "storage.modify"))):
        for url in urls:
            namespace = filesystem(url).namespace(split_url(folder(url))[1])
            if not namespace.issuers:
                msg = f"{url}: the namespace {namespace.prefix} names no token issuer; ask who runs it for a token"
                raise ValueError(msg)
            scopes = [f"{name}:{scope_path(url, namespace)}" for name in names]
            # The first issuer is the namespace's own; tokens of further issuers are accepted, but not requested.
            by_issuer.setdefault(namespace.issuers[0], []).extend(scopes)
    return {issuer: list(dict.fromkeys(scopes)) for issuer, scopes in by_issuer.items()}


def federations_of(issuer: str, urls: Iterable[str]) -> list[str]:
    """Return the federations in which a namespace of these URLs names an issuer first."""
    namespaces = [filesystem(url).namespace(split_url(folder(url))[1]) for url in urls]
    return sorted({namespace.federation for namespace in namespaces if namespace.issuers[:1] == [issuer]})


def folder(url: str) -> str:
    """Return the folder that holds everything a URL names: above the first wildcard, and above a file."""
    # For a glob this is the folder above its first wildcard, because its names are not known before the listing.
    fixed = re.split(r"[*?\[{]", url)[0]
    # The name decides, because a listing would need the token that shall be requested.
    is_folder = fixed == url and "." not in url.rpartition("/")[2]
    return url if is_folder else fixed.rpartition("/")[0]


def scope_path(url: str, namespace: Namespace) -> str:
    """Return the folder of a URL relative to the namespace's base path, cut to the depth that the issuer allows."""
    path = split_url(folder(url))[1]
    # The longest base path that fits, because base paths may contain each other.
    base = max((folder for folder in namespace.base_paths if is_below(path, folder)), key=len, default="")
    parts = path.removeprefix(base.rstrip("/")).strip("/").split("/")
    return "/" + "/".join(parts[: namespace.scope_depth])
