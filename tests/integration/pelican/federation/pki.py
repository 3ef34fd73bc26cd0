"""The trust of a test federation: a throw-away certificate authority, one host certificate, one token-signing key."""

import json
import sqlite3
import time
import uuid
from pathlib import Path

import trustme
from joserfc import jwt
from joserfc.jwk import ECKey

AUDIENCE = "https://wlcg.cern.ch/jwt/v1/any"
KEY_ID = "federation"


def make_pki(folder: Path) -> None:
    """Write ca.pem, host.pem, host.key, signing.pem (private) and jwks.json (public)."""
    folder.mkdir()
    ca = trustme.CA(key_type=trustme.KeyType.RSA)  # XRootD's own client does not take every elliptic curve.
    host = ca.issue_cert("localhost", "127.0.0.1", key_type=trustme.KeyType.RSA)
    ca.cert_pem.write_to_path(folder / "ca.pem")
    (folder / "host.pem").write_bytes(b"".join(pem.bytes() for pem in host.cert_chain_pems))
    _write_private(folder / "host.key", host.private_key_pem.bytes())
    key = ECKey.generate_key("P-256", {"use": "sig", "alg": "ES256", "kid": KEY_ID}, private=True)
    _write_private(folder / "signing.pem", key.as_pem(private=True))
    public = {**key.as_dict(private=False), "kid": KEY_ID, "use": "sig", "alg": "ES256"}
    (folder / "jwks.json").write_text(json.dumps({"keys": [public]}))


def make_token(pki: Path, issuer: str, scope: str, lifetime_s: float) -> str:
    """Sign a token of the WLCG profile; a negative lifetime gives one that has expired."""
    key = ECKey.import_key((pki / "signing.pem").read_bytes())
    now = int(time.time())
    claims = {
        "iss": issuer,
        "sub": "tester",
        "aud": AUDIENCE,
        "scope": scope,
        "iat": now - 1,
        "nbf": now - 1,
        "exp": now + int(lifetime_s),
        "jti": str(uuid.uuid4()),
        "wlcg.ver": "1.0",
    }
    return jwt.encode({"alg": "ES256", "kid": KEY_ID}, claims, key)


def preload_keys(cache_home: Path, issuer: str, jwks: Path) -> None:
    """Put an issuer's keys where scitokens-cpp keeps those it has fetched, so that XRootD need not trust our CA."""
    folder = cache_home / "scitokens"
    folder.mkdir(parents=True, exist_ok=True)
    good_until = int(time.time()) + 4 * 86400
    entry = {"jwks": json.loads(jwks.read_text()), "expires": good_until, "next_update": good_until}
    database = sqlite3.connect(folder / "scitokens_cpp.sqllite")
    with database:
        database.execute(
            "CREATE TABLE IF NOT EXISTS keycache (issuer text UNIQUE PRIMARY KEY NOT NULL, keys text NOT NULL)"
        )
        database.execute("INSERT OR REPLACE INTO keycache VALUES (?, ?)", (issuer, json.dumps(entry)))
    database.close()


def _write_private(path: Path, content: bytes) -> None:
    path.touch(mode=0o600)
    path.write_bytes(content)
