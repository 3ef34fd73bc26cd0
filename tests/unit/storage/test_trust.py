"""Who may see a token: rules, and a real federation over TLS that claims the issuer of the user's token."""

import base64
import http.server
import json
import ssl
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trustme

from crmuons.storage import files
from crmuons.storage.pelican import federation as client
from crmuons.storage.pelican import login
from crmuons.storage.pelican.tokens import Token
from crmuons.storage.pelican.trust import may_see

ANY = "https://wlcg.cern.ch/jwt/v1/any"
ISSUER = "https://trusted.example.org"


def jwt(**claims: Any) -> str:
    return f"e30.{base64.urlsafe_b64encode(json.dumps(claims).encode()).decode().rstrip('=')}.c2ln"


@pytest.mark.parametrize(
    ("claims", "server", "federation", "allowed"),
    [
        ({"aud": "https://cache.org:8443"}, "https://cache.org:8443", "fed.org", True),
        ({"aud": ["https://a.org", "CACHE.org"]}, "https://cache.org:8443", "fed.org", True),
        ({"aud": "cache.org"}, "https://cache.org:8443", "fed.org", True),
        ({"aud": "https://fed.org"}, "https://cache.org:8443", "fed.org", True),
        ({"aud": "https://cache.org:8443"}, "https://cache.org:9443", "fed.org", False),
        ({"aud": "https://cache.org"}, "https://cache.org.evil.org", "evil.org", False),
        ({"aud": "https://other.org"}, "https://osg-htc.org", "osg-htc.org", False),  # The audience comes first.
        ({"aud": "https://other.org"}, "https://trusted.example.org", "fed.org", False),
        ({"aud": ANY}, "https://cache.org", "fed.org", False),
        ({}, "https://cache.org", "fed.org", False),
        ({"aud": []}, "https://cache.org", "fed.org", False),
        ({"aud": ANY}, "https://cache.org:8443", "osg-htc.org", True),
        ({}, "https://cache.org:8443", "osg-htc.org", True),
        ({"aud": ANY}, "https://osg-htc.org", "evil.org", False),  # Only its own director speaks for the OSDF.
        ({"aud": ANY}, "https://trusted.example.org:8443", "evil.org", True),  # TLS proves the issuer's own host.
        ({"aud": ANY}, "https://cache.org", "trusted.example.org:9000", True),
        ({"aud": "https://[half"}, "https://cache.org", "fed.org", False),
        ({"aud": 5}, "https://cache.org", "fed.org", False),
    ],
)
def test_a_token_goes_where_its_audience_or_its_issuer_allows(
    claims: dict[str, Any], server: str, federation: str, allowed: bool
) -> None:
    token = Token.from_text(jwt(iss=ISSUER, **claims), "a test")
    assert token is not None
    assert may_see(token, server, federation) is allowed


@pytest.mark.parametrize("trusted", ["fed.org", "https://fed.org", "a.org, fed.org", "cache.org:8443", "cache.org"])
def test_the_user_names_whom_to_trust(trusted: str, monkeypatch: pytest.MonkeyPatch) -> None:
    opaque = Token.from_text("no-jwt", "a test")
    assert opaque is not None
    assert not may_see(opaque, "https://cache.org:8443", "fed.org")
    monkeypatch.setenv("CRMUONS_PELICAN_TRUSTED", trusted)
    assert may_see(opaque, "https://cache.org:8443", "fed.org")
    assert not may_see(opaque, "https://cache.evil.org:8443", "evil.org")


def test_a_login_serves_the_federations_that_it_was_made_for() -> None:
    token = Token.from_text(jwt(iss=ISSUER, aud=ANY), "a login", ["fed.org:9000"])
    assert token is not None
    assert may_see(token, "https://cache.org", "fed.org:9000")
    assert not may_see(token, "https://cache.org", "evil.org")


@pytest.fixture
def hostile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, list[str]]]:
    """A federation that claims an issuer; yields its URL and the Authorization headers that it got."""
    seen: list[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True  # A body that waits for the acknowledgement of its headers comes 40 ms later.

        def answer(self) -> None:
            if value := self.headers.get("Authorization"):
                seen.append(value)
            base, body = f"https://127.0.0.1:{server.server_address[1]}", b""
            if "pelican-configuration" in self.path:
                body = json.dumps({"director_endpoint": base}).encode()
                self.send_response(200)
            elif self.path.startswith("/asked"):  # A server, not the director.
                self.send_response(403)
            else:
                self.send_response(307)
                self.send_header("Location", f"{base}/asked{self.path}")
                self.send_header("Link", f'<{base}/asked{self.path}>; rel="duplicate"; pri=1; depth=1')
                self.send_header("X-Pelican-Namespace", f"namespace=/ns, require-token=true, collections-url={base}")
                self.send_header("X-Pelican-Authorization", f"issuer={ISSUER}")
                self.send_header("X-Pelican-Token-Generation", f"issuer={ISSUER}, max-scope-depth=3, base-path=/ns")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_GET = do_HEAD = do_PUT = do_PROPFIND = answer  # noqa: N815  names of http.server

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    monkeypatch.setattr(client, "_federations", {})
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
    monkeypatch.setenv("CRMUONS_PELICAN_PATIENCE_S", "2")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    for name in ("BEARER_TOKEN_FILE", "_CONDOR_CREDS"):
        monkeypatch.delenv(name, raising=False)
    yield f"127.0.0.1:{server.server_address[1]}", seen
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.mark.parametrize(
    "token", [jwt(iss=ISSUER, aud=ANY), jwt(iss=ISSUER), jwt(iss=ISSUER, aud="https://origin.example.org"), "opaque"]
)
def test_a_federation_that_claims_an_issuer_gets_no_token(
    hostile: tuple[str, list[str]], token: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    host, seen = hostile
    monkeypatch.setenv("BEARER_TOKEN", token)
    for ask in (files.list_files, files.read_bytes, files.check_writable):
        with pytest.raises(OSError, match=f"is not sent to {host}, which only claims.*CRMUONS_PELICAN_TRUSTED={host}"):
            ask(f"pelican://{host}/ns/data/x")
    assert seen == []


def test_a_login_of_another_federation_is_not_sent_and_a_named_one_gets_it(
    hostile: tuple[str, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    host, seen = hostile
    monkeypatch.delenv("BEARER_TOKEN", raising=False)
    kept = login.Login(ISSUER, "c", "", "", jwt(iss=ISSUER, aud=ANY), "", 4e9, ("other.org",))
    login.store().parent.mkdir(parents=True)
    login.store().write_text(json.dumps({ISSUER: vars(kept)}))
    with pytest.raises(PermissionError, match=f"is not sent to {host}"):
        files.read_bytes(f"pelican://{host}/ns/data/x")
    assert seen == []
    monkeypatch.setenv("CRMUONS_PELICAN_TRUSTED", host)
    with pytest.raises(PermissionError, match="permission denied"):
        files.read_bytes(f"pelican://{host}/ns/data/x")
    assert set(seen) == {f"Bearer {kept.access_token}"}
