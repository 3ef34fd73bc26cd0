"""Servers that redirect, never end, compress nothing to gigabytes or write to the terminal cost one sentence, no secret and no disk."""

import gzip
import json
import re
import ssl
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import trustme
from fsspec.asyn import sync

from crmuons.storage import files
from crmuons.storage.http import site, whole
from crmuons.storage.http.sources import FinalError
from crmuons.storage.pelican import federation, issuer, servers
from crmuons.storage.pelican.issuer import Client, Issuer

Answer = tuple[int, Mapping[str, str], bytes]
CLIENT = Client("me", "the-secret")


class Handler(BaseHTTPRequestHandler):
    """Answers as the function `answer` says, and keeps what it was asked."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # A body that waits for the acknowledgement of its headers comes 40 ms later.
    answer: Callable[["Handler"], Answer]
    seen: list[tuple[str, str, str]]

    def do_GET(self) -> None:
        sent = self.rfile.read(int(self.headers.get("Content-Length") or 0)).decode()
        self.seen.append((self.path, self.headers.get("Authorization") or "", sent))
        status, headers, body = type(self).answer(self)
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(body))} | dict(headers)).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    do_HEAD = do_POST = do_PUT = do_PROPFIND = do_CONNECT = do_GET  # noqa: N815  names of http.server

    def log_message(self, *_: object) -> None:
        """Say nothing."""


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *_: object) -> None:
        """Clients hang up here by design."""


@contextmanager
def serving(
    answer: Callable[[Handler], Answer], trust: ssl.SSLContext | None = None
) -> Iterator[tuple[str, list[tuple[str, str, str]]]]:
    """Serve on loopback, with TLS if there is a context; yield the URL, and (path, Authorization, body) of each request."""
    handler = type("Told", (Handler,), {"answer": answer, "seen": []})
    with Server(("127.0.0.1", 0), handler) as server:
        if trust is not None:
            server.socket = trust.wrap_socket(server.socket, server_side=True)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        yield f"http{'' if trust is None else 's'}://127.0.0.1:{server.server_address[1]}", handler.seen
        server.shutdown()
        thread.join()


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Clients of their own with short waits, and no proxy."""
    for name in (
        "http_proxy",
        "https_proxy",
        "HTTP_PROXY",
        "HTTPS_PROXY",
        "all_proxy",
        "ALL_PROXY",
        "no_proxy",
        "BEARER_TOKEN",
    ):
        monkeypatch.delenv(name, raising=False)  # fmt: skip
    for name in ("HTTP_START", "HTTP_PATIENCE", "PELICAN_START", "PELICAN_PATIENCE"):
        monkeypatch.setenv(f"CRMUONS_{name}_S", "0.5")
    monkeypatch.setattr(site, "_instances", {})
    monkeypatch.setattr(federation, "_federations", {})
    yield
    for made in site._instances.values():
        if made.web._session is not None:
            sync(made.loop, made.web._session.close)


@pytest.fixture
def tls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ssl.SSLContext:
    """A context whose authority is trusted here."""
    authority, context = trustme.CA(), ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    authority.issue_cert("127.0.0.1").configure_cert(context)
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
    return context


def of_json(content: object) -> Answer:
    return 200, {"Content-Type": "application/json"}, json.dumps(content).encode()


# Token issuers.


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_an_issuers_redirect_takes_no_secret_to_another_origin(tls: ssl.SSLContext, status: int) -> None:
    with serving(lambda _: of_json({"access_token": "x"}), tls) as (other, seen):
        with serving(lambda _: (status, {"Location": f"{other}/token"}, b""), tls) as (url, _):
            redirecting = Issuer(url, {"token_endpoint": f"{url}/token"})
            with pytest.raises(OSError, match=r"redirects to https://127\.0\.0\.1"):
                redirecting.refresh(CLIENT, "the-refresh-token")
            with pytest.raises(OSError, match="which is not followed"):
                Issuer.discover(url)
        assert seen == []


