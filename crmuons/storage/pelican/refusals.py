"""Choose the token of a request, and decide whether a refused request is repeated."""

import asyncio
from dataclasses import dataclass

from crmuons.storage.http.sources import Fault, Patience, Source, Sources
from crmuons.storage.pelican import login
from crmuons.storage.pelican.director import Namespace
from crmuons.storage.pelican.tokens import Operation, Token, choose, find_tokens, places
from crmuons.storage.pelican.trust import TRUSTED, may_see


@dataclass(frozen=True)
class Access:
    """A request to read or write a path. Without a namespace it is a request to the director."""

    namespace: Namespace | None
    path: str
    operation: Operation = "read"

    def accepted(self, token: Token | None) -> None:
        """Note that a server answered a request with this token."""
        if token is not None and self.namespace is not None:
            self.namespace.accepted = token

    async def token(self, server: Source | None = None) -> Token | None:
        """Look up the token to send to a server; None if no token is needed or no token fits.

        Without a server, return the token that one of the namespace's known servers would get.
        """
        if self.namespace is None or (self.operation == "read" and not self.namespace.needs_token):
            return None
        # In a thread, because a stored login may be renewed at its issuer, which blocks.
        return await asyncio.to_thread(_find_token, self.namespace, self, server)


async def judge_refusal(fault: Fault, access: Access, sources: Sources, patience: Patience, token_s: float) -> None:
    """Decide whether a refused request is worth repeating: return if another server or another token may succeed.

    Args:
        fault: the refusal (HTTP 401 or 403).
        access: the refused request.
        sources: the servers that can be asked.
        patience: the time limit of the operation; it records which servers refused which token.
        token_s: seconds to wait for the renewal of an expired or replaced token.

    Raises:
        PermissionError: if repeating is useless, with the tokens that were tried and the remedy.
    """
    # The reason of a refusal may be this token, this server, or a temporary state; each case is handled differently.
    sent, namespace = fault.credential, access.namespace
    if namespace is None:
        msg = f"{patience.what}: {fault}; a federation answers such requests without a token: check the URL"
        raise PermissionError(msg)
    if not isinstance(sent, Token):
        # The director may call a namespace public although its servers protect it: from now on a token is always sent.
        namespace.needs_token = True
        if await access.token(fault.source) is None and not _may_come_back(fault, namespace, patience, token_s):
            raise PermissionError(no_token(patience.what, namespace))
    elif sent.expired():
        # A login, HTCondor or another process has this time to renew the token, because runs last longer than tokens.
        if patience.since_first("token expired") > token_s:
            msg = f"{patience.what}: permission denied with {sent}, and it was not renewed; {_remedy(patience.what)}"
            raise PermissionError(msg)
        fault.retry_after_s = 1.0
    else:
        # Other servers may accept the token: one cache may not have the issuer's new key yet.
        patience.refused.add((fault.source.url, sent))
        # If all servers refuse a token that worked before, it was revoked, or the path needs other scopes.
        everywhere = all((source.url, sent) in patience.refused for source in sources.sources)
        if everywhere and (sent == namespace.accepted or not _may_come_back(fault, namespace, patience, token_s)):
            msg = f"{patience.what}: permission denied ({fault}) with {sent}; {_remedy(patience.what)}"
            raise PermissionError(msg)


def _may_come_back(fault: Fault, namespace: Namespace, patience: Patience, token_s: float) -> bool:
    """Return whether to wait for a new token: if a server accepted a token before, a renewal may be in progress."""
    if namespace.accepted is None or patience.since_first("token replaced") > token_s:
        return False
    fault.retry_after_s = 1.0
    return True


def no_token(what: str, namespace: Namespace) -> str:
    """Return the error sentence for a namespace for which no token fits."""
    # The sentence names the found tokens and the reason why they were not sent, but never their values.
    found = _candidates(namespace)
    others = [token for token in found if token.issuer not in (None, *namespace.issuers)]
    expected = f"a token of {' or '.join(namespace.issuers) or 'its issuer'}"
    if kept := [token for token in found if token not in others and not _may_go(token, namespace, None)]:
        audience = f"is for {', '.join(kept[0].audience)}" if kept[0].audience else "names no audience"
        return (
            f"{what}: {namespace.prefix} takes {expected}; {kept[0]} {audience}, and is not sent to {namespace.federation}, "
            f"which only claims that issuer; if you trust this federation, set {TRUSTED}={namespace.federation}, or "
            f"log in with 'crmuons login {what}'"
        )
    candidates = f"found {others[0]}, issued by {others[0].issuer}" if others else f"looked in {places()}"
    return f"{what}: {namespace.prefix} takes {expected}; {candidates}; {_remedy(what)}"


def _find_token(namespace: Namespace, access: Access, server: Source | None) -> Token | None:
    candidates = [token for token in _candidates(namespace) if _may_go(token, namespace, server)]
    return choose(candidates, namespace.issuers, access.operation, access.path, namespace.base_paths)


def _candidates(namespace: Namespace) -> list[Token]:
    # Tokens that the user set for this process come before stored logins.
    return [*find_tokens(), *login.stored_tokens(namespace.issuers)]


def _may_go(token: Token, namespace: Namespace, server: Source | None) -> bool:
    # If no server is chosen yet, one server that may get the token is enough.
    known = [each for sources in (namespace.origin, namespace.caches) if sources for each in sources.sources]
    urls = [each.url for each in ([server] if server else known)] or [namespace.federation]
    return any(may_see(token, url, namespace.federation) for url in urls)


def _remedy(url: str) -> str:
    return f"log in with 'crmuons login {url}', or name a file with a good token in BEARER_TOKEN_FILE"
