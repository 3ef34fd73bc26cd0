"""A tracking server that lists files without end, or others than a model has, makes this machine copy nothing."""

import json
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import mlflow
import pytest

from crmuons.tracking import logged_models
from crmuons.tracking.logged_models import local_place

MODEL = "m-" + "0" * 32


@contextmanager
def serving(listings: dict[str, list[list[dict[str, object]]]]) -> Iterator[tuple[str, list[str]]]:
    """Serve one logged model; yield the URL and the paths of files that were asked for.

    Args:
        listings: folder -> its answers, one after the other; the last one again and again.
    """
    copied: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            parts = urlsplit(self.path)
            if "/logged-models/" in parts.path:
                info = {"model_id": MODEL, "experiment_id": "0", "name": "x", "artifact_uri": "mlflow-artifacts:/x"}
                body: object = {"model": {"info": info, "data": {}}}
            elif parts.path.endswith("/artifacts"):
                folder = parse_qs(parts.query)["path"][0].removeprefix("x").strip("/")
                answers = listings.get(folder, listings["..."])
                body = {"files": answers.pop(0) if len(answers) > 1 else answers[0]}
            else:
                copied.append(parts.path)
                body = {}
            self.send_response(200)
            self.end_headers()
            self.wfile.write(json.dumps(body).encode())

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", copied
    finally:
        server.shutdown()
        server.server_close()


def file(path: str, size: int = 1) -> dict[str, object]:
    return {"path": path, "is_dir": False, "file_size": size}


FOLDER = {"path": "deeper", "is_dir": True}


def aside(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Copy to a folder, with a small limit, and let MLflow forget the server afterwards."""
    monkeypatch.setattr(logged_models, "caches", lambda: folder)
    monkeypatch.setattr(logged_models, "MAX_FILES", 20)
    monkeypatch.setattr(mlflow.tracking._tracking_service.utils, "_tracking_uri", None)


@pytest.mark.parametrize(
    ("listings", "fault"),
    [
        ({"...": [[file(f"{number}") for number in range(30)]]}, r"names more than 20 files.*nothing was copied; check"),
        ({"...": [[FOLDER]]}, r"names more than 20 files.*nothing was copied; check"),
        ({"...": [[file("weights.pt", 10**15)]]}, r"has 1000\.0 TB in 1 files, more than .*nothing was copied; check"),
        ({"...": [[file("weights.pt", 2**31)]]}, r"is no model of crmuons: it has a file of more than 1024 MiB"),
        ({"...": [[file("weights.pt", -1)]]}, r"gives 'weights.pt' no size that a file can have; nothing was copied"),
        ({"...": [[file("x"), {"path": "x", "is_dir": True}]], "x": [[file("y")]]}, "names 'x/y' below a path that is a file"),
    ],
)  # fmt: skip
def test_a_model_is_counted_and_weighed_before_a_file_is_copied(
    listings: dict[str, list[list[dict[str, object]]]], fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    aside(tmp_path, monkeypatch)
    with serving(listings) as (url, copied):
        monkeypatch.setenv("MLFLOW_TRACKING_URI", url)
        with pytest.raises(ValueError, match=rf"models:/{MODEL} in {url} {fault}"):
            local_place(f"models:/{MODEL}")
        assert copied == []
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_a_server_that_lists_more_at_the_second_question_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    aside(tmp_path, monkeypatch)
    few, many = [file("model.json")], [file(f"{number}") for number in range(30)]
    with serving({"...": [few, many]}) as (url, copied):
        monkeypatch.setenv("MLFLOW_TRACKING_URI", url)
        with pytest.raises(ValueError, match="names more than 20 files"):
            local_place(f"models:/{MODEL}")
        assert copied == []


@pytest.mark.parametrize("chosen", [None, "sqlite:////tmp/of-the-user.db"])
def test_mlflow_uses_the_store_of_the_users_program_afterwards(
    chosen: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    aside(tmp_path, monkeypatch)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with serving({"...": [[file("weights.pt", 10**15)]]}) as (url, _):
        if chosen is not None:
            mlflow.set_tracking_uri(chosen)
        before = mlflow.get_tracking_uri(), os.environ.get("MLFLOW_TRACKING_URI")
        with pytest.raises(ValueError, match="nothing was copied"):
            logged_models.local_copy_of(f"models:/{MODEL}", url)
    assert (mlflow.get_tracking_uri(), os.environ.get("MLFLOW_TRACKING_URI")) == before
