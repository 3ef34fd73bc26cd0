"""Bearer tokens: where they are found, which one is sent, and that none leaks."""

import base64
import json
import os
import pickle
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from crmuons.storage.pelican import login, tokens
from crmuons.storage.pelican.tokens import Token


def jwt(**claims: Any) -> str:
    """A token with these claims; no test checks its signature."""
    payload = base64.urlsafe_b64encode(json.dumps(claims).encode()).decode().rstrip("=")
    return f"header.{payload}.signature"


def token(place: str = "somewhere", **claims: Any) -> Token:
    found = Token.from_text(jwt(**claims), place)
    assert found is not None
    return found


@pytest.fixture(autouse=True)
def private_files() -> Iterator[None]:
    """Token files that others may read are refused."""
    before = os.umask(0o077)
    yield
    os.umask(before)


@pytest.fixture
def places(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A folder that contains all places for tokens, without a token."""
    for name in ("BEARER_TOKEN", "BEARER_TOKEN_FILE", "_CONDOR_CREDS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_tokens_are_found_in_order(places: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert tokens.find_tokens() == []
    (places / f"bt_u{os.geteuid()}").write_text("default\n")
    (places / "credentials").mkdir()
    (places / "credentials" / "b.use").write_text("condor-b")
    (places / "credentials" / "a.use").write_text('{"access_token": "condor-a", "expires_in": 1200}')
    (places / "named").write_text("  named  ")
    monkeypatch.setenv("_CONDOR_CREDS", str(places / "credentials"))
    monkeypatch.setenv("BEARER_TOKEN_FILE", str(places / "named"))
    monkeypatch.setenv("BEARER_TOKEN", "variable")
    found = tokens.find_tokens()
    assert [each.value for each in found] == ["variable", "named", "condor-a", "condor-b", "default"]
    assert found[0].place == "BEARER_TOKEN"
    assert found[1].place == str(places / "named")


@pytest.mark.parametrize("mode", [0o604, 0o640, 0o620, 0o602, 0o666])
def test_a_token_file_that_others_may_read_or_write_is_refused(places: Path, mode: int) -> None:
    file = places / f"bt_u{os.geteuid()}"
    file.write_text("default")
    file.chmod(mode)
    assert tokens.find_tokens() == []
    assert f"{file} (cannot be read: others may read or write it; run: chmod 600 {file})" in tokens.places()
    file.chmod(0o600)
    assert [found.value for found in tokens.find_tokens()] == ["default"]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may give a file away")
def test_a_token_file_of_another_user_is_refused(places: Path) -> None:
    file = places / f"bt_u{os.geteuid()}"
    file.write_text("planted")
    os.chown(file, 65534, 65534)
    assert tokens.find_tokens() == []
    assert f"{file} (cannot be read: it belongs to another user, of uid 65534)" in tokens.places()


def test_a_file_that_is_empty_half_written_or_gone_is_no_token(places: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = places / "named"
    monkeypatch.setenv("BEARER_TOKEN_FILE", str(file))
    for content in ("", "\n", '{"access_tok', '{"expires_in": 5}'):
        file.write_text(content)
        assert tokens.find_tokens() == []
        assert f"{file} (holds no token)" in tokens.places()
    file.unlink()
    assert tokens.find_tokens() == []
    assert f"{file} (missing)" in tokens.places()


@pytest.mark.parametrize(
    "content", [b"abc\ndef", b"abc\r\nX-Evil: 1", "tök€n".encode(), b"\x93\x00\xff", b"[1]", b'{"access_token": null}']
)
def test_what_could_not_be_sent_is_no_token(places: Path, monkeypatch: pytest.MonkeyPatch, content: bytes) -> None:
    (places / "named").write_bytes(content)
    monkeypatch.setenv("BEARER_TOKEN_FILE", str(places / "named"))
    assert tokens.find_tokens() == []
    assert f"{places / 'named'} (holds no token)" in tokens.places()


def test_a_file_that_cannot_be_read_is_passed_over_and_said(places: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (places / "named").mkdir()
    monkeypatch.setenv("BEARER_TOKEN_FILE", str(places / "named"))
    (places / f"bt_u{os.geteuid()}").write_text("default")
    assert [token.value for token in tokens.find_tokens()] == ["default"]
    assert f"{places / 'named'} (cannot be read: Is a directory)" in tokens.places()


def test_renewing_the_file_renews_the_token(places: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BEARER_TOKEN_FILE", str(places / "named"))
    for value in ("first", "second"):
        (places / "named").write_text(value)
        assert tokens.find_tokens()[0].value == value


def test_a_token_of_another_issuer_is_never_sent() -> None:
    foreign = token(iss="https://other.org")
    assert tokens.choose([foreign], ["https://ours.org"], "read", "/data", []) is None
    ours = token(iss="https://ours.org/")
    assert tokens.choose([foreign, ours], ["https://ours.org"], "read", "/data", []) == ours
    opaque = Token.from_text("no-jwt", "somewhere")
    assert tokens.choose([foreign, opaque], ["https://ours.org"], "read", "/data", []) == opaque


def test_a_good_token_that_covers_the_path_is_preferred() -> None:
    expired = token("expired", exp=time.time() - 10, scope="storage.read:/data")
    elsewhere = token("elsewhere", exp=time.time() + 1000, scope="storage.read:/other")
    reading = token("reading", exp=time.time() + 1000, scope="storage.read:/data")
    writing = token("writing", exp=time.time() + 1000, scope="storage.modify:/data")
    candidates = [expired, elsewhere, reading, writing]
    assert tokens.choose(candidates, [], "read", "/ns/data/x", ["/ns"]) == reading
    assert tokens.choose(candidates, [], "write", "/ns/data/x", ["/ns"]) == writing
    assert tokens.choose(candidates[:2], [], "read", "/ns/data/x", ["/ns"]) == expired  # It may be renewed.


@pytest.mark.parametrize(
    ("scope", "operation", "path", "allowed"),
    [
        ("storage.read:/", "read", "/ns/data/x", True),
        ("storage.read:/data", "read", "/ns/data/x", True),
        ("storage.read:/data", "read", "/ns/data2/x", False),
        ("storage.read:/ns/data", "read", "/ns/data/x", True),
        ("storage.read:/", "write", "/ns/data/x", False),
        ("storage.create:/data", "write", "/ns/data/x", True),
        ("storage.modify:/data/x", "write", "/ns/data/x", True),
        ("storage.modify", "write", "/ns/data/x", True),
        ("openid profile", "write", "/ns/data/x", True),  # No storage scope: the server decides.
        ("", "read", "/ns/data/x", True),
    ],
)
def test_scopes_cover_folders_below_the_namespace(scope: str, operation: Any, path: str, allowed: bool) -> None:
    assert token(scope=scope).allows(operation, path, ["/ns"]) is allowed


def test_a_token_describes_itself_without_its_value() -> None:
    one = token("BEARER_TOKEN_FILE", scope="storage.read:/data", exp=1_000_000_000)
    assert (
        str(one)
        == "the token from BEARER_TOKEN_FILE with scopes 'storage.read:/data', which expired at 2001-09-09 01:46:40 UTC"
    )
    assert one.value not in f"{one} {one!r}"
    with pytest.raises(TypeError, match="does not go into a pickle"):
        pickle.dumps(one)


def test_without_a_login_there_is_no_stored_token(places: Path) -> None:
    assert login.stored_tokens(["https://ours.org"]) == []


def test_a_login_shows_no_secret_and_serves_its_issuer_alone(places: Path) -> None:
    secrets = {"client_secret": "s1", "refresh_token": "s2", "access_token": jwt(iss="https://ours.org")}
    fields = {"issuer": "https://ours.org", "client_id": "c", "scope": "", "expires_at": time.time() + 1000, **secrets}
    login.store().parent.mkdir()
    login.store().write_text(json.dumps({"https://ours.org": fields}))
    (found,) = login.stored_tokens(["https://ours.org/"])
    assert found.value == secrets["access_token"]
    assert login.stored_tokens(["https://other.org"]) == login.stored_tokens([]) == []
    shown = repr(login.Login(**fields))  # type: ignore[arg-type]
    assert not any(secret in shown for secret in secrets.values())
