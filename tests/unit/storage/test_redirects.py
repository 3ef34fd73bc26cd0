"""Redirects: a loop is named at once, none leads from https to http or to a file, none takes a token to another host."""

import ssl
from collections.abc import Callable
from pathlib import Path

import pytest

from crmuons.storage import files
from crmuons.storage.http.sources import FinalError
from tests.unit.storage.test_hostile_servers import Answer, Handler, impatient, of_json, serving, tls

__all__ = ["impatient", "tls"]  # Fixtures.

Redirect = Callable[[Handler], Answer]
LISTING = """<?xml version="1.0"?><D:multistatus xmlns:D="DAV:"><D:response><D:href>{}</D:href><D:propstat><D:prop>
<D:getcontentlength>3</D:getcontentlength></D:prop></D:propstat></D:response></D:multistatus>"""


@pytest.fixture(autouse=True)
def patient(impatient: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Wait for a minute: what is named at once does not wait for the end of patience."""
    for name in ("HTTP_START", "HTTP_PATIENCE", "PELICAN_START", "PELICAN_PATIENCE"):
        monkeypatch.setenv(f"CRMUONS_{name}_S", "60")


def federation(redirect: Redirect, own: list[str], *, token: bool = False, where: str = "cache") -> Redirect:
    """Answer as discovery, director, origin and cache of a federation, of which one part redirects."""

    def answer(request: Handler) -> Answer:
        if "well-known" in request.path:
            return redirect(request) if where == "discovery" else of_json({"director_endpoint": own[0]})
        if request.headers.get("Range") or request.command == "PUT":  # The director is asked without a range.
            return redirect(request)
        path = request.path.removeprefix("/api/v1.0/director/origin")
        if request.command == "PROPFIND" and request.headers.get("Depth") is not None:
            if request.path.endswith("/new"):
                return 404, {}, b""
            return redirect(request) if where == "origin" else (207, {}, LISTING.format(request.path).encode())
        headers = {
            "X-Pelican-Namespace": f"namespace=/, require-token={str(token).lower()}, collections-url={own[0]}",
            "Link": f'<{own[0]}{path}>; rel="duplicate"; pri=1',
        }
        return 307, {**headers, "Location": f"{own[0]}{path}"}, b""

    return answer


def loop(request: Handler) -> Answer:
    """Redirect to a second address, and from there back."""
    path = request.path.removesuffix("?again")
    return 302, {"Location": path if request.path.endswith("?again") else f"{path}?again"}, b""


def test_a_loop_at_a_web_server_is_named_at_once() -> None:
    with serving(loop) as (url, seen):
        with pytest.raises(FinalError, match=r"redirects in a loop of 2 addresses; tell who runs .*give the URL"):
            files.read_bytes(f"{url}/a.parquet")
        assert len(seen) == 11


@pytest.mark.parametrize("where", ["discovery", "origin", "cache"])
def test_a_loop_in_a_federation_is_named_at_once(tls: ssl.SSLContext, where: str) -> None:
    own: list[str] = []
    with serving(federation(loop, own, where=where), tls) as (url, seen):
        own.append(url)
        with pytest.raises(OSError, match="redirects in a loop of 2 addresses; tell who runs") as raised:
            files.read_bytes(f"pelican://{url.removeprefix('https://')}/cache/a.parquet")
        assert "nothing came" not in str(raised.value)
        assert len(seen) < 20


def test_a_chain_without_end_is_no_loop_and_named_too() -> None:
    def further(request: Handler) -> Answer:
        return 302, {"Location": f"{request.path}x"}, b""

    with serving(further) as (url, _), pytest.raises(FinalError, match="redirects more than 10 times; tell who runs"):
        files.read_bytes(f"{url}/a.parquet")


def test_a_cache_that_redirects_in_a_loop_is_passed_over_for_another(tls: ssl.SSLContext) -> None:
    own: list[str] = []

    def good(request: Handler) -> Answer:
        return 206, {"Content-Range": "bytes 0-2/3"}, b"abc"

    with serving(good, tls) as (other, _):

        def answer(request: Handler) -> Answer:
            status, headers, body = federation(loop, own)(request)
            if "Link" in headers:
                headers = {**headers, "Link": f'{headers["Link"]}, <{other}/cache/a.parquet>; rel="duplicate"; pri=2'}
            return status, headers, body

        with serving(answer, tls) as (url, _):
            own.append(url)
            assert files.read_bytes(f"pelican://{url.removeprefix('https://')}/cache/a.parquet") == b"abc"


TARGETS = ["file:///etc/passwd", "http://127.0.0.1:9/x", "ftp://127.0.0.1/x", "data:,x", "gopher://127.0.0.1:9/x"]


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("scheme", ["https", "pelican"])
def test_a_redirect_out_of_https_is_refused_at_once(tls: ssl.SSLContext, scheme: str, target: str) -> None:
    own: list[str] = []
    redirect: Redirect = lambda _: (302, {"Location": target}, b"")  # noqa: E731
    with serving(federation(redirect, own) if scheme == "pelican" else redirect, tls) as (url, seen):
        own.append(url)
        with pytest.raises(OSError, match=rf"redirects to {target.partition(':')[0]}://.*, which is not followed"):
            files.read_bytes(f"{scheme}://{url.removeprefix('https://')}/cache/a.parquet")
        assert len(seen) < 10


@pytest.mark.parametrize("target", TARGETS)
def test_an_upload_is_not_redirected_out_of_https(
    tls: ssl.SSLContext, target: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BEARER_TOKEN", "secret-token")
    (tmp_path / "local").write_bytes(b"abc")
    with serving(lambda _: (201, {}, b"")) as (plain, seen):
        own: list[str] = []
        redirect: Redirect = lambda _: (307, {"Location": target.replace("http://127.0.0.1:9", plain)}, b"")  # noqa: E731
        with serving(federation(redirect, own, token=True), tls) as (url, _):
            own.append(url)
            monkeypatch.setenv("CRMUONS_PELICAN_TRUSTED", url.removeprefix("https://"))
            with pytest.raises(OSError, match=rf"redirects to {target.partition(':')[0]}://.*, which is not followed"):
                files.put(tmp_path / "local", f"pelican://{url.removeprefix('https://')}/data/new")
        assert seen == []


@pytest.mark.parametrize("command", ["get", "put"])
def test_a_redirect_to_another_host_takes_no_token_along(
    tls: ssl.SSLContext, command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BEARER_TOKEN", "secret-token")
    (tmp_path / "local").write_bytes(b"abc")

    def thief(request: Handler) -> Answer:
        return (206, {"Content-Range": "bytes 0-2/3"}, b"abc") if request.command == "GET" else (201, {}, b"")

    with serving(thief, tls) as (other, seen):
        own: list[str] = []
        redirect: Redirect = lambda _: (307, {"Location": f"{other}/x"}, b"")  # noqa: E731
        with serving(federation(redirect, own, token=True), tls) as (url, first):
            own.append(url)
            monkeypatch.setenv("CRMUONS_PELICAN_TRUSTED", url.removeprefix("https://"))
            monkeypatch.setenv("CRMUONS_PELICAN_PATIENCE_S", "0.5")
            place = f"pelican://{url.removeprefix('https://')}"
            if command == "get":
                assert files.read_bytes(f"{place}/cache/a.parquet") == b"abc"
            else:
                with pytest.raises(OSError, match="nothing came"):  # The origin never has it.
                    files.put(tmp_path / "local", f"{place}/data/new")
            assert "Bearer secret-token" in {authorization for _, authorization, _ in first}
        assert seen
        assert {authorization for _, authorization, _ in seen} == {""}