def test_a_redirect_within_an_issuer_is_followed(tls: ssl.SSLContext) -> None:
    def answer(request: Handler) -> Answer:
        return (302, {"Location": "/moved"}, b"") if request.path != "/moved" else of_json({"access_token": "new"})

    with serving(answer, tls) as (url, _):
        renewed = Issuer(url, {"token_endpoint": f"{url}/token"}).refresh(CLIENT, "the-refresh-token")
        assert renewed["access_token"] == "new"


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (lambda _: (200, {}, b"x" * 3 * 2**20), "its answer has no end"),
        (lambda _: (400, {}, b"x" * 3 * 2**20), "its answer has no end"),
        (lambda _: (200, {"Content-Length": "1000"}, b"x"), "broke off"),
        (lambda request: (302, {"Location": f"{request.path}x"}, b""), "is no token issuer"),  # urllib gives up after ten.
        (lambda _: (200, {"X": "y" * 100_000}, b"{}"), "cannot be asked: .*line"),
    ],
)  # fmt: skip
def test_an_issuer_without_end_is_left(
    tls: ssl.SSLContext, monkeypatch: pytest.MonkeyPatch, answer: Callable[[Handler], Answer], says: str
) -> None:
    monkeypatch.setattr(issuer, "TIMEOUT_S", 1.0)
    with serving(answer, tls) as (url, _), pytest.raises(OSError, match=says):
        Issuer.discover(url)


@pytest.mark.parametrize(
    "device",
    [
        {"verification_uri": "https://x/\x1b[2J", "user_code": "A"}, {"verification_uri": "https://x/", "user_code": "\x1b]0;x\x07"},
        {"verification_uri": "javascript:x", "user_code": "A"}, {"user_code": "A"}, {"verification_uri": "https://x/" + "y" * 9000},
    ],
)  # fmt: skip
def test_what_an_issuer_shows_is_a_page_and_a_code(tls: ssl.SSLContext, device: dict[str, str]) -> None:
    shown: list[object] = []
    with serving(lambda _: of_json({"device_code": "x", **device}), tls) as (url, _):
        asked = Issuer(url, {"device_authorization_endpoint": f"{url}/device", "token_endpoint": f"{url}/token"})
        with pytest.raises(OSError, match="begins the login with no https page"):
            asked.device_login(CLIENT, "wlcg", lambda *words: shown.append(words))
    assert shown == []


@pytest.mark.parametrize("given", ["soon", None, [], "nan", -1, 1e300, float("inf")])
def test_a_time_that_is_none_counts_as_not_given(given: object) -> None:
    assert issuer.seconds({"expires_in": given}, "expires_in", 7.0) == 7.0
    assert issuer.seconds({"expires_in": "12"}, "expires_in", 7.0) == 12.0


# Federations.


