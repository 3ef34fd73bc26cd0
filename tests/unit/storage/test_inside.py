"""Names from a stranger's manifest, journal, index or listing stay inside their folder."""

import hashlib
import http.server
import json
import threading
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest

from crmuons.data.manifest import Manifest
from crmuons.generation.load import local_model
from crmuons.runs import checkpoint
from crmuons.storage import files
from crmuons.storage.inside import OutsideError, inside, relative_name
from crmuons.storage.pelican.webdav import check_inside, parse_listing

PAYLOAD = b"echo the stranger's code\n"


@pytest.mark.parametrize(
    "name", ["/etc/passwd", "../x", "a/../../x", "a/..", "..", ".", "", "a//b", "a/", "./a", "a\0b", None, 3, ["a"]]
)
def test_a_name_that_leaves_its_folder_is_refused(name: object, tmp_path: Path) -> None:
    with pytest.raises(OutsideError, match=r"the journal names .* no path below its own folder"):
        inside(tmp_path, name, "the journal")


@pytest.mark.parametrize("name", ["a", "a/b.c", "..a/b..", "ä b/#%2e%2e", "-x", "~/x", "C:\\x"])
def test_every_other_name_is_taken_as_it_is(name: str, tmp_path: Path) -> None:
    assert relative_name(name, "x") == name
    assert inside(tmp_path, name, "x") == tmp_path / name


def test_a_link_on_the_way_is_refused(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder/link").symlink_to(tmp_path / "elsewhere")
    for name in ("link", "link/x"):
        with pytest.raises(OutsideError, match="folder/link is a link"):
            inside(tmp_path / "folder", name, "x")


class Stranger:
    """A web server with an artifact whose manifest names what it likes; the digest in its name is right."""

    def __init__(self, port: int, payloads: dict[str, str]) -> None:
        sent = {path: (len(PAYLOAD), hashlib.sha256(PAYLOAD).hexdigest()) for path in payloads}
        named = json.dumps(["model-00000001", sent, {}], sort_keys=True)
        self.name = f"model-00000001-{hashlib.sha256(named.encode()).hexdigest()[:16]}"
        self.manifest = {"label": "model-00000001", "files": sent, "about": {}, "places": payloads}
        self.url = f"http://127.0.0.1:{port}/{self.name}"

    def answer(self, path: str) -> bytes:
        if path.rstrip("/") == f"/{self.name}":
            return b'<a href="manifest.json">m</a><a href="payload">p</a>'
        return json.dumps(self.manifest).encode() if path.endswith("manifest.json") else PAYLOAD


@pytest.fixture
def serve() -> Iterator[http.server.ThreadingHTTPServer]:
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = server.stranger.answer(self.path)  # type: ignore[attr-defined]
            self.send_response(200)
            self.send_header("Content-Type", "text/html" if body.startswith(b"<") else "application/octet-stream")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        do_HEAD = do_GET  # noqa: N815  names of http.server

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.mark.parametrize("kind", ["absolute", "above", "place"])
def test_a_model_url_writes_no_file_outside_its_copy(
    serve: http.server.ThreadingHTTPServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "caches"))
    victim = tmp_path / "home/.bashrc"
    name, place = {
        "absolute": (str(victim), "payload"),
        "above": (f"{'../' * 20}{str(victim).lstrip('/')}", "payload"),
        "place": ("model.json", "../other/secret"),
    }[kind]
    stranger = serve.stranger = Stranger(serve.server_address[1], {name: place})  # type: ignore[attr-defined]
    with pytest.raises(OutsideError, match="no path below its own folder"):
        local_model(stranger.url)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_a_listing_writes_no_file_outside_its_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Hostile(fsspec.AbstractFileSystem):  # type: ignore[misc]  # fsspec is untyped
        protocol, cachable = "hostile", False

        def isdir(self, path: str) -> bool:
            return True

        def find(self, path: str, **_: object) -> dict[str, dict[str, int]]:
            return {f"{path}/../../outside": {"size": len(PAYLOAD)}}

        def get_file(self, rpath: str, lpath: str, **_: object) -> None:
            Path(lpath).write_bytes(PAYLOAD)

    monkeypatch.setattr(files, "filesystem", lambda url: (Hostile(), "/" + url.partition("://")[2]))
    with pytest.raises(OutsideError):
        files.get_tree("hostile://host/model", tmp_path / "a/b")
    assert not (tmp_path / "outside").exists()


def test_a_link_in_the_copy_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    (tmp_path / "source/model.json").write_text("{}")
    (tmp_path / "copy").mkdir()
    (tmp_path / "copy/model.json").symlink_to(tmp_path / "victim")
    with pytest.raises(OutsideError, match="is a link"):
        files.get_tree(str(tmp_path / "source"), tmp_path / "copy")
    assert not (tmp_path / "victim").exists()


@pytest.mark.parametrize("href", ["/ns/a/../../etc/x", "/elsewhere/x", "/ns/a/b/c", "/ns/a/..", "https://other.org/x"])
def test_a_federation_lists_only_what_lies_in_the_listed_folder(href: str) -> None:
    def listing(*hrefs: str) -> bytes:
        entries = "".join(
            f"<response><href>{each}</href><propstat><prop><getcontentlength>1</getcontentlength></prop></propstat></response>"
            for each in hrefs
        )
        return f'<multistatus xmlns="DAV:">{entries}</multistatus>'.encode()

    check_inside(parse_listing(listing("/ns/a/", "/ns/a/good%20one")), "/ns/a")
    with pytest.raises(OutsideError, match="the listing of /ns/a names"):
        check_inside(parse_listing(listing("/ns/a/", href)), "/ns/a")


def test_a_prepared_manifest_names_only_its_own_shards(tmp_path: Path) -> None:
    shard = {"file": "../other/x.arrow", "places": [0.0, 1.0], "events": 1, "muons": 1, "size": 1, "sha256": ""}
    content = {"shards": [shard], "rows": 1, "quarantined": 0, "settings": {}, "sources": [], "code": {}}
    (tmp_path / "manifest.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"names '\.\./other/x.arrow', which is no path below its own folder"):
        Manifest.read(str(tmp_path))


def test_a_prepared_manifest_of_wrong_types_is_damaged(tmp_path: Path) -> None:
    """A source that is a number made a TypeError where files are compared, long after the manifest was read."""
    content = {"shards": [], "rows": 1, "quarantined": 0, "settings": {}, "sources": [["a", 1]], "code": {}}
    (tmp_path / "manifest.json").write_text(json.dumps(content))
    assert Manifest.read(str(tmp_path)).sources == [("a", 1)]
    for wrong in ({"sources": [[2**64, 1]]}, {"rows": "x"}, {"shards": [3]}, {"settings": []}, {"sources": None}):
        (tmp_path / "manifest.json").write_text(json.dumps(content | wrong))
        with pytest.raises(
            ValueError, match=rf"manifest.json is damaged, .*\({min(wrong)}.*\(got .*; prepare the data again"
        ):
            Manifest.read(str(tmp_path))


def test_the_mark_of_the_best_checkpoint_names_one_of_its_folder(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "step-00000001").mkdir()
    (tmp_path / "checkpoints/best").write_text("../step-00000001")
    assert checkpoint.best(tmp_path / "checkpoints") is None


@pytest.mark.parametrize("url", ["models:/crmuons@best", "runs:/0123/model", "models:/m-0123", "mlflow-artifacts:/1/x"])
def test_a_model_of_mlflow_is_refused_before_its_code_runs(url: str) -> None:
    with pytest.raises(ValueError, match="may hold code of the user who logged it; crmuons loads only weights"):
        local_model(url)
