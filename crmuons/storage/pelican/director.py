"""What a federation's director says: which servers hold a path, and whose tokens they take."""

import json
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from pelicanfs.dir_header_parser import parse_director_response
from yarl import URL

from crmuons.storage.pelican.sources import Sources
from crmuons.storage.pelican.tokens import Token


@dataclass
class Namespace:
    """What the director says of a part of the federation.

    Attributes:
        prefix: where it begins.
        needs_token: whether reading takes a token; writing always does.
        issuers: whose tokens its servers take; empty if the director does not say.
        base_paths: what the scopes of tokens are relative to.
        scope_depth: how many folders deep its issuer lets scopes go, None for any number.
        origin: where listings are asked for, None where there are none.
        caches: where files are read, None until somebody asked.
        accepted: the token that a server took last.
    """

    prefix: str
    needs_token: bool
    issuers: list[str]
    base_paths: list[str]
    scope_depth: int | None
    origin: Sources | None
    caches: Sources | None
    accepted: Token | None = None
    asked_at: float = field(default_factory=time.monotonic)


@dataclass(frozen=True)
class Answer:
    """An HTTP answer that has been read."""

    status: int
    headers: Mapping[str, str]
    body: bytes


def parse_namespace(answer: Answer, known: Mapping[str, Namespace], *, listing: bool) -> Namespace | None:
    """The namespace that a director's answer names, with what was known of it before."""
    response = parse_director_response(answer.headers)
    said = response.x_pel_ns_hdr
    object_servers = linked_urls(answer.headers.get("Link", ""))
    if said is None or not object_servers:
        return None
    old = known.get(said.namespace)
    old_origin, old_caches = (old.origin, old.caches) if old else (None, None)
    caches = old_caches if listing else Sources.of(map(server_of, object_servers), old_caches)
    return Namespace(
        prefix=said.namespace,
        needs_token=said.require_token,
        issuers=response.x_pel_tok_gen_hdr.issuers if response.x_pel_tok_gen_hdr else [],
        base_paths=_said_of_tokens(answer, "base-path") or [said.namespace],
        scope_depth=min(map(int, _said_of_tokens(answer, "max-scope-depth")), default=None),
        origin=Sources.of([server_of(said.collections_url)], old_origin) if said.collections_url else None,
        caches=caches,
        accepted=old.accepted if old else None,
    )


def linked_urls(header: str) -> list[str]:
    """The URLs of a Link header (RFC 8288), the preferred first; pelicanfs' parser takes commas in a path for its end."""
    links = re.findall(r"<([^>]*)>((?:\s*;[^,;]*)*)", header)
    priority = [re.search(r"pri=\"?(\d+)", parameters) for _, parameters in links]
    ranked = sorted(
        zip((int(each[1]) if each else 99 for each in priority), (url for url, _ in links), strict=True),
        key=lambda link: link[0],
    )
    return [url for _, url in ranked]


def server_of(url: str) -> str:
    return str(URL(url).origin())


def _said_of_tokens(answer: Answer, key: str) -> list[str]:
    """What the director says of a namespace's tokens; pelicanfs reads the issuers alone."""
    pairs = [word.strip().partition("=") for word in answer.headers.get("X-Pelican-Token-Generation", "").split(",")]
    return [value for name, _, value in pairs if name == key]


def director_endpoint(host: str, answer: Answer) -> str:
    try:
        endpoint = str(json.loads(answer.body)["director_endpoint"]) if answer.status == 200 else ""
    except (ValueError, KeyError, TypeError):
        endpoint = ""
    if urlsplit(endpoint).scheme != "https":
        msg = (
            f"pelican://{host} is no Pelican federation: https://{host}/.well-known/pelican-configuration answered"
            f" HTTP {answer.status} without a director; check the host name"
        )
        raise OSError(msg)
    return server_of(endpoint)
