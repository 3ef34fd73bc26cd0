"""Parse the answers of a federation's director: which servers hold a path, and which tokens they accept."""

import json
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from pelicanfs.dir_header_parser import parse_director_response
from yarl import URL

from crmuons.storage.http.sources import Sources
from crmuons.storage.pelican.tokens import Token


@dataclass
class Namespace:
    """A namespace of the federation, as the director describes it.

    Attributes:
        prefix: the path at which it begins.
        needs_token: whether reading needs a token; writing always does.
        issuers: the issuers whose tokens its servers accept, as the director claims; empty if the director does not name them.
        base_paths: the folders to which token scopes are relative.
        scope_depth: largest depth of a scope's path in folders that the issuer allows; None for no limit.
        origin: the server that lists folders; None if the namespace gives no listings.
        caches: the servers for reading; None until the director was asked.
        federation: the federation's HOST or HOST:PORT.
        accepted: the last token that a server accepted.
        asked_at: time.monotonic() of the last request to the director.
    """

    prefix: str
    needs_token: bool
    issuers: list[str]
    base_paths: list[str]
    scope_depth: int | None
    origin: Sources | None
    caches: Sources | None
    federation: str = ""
    accepted: Token | None = None
    asked_at: float = field(default_factory=time.monotonic)


@dataclass(frozen=True)
class Answer:
    """An HTTP answer, read completely."""

    status: int
    headers: Mapping[str, str]
    body: bytes


def parse_namespace(
    federation: str, answer: Answer, known: Mapping[str, Namespace], *, listing: bool
) -> Namespace | None:
    """Return the namespace in a director's answer; its servers keep their known record. None if it names no namespace.

    Args:
        federation: the federation's HOST or HOST:PORT.
        answer: the director's answer.
        known: the namespaces known so far, by their prefixes.
        listing: whether the question was for the origin (listing) rather than for caches (reading).
    """
    response = parse_director_response(answer.headers)
    header = response.x_pel_ns_hdr
    object_servers = linked_urls(answer.headers.get("Link", ""))
    if header is None or not object_servers:
        return None
    # The failures and the accepted token are kept when the director answers again.
    old = known.get(header.namespace)
    old_origin, old_caches = (old.origin, old.caches) if old else (None, None)
    # For a listing, the director names the origin and no caches.
    caches = old_caches if listing else Sources.of(map(server_of, object_servers), old_caches)
    return Namespace(
        prefix=header.namespace,
        needs_token=header.require_token,
        issuers=response.x_pel_tok_gen_hdr.issuers if response.x_pel_tok_gen_hdr else [],
        base_paths=_token_parameters(answer, "base-path") or [header.namespace],
        scope_depth=min(map(int, _token_parameters(answer, "max-scope-depth")), default=None),
        origin=Sources.of([server_of(header.collections_url)], old_origin) if header.collections_url else None,
        caches=caches,
        federation=federation,
        accepted=old.accepted if old else None,
    )


def linked_urls(header: str) -> list[str]:
    """Return the URLs of a Link header (RFC 8288), the preferred first.

    The parser of pelicanfs ends a URL at a comma in its path, so it is not used.
    """
    # Each link is <URL>; parameters; priorities begin at 1, and a link without a priority comes last.
    links = re.findall(r"<([^>]*)>((?:\s*;[^,;]*)*)", header)
    priority = [re.search(r"pri=\"?(\d+)", parameters) for _, parameters in links]
    ranked = sorted(
        zip((int(match[1]) if match else 99 for match in priority), (url for url, _ in links), strict=True),
        key=lambda link: link[0],
    )
    return [url for _, url in ranked]


def server_of(url: str) -> str:
    """Return the scheme, host and port of a URL."""
    return str(URL(url).origin())


def _token_parameters(answer: Answer, key: str) -> list[str]:
    """Return the values of a key in X-Pelican-Token-Generation; pelicanfs reads only the issuers."""
    pairs = [word.strip().partition("=") for word in answer.headers.get("X-Pelican-Token-Generation", "").split(",")]
    return [value for name, _, value in pairs if name == key]


def director_endpoint(host: str, answer: Answer) -> str:
    """Return the director's URL from the answer to the federation's discovery.

    Raises:
        OSError: if the answer names no director.
    """
    try:
        endpoint = str(json.loads(answer.body)["director_endpoint"]) if answer.status == 200 else ""
    except (ValueError, KeyError, TypeError):
        endpoint = ""
    # Tokens go to the servers that the director names. Without encryption, anyone on the way could answer.
    if urlsplit(endpoint).scheme != "https":
        msg = (
            f"pelican://{host} is no Pelican federation: https://{host}/.well-known/pelican-configuration answered"
            f" HTTP {answer.status} without a director; check the host name"
        )
        raise OSError(msg)
    return server_of(endpoint)
