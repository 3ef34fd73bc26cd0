"""Tokens and logins at a real federation: found, renewed, refused with the remedy, and never shown."""

import concurrent.futures
import json
import logging
import os
import pickle
import re
import threading
import time
import traceback
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from crmuons.cli import main
from crmuons.storage import files, pelican
from crmuons.storage.pelican import federation as client
from crmuons.storage.pelican import login
from crmuons.storage.pelican.scopes import scopes_by_issuer
from tests.integration.pelican.federation.federation import Federation, what_is_missing, write_private
from tests.integration.pelican.sample import events, expected, one_file, read

MISSING = what_is_missing()
pytestmark = [pytest.mark.pelican, pytest.mark.skipif(bool(MISSING), reason=MISSING)]


def test_a_token_is_found_and_used(fed: Federation, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    good, stale = fed.token(), fed.token(lifetime_s=-60)
    credentials = tmp_path / "credentials"
    credentials.mkdir()
    write_private(tmp_path / f"bt_u{os.geteuid()}", stale)
    write_private(credentials / "other.use", fed.token(issuer="https://elsewhere.org"))
    write_private(credentials / "ours.use", f'{{"access_token": "{good}"}}')
    monkeypatch.setenv("_CONDOR_CREDS", str(credentials))
    assert read(fed.url("/private/sim")).equals(expected(fed, "private"))
    monkeypatch.setenv("BEARER_TOKEN", fed.token())
    assert len(files.list_files(fed.url("/private/sim"))) == 6


@pytest.mark.parametrize("meanwhile", ["expired", "garbage", "half", "gone"])
def test_renewal_reaches_a_file_that_is_open(
    fed: Federation, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, meanwhile: str
) -> None:
    token = tmp_path / "token"
    write_private(token, fed.token())
    monkeypatch.setenv("BEARER_TOKEN_FILE", str(token))
    file = one_file(fed, "private")
    parquet = pq.ParquetFile(files.open_file(file.url, file.size), pre_buffer=True)
    before = parquet.read_row_group(0)
    if meanwhile == "gone":
        token.unlink()
    else:
        stale = fed.token(lifetime_s=-60)
        write_private(token, {"expired": stale, "garbage": "garbage", "half": fed.token()[:-20]}[meanwhile])
    renewal = threading.Timer(1.5, lambda: write_private(token, fed.token()))
    renewal.start()
    after = [parquet.read_row_group(i) for i in range(1, parquet.num_row_groups)]
    renewal.join()
    assert pa.concat_tables([before, *after]).equals(events(0))
    assert 403 in {entry["status"] for entry in fed.log(*Federation.caches)}


REFUSED = {
    "no token": (
        None,
        "takes a token of https://localhost:.*looked in BEARER_TOKEN .not set.*crmuons login pelican://",
    ),
    "a token of another issuer": (
        {"issuer": "https://elsewhere.org"},
        "takes a token of https://localhost:.*found the token from BEARER_TOKEN .*issued by https://elsewhere.org",
    ),
    "a token for another folder": (
        {"scope": "storage.read:/other"},
        "permission denied .*HTTP 403.*storage.read:/other",
    ),
    "an expired token that nobody renews": ({"lifetime_s": -60}, "permission denied .*which expired at .*not renewed"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_refusal_names_url_token_and_remedy(fed: Federation, monkeypatch: pytest.MonkeyPatch, case: str) -> None:
    token, message = REFUSED[case]
    if token is not None:
        monkeypatch.setenv("BEARER_TOKEN", fed.token(**token))
    began = time.monotonic()
    with pytest.raises(PermissionError, match=message) as raised:
        files.list_files(fed.url("/private/sim"))
    assert str(raised.value).startswith(fed.url("/private/sim"))
    assert "crmuons login" in str(raised.value)
    assert time.monotonic() - began < 8


def test_a_token_shows_in_no_log_pickle_or_error(
    fed: Federation, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    token = fed.token()
    secret = token.rpartition(".")[2]
    monkeypatch.setenv("BEARER_TOKEN", token)
    file = one_file(fed, "private")
    opened = files.open_file(file.url, file.size)
    opened.read(100)
    fed.fault(*Federation.caches, cut=100)
    opened.read(1000)
    monkeypatch.setenv("CRMUONS_PELICAN_PATIENCE_S", "0.5")
    client._federations.clear()
    shown = [repr(opened), repr(vars(opened))]
    for fault in ({"cut": 0}, {"reset": True}, {"status": 403}, {"status": 503}, {"stall": 1}):
        fed.fault(*Federation.caches, **fault)
        with pytest.raises(OSError, match="pelican://") as raised:
            files.open_file(file.url, file.size).read(1000)
        shown += [
            repr(raised.value),
            "".join(traceback.format_exception(raised.value)),
            repr(pickle.dumps(raised.value)),
        ]
    pickles = pickle.dumps([opened, pelican.filesystem(file.url)])
    assert secret not in "".join(shown)
    assert secret not in caplog.text
    assert secret.encode() not in pickles
    assert caplog.text  # Something was logged at all.


def log_in(fed: Federation, read: list[str], write: list[str]) -> None:
    """Do what `crmuons login` does, with a user who approves at once."""
    for issuer, scopes in scopes_by_issuer(read, write).items():
        login.log_in(issuer, scopes, lambda _, code: fed.approve(code))


def test_a_login_reads_and_writes_what_it_was_made_for(fed: Federation, tmp_path: Path) -> None:
    log_in(fed, [fed.url("/private/sim/*/*.parquet")], [fed.url("/private/runs")])
    assert read(fed.url("/private/sim")).equals(expected(fed, "private"))
    files.put(fed.ca, fed.url("/private/runs/logged-in"))
    with pytest.raises(PermissionError, match="cannot be written with the token from crmuons login"):
        files.check_writable(fed.url("/private/elsewhere/x"))
    assert [path.stat().st_mode & 0o777 for path in login.store().parent.iterdir()] == [0o600, 0o600]


def test_a_login_is_renewed_once_however_many_ask(fed: Federation) -> None:
    log_in(fed, [fed.url("/private/sim")], [])
    first = json.loads(login.store().read_text())[fed.issuer]
    login.store().write_text(json.dumps({fed.issuer: {**first, "expires_at": 0}}))
    together = threading.Barrier(8)

    def ask(_: int) -> str:
        together.wait()
        return login.stored_tokens([fed.issuer])[0].value

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        tokens = set(pool.map(ask, range(8)))
    # The issuer takes each refresh token once: had two used the same, one would have been left with the old token.
    assert len(tokens) == 1
    assert tokens != {first["access_token"]}
    assert json.loads(login.store().read_text())[fed.issuer]["refresh_token"] != first["refresh_token"]
    assert len(files.list_files(fed.url("/private/sim"))) == 6


def test_a_login_that_is_denied_says_so(fed: Federation) -> None:
    with pytest.raises(PermissionError, match=r"refused the login .*access_denied.*log in again"):
        login.log_in(fed.issuer, ["storage.read:/"], lambda _, code: fed.approve(code, deny=True))
    assert not login.store().exists()


def test_the_command_shows_where_to_confirm_and_keeps_the_login(
    fed: Federation, capfd: pytest.CaptureFixture[str]
) -> None:
    url = fed.url("/private/sim/*.parquet")
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        command = pool.submit(main, ["login", url])
        shown = ""
        deadline = time.monotonic() + 20
        while (code := re.search(r"confirm the code (\S+)", shown)) is None and time.monotonic() < deadline:
            time.sleep(0.1)
            shown += capfd.readouterr().out
        assert code is not None, shown
        fed.approve(code[1])
        assert command.result(20) == 0
    assert "storage.read:/sim" in shown
    assert "▄" in shown  # The QR code.
    assert len(files.list_files(fed.url("/private/sim"))) == 6
    secrets = json.loads(login.store().read_text())[fed.issuer]
    assert secrets["access_token"] not in shown + "".join(capfd.readouterr())


def test_the_command_without_urls_says_what_to_give(fed: Federation, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["login"]) == 1
    message = "no pelican:// URL given; name the URLs to read, or the URLs to write after --write"
    assert capsys.readouterr().err == f"crmuons login: {message}\n"