def test_a_federation_is_reached_through_the_proxy_except_for_the_hosts_of_no_proxy(
    tls: ssl.SSLContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving(lambda _: (403, {}, b"")) as (proxy, asked), serving(lambda _: (404, {}, b""), tls) as (url, seen):
        monkeypatch.setenv("https_proxy", proxy)
        with pytest.raises(ConnectionError, match="the proxy of https_proxy or http_proxy answered HTTP 403"):
            files.read_bytes("pelican://federation.invalid/ns/x")
        assert asked[0][0] == "federation.invalid:443"
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        with pytest.raises(OSError, match="is no Pelican federation"):
            files.read_bytes(f"pelican://{url.removeprefix('https://')}/ns/x")
        assert seen
        assert not any("127.0.0.1" in path for path, _, _ in asked)


@pytest.mark.parametrize("junk", ["x", "://", "http://[", "ftp://h:1", "\x1b[2J", "http://"])
@pytest.mark.parametrize("url", ["https://127.0.0.1:1/x.parquet", "pelican://127.0.0.1:1/ns/x"])
def test_a_variable_that_is_no_proxy_is_named(url: str, junk: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("https_proxy", junk)
    with pytest.raises(ValueError, match="the variable https_proxy is no address of a proxy"):
        files.read_bytes(url)


def test_a_federation_whose_answer_has_no_end_is_left(tls: ssl.SSLContext, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(servers, "MAX_ANSWER_BYTES", 2**20)
    says = "sends an answer of more than 1 MiB; name a folder with fewer files"
    with serving(lambda _: (200, {}, b"x" * 2**21), tls) as (url, _), pytest.raises(ValueError, match=says):
        files.read_bytes(f"pelican://{url.removeprefix('https://')}/ns/x")


# Web servers.


@pytest.mark.parametrize("listed", [True, False])
def test_a_compressed_answer_fills_no_disk(listed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    bomb = gzip.compress(b"\0" * 2**23)
    assert len(bomb) < 10_000
    monkeypatch.setattr(whole, "MAX_BYTES", 2**20)
    written: list[int] = []
    write = whole.Copy.write

    def noting(copy: whole.Copy, piece: bytes) -> int:
        written.append(len(piece))
        return write(copy, piece)

    monkeypatch.setattr(whole.Copy, "write", noting)

    def answer(request: Handler) -> Answer:
        if listed and request.headers.get("Range") == "bytes=0-0":
            return 206, {"Content-Range": "bytes 0-0/1000"}, b"x"
        return 200, {"Content-Encoding": "gzip"}, bomb

    says = f"the server sends more than {1000 if listed else 2**20} bytes"
    with serving(answer) as (url, _), pytest.raises(FinalError, match=says):
        files.read_bytes(f"{url}/a.parquet")
    assert sum(written) <= 2 * 2**20
    assert max(written) <= whole.INFLATED_BYTES


@pytest.mark.parametrize(
    "begin", ["HTTP/1.1 200 OK\r\nX: ", "HTTP/1.1 206 Partial\r\nContent-Range: bytes {}-99999/100000\r\nContent-Length: 100000\r\n\r\n"]
)  # fmt: skip
@pytest.mark.parametrize("scheme", ["http", "pelican"])
def test_a_server_that_trickles_is_left(
    tls: ssl.SSLContext, monkeypatch: pytest.MonkeyPatch, scheme: str, begin: str
) -> None:
    """A byte now and then would hold a reader up for days: the limit for the next byte begins anew with each."""
    for name in ("HTTP", "PELICAN"):
        monkeypatch.setenv(f"CRMUONS_{name}_READ_S", "0.1")
        monkeypatch.setenv(f"CRMUONS_{name}_CONNECT_S", "1")
        monkeypatch.setenv(f"CRMUONS_{name}_PATIENCE_S", "0.2")
    ended = threading.Event()

    def answer(request: Handler) -> Answer:
        first = re.search(r"\d+", request.headers.get("Range", "0"))
        request.wfile.write(begin.format(first and first[0]).encode())
        while not ended.wait(0.02):
            request.wfile.write(b"x")
        return 200, {}, b""

    with serving(answer, tls if scheme == "pelican" else None) as (url, _):
        began = time.monotonic()
        # The last reason is that of a busy machine, on which this server itself sends nothing for 0.1 s.
        reasons = r"no whole answer came in time|it sent \d+ bytes in 0.1 s|Timeout on reading"
        with pytest.raises(ConnectionError, match=reasons):
            files.read_bytes(f"{scheme}://{url.partition('://')[2]}/a.parquet")
        ended.set()
    assert time.monotonic() - began < 60


def test_a_small_file_that_is_large_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "MAX_SMALL_BYTES", 100)

    def answer(request: Handler) -> Answer:
        first, last = map(int, re.findall(r"\d+", request.headers["Range"]))
        return 206, {"Content-Range": f"bytes {first}-{last}/1000000"}, b"x" * (last - first + 1)

    with serving(answer) as (url, _), pytest.raises(ValueError, match=r"manifest.json has more than .* MiB, too much"):
        files.read_bytes(f"{url}/manifest.json")
