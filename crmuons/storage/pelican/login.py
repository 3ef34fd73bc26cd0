"""Logins to token issuers, stored in one file and renewed by any process that needs them.

Only the owner can read the file. A process that finds a token about to expire renews it under a lock, because an issuer
gives a new refresh token each time and revokes the old one.
"""

import fcntl
import json
import logging
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from crmuons.storage.atomic import atomic_file
from crmuons.storage.pelican.issuer import Client, Issuer, seconds
from crmuons.storage.pelican.tokens import Token
from crmuons.storage.records import damage_named

logger = logging.getLogger(__name__)

RENEW_BEFORE_S = 60.0  # A token must not expire while a request is under way.
DEFAULT_LIFETIME_S = 600.0  # Lifetime of a token if the issuer does not give it.
SECONDS_BETWEEN_TRIES = 10.0  # Pause after a failed renewal; without it every request would wait for the issuer.

# The time of the next try by issuer, for this process only: another process may have a working network.
_next_try: dict[str, float] = {}


@dataclass(frozen=True)
class Login:
    """A login to one issuer."""

    issuer: str
    client_id: str
    client_secret: str = field(repr=False)
    refresh_token: str = field(repr=False)
    access_token: str = field(repr=False)
    scope: str
    expires_at: float
    federations: Sequence[str] = ()  # Their servers may get the tokens. Logins of crmuons 0.1 have none.

    def renewed(self, answer: Any) -> "Login":
        """Return this login with the tokens of an issuer's answer."""
        return replace(
            self,
            # An issuer may change the refresh token or keep it. If the answer has none, the old one stays valid.
            access_token=str(answer["access_token"]),
            refresh_token=str(answer.get("refresh_token", self.refresh_token)),
            expires_at=time.time() + seconds(answer, "expires_in", DEFAULT_LIFETIME_S),
        )

    def is_due(self) -> bool:
        """Return whether the token must be renewed now and can be."""
        # Wall time, because the issuer gives the expiry, and it must survive a restart of this process.
        due = bool(self.refresh_token) and time.time() > self.expires_at - RENEW_BEFORE_S
        return due and time.monotonic() > _next_try.get(self.issuer, 0.0)


def store() -> Path:
    """Return the path of the file that holds the logins."""
    return Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "crmuons" / "logins.json"


def log_in(
    issuer_url: str, scopes: Sequence[str], show: Callable[[str, str], None], federations: Sequence[str] = ()
) -> Path:
    """Log in by the device flow and store the login. Scopes of an earlier login to the same issuer are kept.

    Args:
        issuer_url: the issuer.
        scopes: the scopes to ask for, such as `storage.read:/data`.
        show: shows the user the URL to open and the code to confirm.
        federations: the federations, HOST or HOST:PORT, whose servers may get the tokens.

    Returns:
        The file that holds the login.

    Raises:
        OSError: if the login fails; see Issuer.
    """
    # Scopes are added: a login for writing must not remove reading from a run that uses the earlier login.
    issuer = Issuer.discover(issuer_url)
    before = _load().get(issuer_url)
    merged = dict.fromkeys([*(before.scope.split() if before else ()), "wlcg", "offline_access", *scopes])
    scope = " ".join(merged)
    client = Client(before.client_id, before.client_secret) if before else issuer.register(scope)
    answer = issuer.device_login(client, scope, show)
    if "refresh_token" not in answer:
        logger.warning("%s gave no refresh token: this login ends when its token expires", issuer_url)
    # Federations of earlier logins are kept, because their runs may still continue.
    known = dict.fromkeys([*(before.federations if before else ()), *federations])
    # `renewed` sets the tokens and computes the expiry.
    login = Login(issuer_url, client.id, client.secret, "", "", scope, 0.0, tuple(known)).renewed(answer)
    with _locked():
        _save({**_load(), issuer_url: login})
    return store()


def stored_tokens(issuers: Sequence[str]) -> list[Token]:
    """Return the tokens of the logins to these issuers, renewed if they are about to expire."""
    # Names of issuers occur with and without a slash at the end.
    names = {issuer.rstrip("/") for issuer in issuers}
    logins = [login for url, login in _load().items() if url.rstrip("/") in names]
    current = [_renew(login.issuer) if login.is_due() else login for login in logins]
    tokens = [
        Token.from_text(login.access_token, f"crmuons login ({login.issuer})", login.federations) for login in current
    ]
    return [token for token in tokens if token is not None]


def _renew(issuer_url: str) -> Login:
    """Return the login, renewed by this process or by a faster one; unchanged if the issuer does not renew it."""
    with _locked():
        logins = _load()
        login = logins[issuer_url]
        # Another process may have renewed it while this process waited; the old refresh token cannot be used again.
        if not login.is_due():
            return login
        try:
            client = Client(login.client_id, login.client_secret)
            login = login.renewed(Issuer.discover(issuer_url).refresh(client, login.refresh_token))
        except OSError as error:  # The old token may still work for a while; a later request tries again.
            logger.warning("%s", error)
            _next_try[issuer_url] = time.monotonic() + SECONDS_BETWEEN_TRIES
            return login
        _save({**logins, issuer_url: login})
        return login


def _load() -> dict[str, Login]:
    try:
        text = store().read_text(encoding="utf-8")
    except FileNotFoundError:
        return {}
    with damage_named(store(), "remove it, and log in again with `crmuons login`"):
        return {url: Login(**fields) for url, fields in json.loads(text).items()}


def _save(logins: dict[str, Login]) -> None:
    """Replace the file atomically; only its owner can read it, from the first byte on."""
    with (
        atomic_file(store()) as partial,
        # The mode is set at creation: with a later chmod, others could open the file for a moment.
        os.fdopen(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file,
    ):
        json.dump({url: asdict(login) for url, login in logins.items()}, file)


@contextmanager
def _locked() -> Iterator[None]:
    store().parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    # A separate lock file, because each write replaces the store, and a lock on the old file would stop nobody.
    lock = store().with_suffix(".lock")
    with os.fdopen(os.open(lock, os.O_WRONLY | os.O_CREAT, 0o600), "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # Released when the file is closed.
        yield
