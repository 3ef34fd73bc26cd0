"""Tokens for the nodes of a cluster: the driver shares those that its URLs take, and renewed ones as they come.

A process that called `receive` finds them after its own (pelican/tokens.py). They are held in the memory of one actor and
travel as Ray's own messages do: shown to nobody without the cluster's token, and encrypted with RAY_USE_TLS. Access tokens
alone are shared, which expire; refresh tokens stay where the login is.
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

NAME = "crmuons-tokens"
SECONDS_BETWEEN_LOOKS = 5.0  # A token is renewed a minute before it expires.
TIMEOUT_S = 10.0

Shared = list[tuple[str, str]]  # Value and place. A Token itself refuses to be pickled: here it is on purpose.


@contextmanager
def shared(urls: Iterable[str]) -> Iterator[None]:
    """Share this process's tokens for these URLs with the cluster for as long as the block lasts; none for other schemes."""
    federated = [url for url in urls if url.startswith(FEDERATED)]
    if not federated:
        yield
        return
    desk, over, first = mailbox.start_key_value_actor(NAME), threading.Event(), _ours(federated)
    ray.get(desk.put.remote(NAME, first))
    thread = threading.Thread(target=_renew, args=(desk, federated, first, over), name="tokens", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join(TIMEOUT_S)
        ray.kill(desk)


def receive() -> None:
    """Let this process find what the driver shares, wherever in it tokens are looked for."""
    if _received not in tokens.shares:
        tokens.shares.append(_received)


def _renew(desk: Any, urls: list[str], before: Shared, over: threading.Event) -> None:
    while not over.wait(SECONDS_BETWEEN_LOOKS):
        try:
            if (now := _ours(urls)) != before:
                ray.get(desk.put.remote(NAME, now), timeout=TIMEOUT_S)
                before = now
        except (OSError, ray.exceptions.RayError) as error:  # What was shared holds for a while yet.
            logger.warning("renewed tokens could not be shared with the cluster, which is tried again: %s", error)


def _ours(urls: list[str]) -> Shared:
    """The tokens that the issuers of these URLs' namespaces gave, or that do not say whose they are."""
    namespaces = [pelican.filesystem(url).namespace(pelican.split_url(folder(url))[1]) for url in urls]
    issuers = {issuer.rstrip("/") for namespace in namespaces for issuer in namespace.issuers}
    found = [each for each in tokens.local_tokens() if each.issuer is None or each.issuer in issuers]
    found += login.stored_tokens(sorted(issuers))
    return [(each.value, f"{each.place} on {socket.gethostname()}") for each in found]


class _Received:
    """What this process knows of the shared tokens; asked for anew every SECONDS_BETWEEN_LOOKS."""

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._due = 0.0
        self._found: list[Token] = []

    def __call__(self) -> list[Token]:
        with self._guard:
            if time.monotonic() > self._due and ray.is_initialized():
                self._found = _ask(self._found)
                self._due = time.monotonic() + SECONDS_BETWEEN_LOOKS
            return self._found


def _ask(known: list[Token]) -> list[Token]:
    try:
        pairs: Shared = ray.get(ray.get_actor(NAME).get.remote(NAME), timeout=TIMEOUT_S) or []
    except ValueError:  # Nobody shares any.
        return []
    except ray.exceptions.RayError as error:
        logger.warning("the driver's tokens cannot be asked for: %s", error)
        return known
    return [token for value, place in pairs if (token := Token.from_text(value, place)) is not None]


_received = _Received()
