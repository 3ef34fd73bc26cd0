"""Bearer tokens: find them, read their claims, and keep them out of logs and pickles.

Tokens are read again for every request, so renewing the file renews every running read. The places and their order
follow the WLCG Bearer Token Discovery (doi:10.5281/zenodo.3937438) and HTCondor's credentials.
"""

import base64
import binascii
import errno
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
    "overwrite": ("storage.modify", "write"),  # Also for removing.
}

TOKEN = re.compile(r"[A-Za-z0-9._~+/=-]+")  # RFC 6750, 2.1; any other character could break the HTTP header.

shares: "list[Callable[[], list[Token]]]" = []
"""Functions that return the tokens that other processes share with this one (ray_backend/tokens.py)."""


@dataclass(frozen=True)
class Token:
    """A bearer token. Its value is in no repr and in no pickle.

    Attributes:
        value: the secret.
        place: where it was found, for messages.
        claims: the claims of a JSON web token; empty for an opaque token.
        federations: the federations that the user logged in for, when the token comes from a login.
    """

    value: str = field(repr=False)
    place: str = field(compare=False)
    claims: Mapping[str, Any] = field(compare=False)
    federations: tuple[str, ...] = field(default=(), compare=False)

    @classmethod
    def from_text(cls, text: str, place: str, federations: Sequence[str] = ()) -> "Token | None":
        """Parse a bare token, or JSON with `access_token`, as in a variable or a file; None if it is neither."""
        value = text.strip()
        if value.startswith("{"):
            try:
                value = str(json.loads(value).get("access_token") or "")
            except json.JSONDecodeError:  # A renewal that is not finished has written half of it.
                return None
        return cls(value, place, _claims(value), tuple(federations)) if TOKEN.fullmatch(value) else None

    def __reduce__(self) -> NoReturn:
        """Refuse to be pickled, because pickles go to other nodes and to disk."""
        msg = "a token does not go into a pickle; the other process must find its own"
        raise TypeError(msg)

    @property
    def issuer(self) -> str | None:
        """The URL of its issuer; None if the token does not name it."""
        issuer = self.claims.get("iss")
        return None if issuer is None else str(issuer).rstrip("/")

    @property
    def audience(self) -> list[str]:
        """The servers for which it is valid, from its `aud` claim; empty if it names none."""
        audience = self.claims.get("aud") or []
        return [str(name) for name in audience] if isinstance(audience, list) else [str(audience)]

    @property
    def scopes(self) -> list[str]:
        """Its scopes, such as `storage.read:/data`."""
        return str(self.claims.get("scope", "")).split()

    @property
    def names_storage(self) -> bool:
        """Whether any of its scopes concerns storage; otherwise only the servers can decide."""
        return any(scope.partition(":")[0] in names for scope in self.scopes for names in SCOPES.values())

    def expired(self, in_s: float = 0.0) -> bool:
        """Return whether the token will have expired in `in_s` seconds, by its `exp` claim."""
        expires_at = self.claims.get("exp")
        return isinstance(expires_at, int | float) and expires_at <= time.time() + in_s

    def allows(self, operation: Operation, path: str, base_paths: Sequence[str] = ()) -> bool:
        """Return whether its scopes cover a path; True if it names no storage scopes, so that the server decides.

        Args:
            operation: read, write a new file, or overwrite one.
            path: the path in the federation.
            base_paths: the folders to which scopes are relative (usually the namespace). The absolute path counts too.
        """
        if not self.names_storage:
            return True
        # Issuers write scopes relative to the namespace, and some as absolute paths.
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
    """Return every token that this process can find, in order of preference; shared tokens come last."""
    return local_tokens() + [token for share in shares for token in share()]


def local_tokens() -> list[Token]:
    """Return every token in the environment and in its files, in order of preference."""
    tokens = [Token.from_text(os.environ.get("BEARER_TOKEN", ""), "BEARER_TOKEN")]
    tokens += [_read(path) for path in _files()]
    return [token for token in tokens if token is not None]


def choose(
    tokens: Sequence[Token], issuers: Sequence[str], operation: Operation, path: str, base_paths: Sequence[str]
) -> Token | None:
    """Return the best token to send: preferably a token that covers the operation and has not expired. None if none fits.

    Args:
        tokens: candidates, in order of preference.
        issuers: the issuers that the namespace accepts; empty if it does not name them. A token of another issuer is
            never sent: the server would refuse it, and would then know it.
        operation: the operation for which the token is needed.
        path: the path in the federation.
        base_paths: see Token.allows.
    """
    names = {issuer.rstrip("/") for issuer in issuers}
    # A token that names no issuer (an opaque token) may fit; only the server can tell.
    fitting = [token for token in tokens if not names or token.issuer is None or token.issuer in names]

    def merit(token: Token) -> tuple[bool, bool]:
        return token.allows(operation, path, base_paths), not token.expired()

    return max(fitting, key=merit, default=None)  # max returns the first of equals.


def places() -> str:
    """Return the places where crmuons looks for tokens, with the state of each, for error messages."""
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
    """Return whether a path is a folder or lies below it. `/data2` is not below `/data`."""
    folder = folder.rstrip("/")
    return path == folder or path.startswith(f"{folder}/")


def _files() -> list[Path]:
    files = []
    if named := os.environ.get("BEARER_TOKEN_FILE"):
        files.append(Path(named))
    for folder in (os.environ.get("_CONDOR_CREDS"), ".condor_creds"):
        if folder:
            files += sorted(Path(folder).glob("*.use"))
    # The order of WLCG's bearer token discovery, with HTCondor's credentials before the user's file.
    runtime = os.environ.get("XDG_RUNTIME_DIR") or "/tmp"  # noqa: S108  the place that the discovery document names
    return [*files, Path(runtime) / f"bt_u{os.geteuid()}"]


def _read(path: Path) -> Token | None:
    try:
        return Token.from_text(_content(path), str(path))
    except OSError:  # `places` reports why; another place may have a token.
        return None


def _content(path: Path) -> str:
    """Return the content of a token file.

    Raises:
        PermissionError: if it belongs to another user, who may have put it there on purpose, or if others may read or write
            it. Others may read root's files, because Kubernetes mounts secrets in this way.
    """
    with path.open("rb") as file:
        # The open file is checked, because its name may be exchanged between a check and the reading.
        found = os.fstat(file.fileno())
        if found.st_uid not in (os.geteuid(), 0):
            raise PermissionError(errno.EACCES, f"it belongs to another user, of uid {found.st_uid}")
        if found.st_mode & (0o022 if found.st_uid == 0 != os.geteuid() else 0o077):
            raise PermissionError(errno.EACCES, f"others may read or write it; run: chmod 600 {path}")
        return file.read().decode(errors="replace")


def _state(text: str) -> str:
    return "holds no token" if Token.from_text(text, "") is None else "holds a token that does not fit"


def _claims(value: str) -> Mapping[str, Any]:
    """Return the payload of a JSON web token, unverified (the servers verify it); empty for any other text."""
    parts = value.split(".")
    if len(parts) != 3:
        return {}
    try:
        # JWT leaves out the padding that Python needs.
        claims = json.loads(base64.urlsafe_b64decode(parts[1] + "=" * (-len(parts[1]) % 4)))
    except (binascii.Error, ValueError):
        return {}
    return claims if isinstance(claims, dict) else {}
