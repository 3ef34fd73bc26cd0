"""Decide which servers may get a token.

A director only claims that a namespace accepts tokens of an issuer, and a federation can claim any issuer. A server that
gets a token can use it, so no token is sent because of the claim alone.
"""

import os
import re
from urllib.parse import urlsplit

from crmuons.storage.pelican.addresses import OSDF
from crmuons.storage.pelican.tokens import Token

TRUSTED = "CRMUONS_PELICAN_TRUSTED"
EVERYWHERE = {
    "https://wlcg.cern.ch/jwt/v1/any",
    "any",
}  # "Any audience" in the WLCG profile and SciTokens, in lower case.


def may_see(token: Token, server: str, federation: str) -> bool:
    """Return whether a token may be sent to a server of a federation.

    It may be sent if the user named the server or the federation in CRMUONS_PELICAN_TRUSTED or logged in for the federation,
    or if the token's audience names one of them. A token for any audience, or without an audience, may go to the OSDF, and to
    the issuer's own host, whose identity TLS proves.

    Args:
        token: the token.
        server: the server's URL.
        federation: the federation's HOST or HOST:PORT.
    """
    places = (server, federation)
    # Read at each request, because the variable may be set after the import.
    trusted = os.environ.get(TRUSTED, "").replace(",", " ").split()
    if federation in token.federations or _any_names(trusted, places):
        return True
    audience = token.audience
    # An audience decides alone, because the issuer has named the servers that may use the token.
    if audience and EVERYWHERE.isdisjoint(name.lower() for name in audience):
        return _any_names(audience, places)
    issuer = [_host(token.issuer)[0]] if token.issuer else []
    # The issuer made the token and can make more, so sending it to the issuer's own host reveals nothing.
    return _any_names([OSDF], (federation,)) or _any_names(issuer, places)


def _any_names(names: list[str], places: tuple[str, ...]) -> bool:
    """Return whether one of the names is the host of one of the places; a port counts if the name has one."""
    hosts = [_host(place) for place in places]
    return any(
        host and (host, port or there) == (where, there) for host, port in map(_host, names) for where, there in hosts
    )


def _host(url: str) -> tuple[str, int | None]:
    """Return host and port of a URL, or of HOST[:PORT]; an empty host if there is none."""
    try:
        parts = urlsplit(url if re.match(r"\w+://", url) else f"//{url}")
        return (parts.hostname or "").rstrip("."), parts.port
    except ValueError:  # A port that is no number, or half an IPv6 address.
        return "", None
