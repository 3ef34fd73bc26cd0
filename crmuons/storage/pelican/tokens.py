"""Bearer tokens: where they are found, what they say of themselves, and that they get nowhere else.

Tokens are read anew for every request, so whoever renews the file renews every running read.
Places and their order follow the WLCG Bearer Token Discovery (doi:10.5281/zenodo.3937438) and HTCondor's credentials.
"""

import base64
import binascii
import json
import os
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NoReturn

Operation = Literal["read", "write", "overwrite"]
SCOPES: dict[Operation, tuple[str, ...]] = {
    "read": ("storage.read", "storage.stage", "read"),
    "write": ("storage.modify", "storage.create", "write"),
    "overwrite": ("storage.modify", "write"),  # Removing too.
}

TOKEN = re.compile(r"[A-Za-z0-9._~+/=-]+")  # RFC 6750, 2.1; anything else is no token, and might break a header.

shares: "list[Callable[[], list[Token]]]" = []
"""Where else to look: what other processes share with this one (ray_tokens.py)."""


@dataclass(frozen=True)
class Token:
    """A bearer token. Its value shows in no repr and goes into no pickle.

    Attributes:
        value: the secret.
        place: where it was found, for messages.
        claims: what a JSON web token says of itself; empty for an opaque one.
    """

    value: str = field(repr=False)
    place: str = field(compare=False)
    claims: Mapping[str, Any] = field(compare=False)

    @classmethod
    def from_text(cls, text: str, place: str) -> "Token | None":
        """A token as it stands in a variable or a file, bare or as JSON with `access_token`; None where there is none."""
        value = text.strip()
        if value.startswith("{"):
            try:
                value = str(json.loads(value).get("access_token") or "")
            except json.JSONDecodeError:  # Half written: whoever renews it is not done.
                return None
        return cls(value, place, _claims(value)) if TOKEN.fullmatch(value) else None

    def __reduce__(self) -> NoReturn:
        """Refuse to be pickled: pickles go to other nodes and to disk."""
        msg = "a token does not go into a pickle; the other process finds its own"
        raise TypeError(msg)

    @property
    def issuer(self) -> str | None:
        """URL of who signed it, None if it does not say."""
        issuer = self.claims.get("iss")
        return None if issuer is None else str(issuer).rstrip("/")

    @property
    def scopes(self) -> list[str]:
        """What it allows, such as `storage.read:/data`."""
        return str(self.claims.get("scope", "")).split()

    @property
    def names_storage(self) -> bool:
        """Whether its scopes say anything of storage; otherwise the servers decide."""
        return any(scope.partition(":")[0] in names for scope in self.scopes for names in SCOPES.values())

    def expired(self, in_s: float = 0.0) -> bool:
        """Whether it says that it will have expired by then."""
        expires_at = self.claims.get("exp")
        return isinstance(expires_at, int | float) and expires_at <= time.time() + in_s

    def allows(self, operation: Operation, path: str, base_paths: Sequence[str] = ()) -> bool:
        """Whether its scopes cover a path; True where it names no storage scopes, so that the server decides.

        Args:
            operation: read, write a new file, or overwrite one.
            path: the path in the federation.
            base_paths: what scopes are relative to (the namespace, as a rule); the absolute path is tried as well.
        """
        if not self.names_storage:
            return True
        granted = [scope.partition(":") for scope in self.scopes]
        candidates = [
            path,
            *(path.removeprefix(base.rstrip("/")) or "/" for base in base_paths if is_below(path, base)),
        ]
        return any(
            name in SCOPES[operation] and is_below(candidate, folder or "/")
            for name, _, folder in granted
            for candidate in candidates
        )

    def __str__(self) -> str:
        scopes = f" with scopes '{' '.join(self.scopes)}'" if self.scopes else ""
        expires_at = self.claims.get("exp")
        expiry = ""
        if isinstance(expires_at, int | float):
            verb = "expired" if self.expired() else "expires"
            expiry = f", which {verb} at {time.strftime('%Y-%m-%d %H:%M:%S UTC', time.gmtime(expires_at))}"
        return f"the token from {self.place}{scopes}{expiry}"


def find_tokens() -> list[Token]:
    """Every token that this process can find, the first to use first; those that others share come last."""
    return local_tokens() + [token for share in shares for token in share()]


def local_tokens() -> list[Token]:
    """Every token in the environment and its files, the first to use first."""
    found = [Token.from_text(os.environ.get("BEARER_TOKEN", ""), "BEARER_TOKEN")]
    found += [_read(path) for path in _files()]
    return [token for token in found if token is not None]


def choose(
    tokens: Sequence[Token], issuers: Sequence[str], operation: Operation, path: str, base_paths: Sequence[str]
) -> Token | None:
    """The token to send: one that is good and covers the operation, or else the best of those that fit. None if none does.

    Args:
        tokens: candidates, in order of preference.
        issuers: whose tokens the namespace takes; empty if it does not say. A token of somebody else is never sent:
            it would be refused, and the server would have seen it.
        operation: what it is for.
        path: the path in the federation.
        base_paths: see Token.allows.
    """
    wanted = {issuer.rstrip("/") for issuer in issuers}
    fitting = [token for token in tokens if not wanted or token.issuer is None or token.issuer in wanted]

    def merit(token: Token) -> tuple[bool, bool]:
        return token.allows(operation, path, base_paths), not token.expired()

    return max(fitting, key=merit, default=None)  # The first of equals.


def places() -> str:
    """Where tokens are looked for, and how it stands with each place; for error messages."""
    variable = os.environ.get("BEARER_TOKEN", "")
    names = [f"BEARER_TOKEN ({_state(variable) if variable else 'not set'})"]
    if not os.environ.get("BEARER_TOKEN_FILE"):
        names.append("BEARER_TOKEN_FILE (not set)")
    for path in _files():
        try:
            names.append(f"{path} ({_state(_content(path))})")
        except FileNotFoundError:
            names.append(f"{path} (missing)")
        except OSError as error:
            names.append(f"{path} (cannot be read: {error.strerror})")
    return ", ".join(names)


def is_below(path: str, folder: str) -> bool:
    """Whether a path is a folder or lies below it; `/data2` is not below `/data`."""
    folder = folder.rstrip("/")
    return path == folder or path.startswith(f"{folder}/")


def _files() -> list[Path]:
    files = []
    if named := os.environ.get("BEARER_TOKEN_FILE"):
        files.append(Path(named))
    for folder in (os.environ.get("_CONDOR_CREDS"), ".condor_creds"):
        if folder:
            files += sorted(Path(folder).glob("*.use"))
    runtime = os.environ.get("XDG_RUNTIME_DIR") or "/tmp"  # noqa: S108  the place that the discovery document names
    return [*files, Path(runtime) / f"bt_u{os.geteuid()}"]


def _read(path: Path) -> Token | None:
    try:
        return Token.from_text(_content(path), str(path))
    except OSError:  # `places` says why; another place may have one.
        return None


def _content(path: Path) -> str:
    return path.read_bytes().decode(errors="replace")


def _state(text: str) -> str:
    return "holds no token" if Token.from_text(text, "") is None else "has one that is not for it"


def _claims(value: str) -> Mapping[str, Any]:
    """The payload of a JSON web token, unverified (the servers verify it); empty if this is none."""
    parts = value.split(".")
    if len(parts) != 3:
        return {}
    try:
        claims = json.loads(base64.urlsafe_b64decode(parts[1] + "=" * (-len(parts[1]) % 4)))
    except (binascii.Error, ValueError):
        return {}
    return claims if isinstance(claims, dict) else {}
