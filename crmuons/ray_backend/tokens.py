"""Share the driver's tokens with the nodes of a cluster: the tokens that a run's URLs need, and renewed tokens later.

A process that called `receive` looks for these tokens after its own (storage/pelican/tokens.py). One actor holds them in
memory. They travel as Ray's own messages do: nobody without the cluster's token can read them, and RAY_USE_TLS encrypts
them. Only access tokens are shared, because they expire soon; refresh tokens stay where the user logged in.
"""

import logging
import socket
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import ray

from crmuons.ray_backend import mailbox
from crmuons.storage import pelican
from crmuons.storage.files import FEDERATED
from crmuons.storage.pelican import login, tokens
from crmuons.storage.pelican.scopes import folder
from crmuons.storage.pelican.tokens import Token

logger = logging.getLogger(__name__)

# Looked up by name: tasks that Ray starts later have no handle of the actor.
NAME = "crmuons-tokens"
POLL_S = 5.0  # A token is renewed a minute before it expires.
TIMEOUT_S = 10.0

TokenPairs = list[
    tuple[str, str, tuple[str, ...]]
]  # (value, place, federations). A Token refuses to be pickled by accident, so its parts are sent instead.


@contextmanager
def shared(urls: Iterable[str]) -> Iterator[None]:
    """Share this process's tokens for these URLs during the block. Only URLs of a federation need tokens."""
    federated = [url for url in urls if url.startswith(FEDERATED)]
    if not federated:
        yield
        return
    # The actor has the first tokens before any task can ask for them.
    actor, ended, first = mailbox.start_key_value_actor(NAME), threading.Event(), _local_pairs(federated)
    ray.get(actor.put.remote(NAME, first))
    thread = threading.Thread(target=_renew, args=(actor, federated, first, ended), name="tokens", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join(TIMEOUT_S)
        ray.kill(actor)


def receive() -> None:
    """Let this process use the driver's tokens in addition to its own."""
    # Only once per process, because several tasks run in one process.
    if _received not in tokens.shares:
        tokens.shares.append(_received)


def _renew(actor: Any, urls: list[str], last: TokenPairs, ended: threading.Event) -> None:
    while not ended.wait(POLL_S):
        try:
            # The tokens are sent only when one has changed, not every POLL_S.
            if (current := _local_pairs(urls)) != last:
                ray.get(actor.put.remote(NAME, current), timeout=TIMEOUT_S)
                last = current
        except (OSError, ray.exceptions.RayError) as error:  # The tokens that were shared are valid for a while.
            logger.warning("renewed tokens could not be shared with the cluster; the next attempt follows: %s", error)


def _local_pairs(urls: list[str]) -> TokenPairs:
    """Return this process's tokens from the issuers of these URLs' namespaces, and tokens that name no issuer."""
    namespaces = [pelican.filesystem(url).namespace(pelican.split_url(folder(url))[1]) for url in urls]
    issuers = {issuer.rstrip("/") for namespace in namespaces for issuer in namespace.issuers}
    # Do not share all of the user's tokens: tokens of other issuers are useless for this run's URLs.
    usable = [token for token in tokens.local_tokens() if token.issuer is None or token.issuer in issuers]
    usable += login.stored_tokens(sorted(issuers))
    return [(token.value, f"{token.place} on {socket.gethostname()}", token.federations) for token in usable]


class _Received:
    """The driver's tokens as this process knows them; it asks the actor again after POLL_S."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._next_request = 0.0
        self._tokens: list[Token] = []

    def __call__(self) -> list[Token]:
        with self._lock:
            # Threads of the reader call this for each request. The actor is asked only every POLL_S.
            if time.monotonic() > self._next_request and ray.is_initialized():
                self._tokens = _request(self._tokens)
                self._next_request = time.monotonic() + POLL_S
            return self._tokens


def _request(known: list[Token]) -> list[Token]:
    try:
        pairs: TokenPairs = ray.get(ray.get_actor(NAME).get.remote(NAME), timeout=TIMEOUT_S) or []
    except ValueError:  # No actor: the driver shares no tokens.
        return []
    except ray.exceptions.RayError as error:
        # The last tokens are valid for minutes, and the driver may only be busy.
        logger.warning("the driver does not answer a request for its tokens: %s", error)
        return known
    return [token for pair in pairs if (token := Token.from_text(*pair)) is not None]


_received = _Received()
