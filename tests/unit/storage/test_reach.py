"""A server that cannot be reached is named in one sentence within 10 s, whatever asks for it."""

import re
import socket
import threading
import time

import pytest

from crmuons.cli import main
from crmuons.storage import files, filesystems, reach
from crmuons.storage.http.waits import Waits
from crmuons.storage.pelican import waits as pelican_waits
from crmuons.storage.stores import StoreError
from crmuons.tracking.health import unreachable_reason as tracking_reason


@pytest.fixture
def silent():
    """The address of a host that takes no connection and refuses none: its queue is full, so Linux drops what comes."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        waiting = [socket.socket() for _ in range(4)]
        for each in waiting:
            each.setblocking(False)
            each.connect_ex(listener.getsockname())
        yield f"127.0.0.1:{listener.getsockname()[1]}"
        for each in waiting:
            each.close()


def test_nothing_waits_for_the_first_answer_longer_than_10_s():
    for waits in (Waits(), pelican_waits.Waits()):
        assert max(waits.connect_s, waits.start_s) <= 8.0
    assert reach.CONNECT_S <= 8.0


def test_a_reason_comes_in_time_and_a_server_that_answers_has_none(silent):
    begin = time.monotonic()
    assert reach.unreachable_reason(f"http://{silent}/x", 0.3) in {
        f"cannot connect to {silent}: no answer in 0 s", f"cannot connect to {silent}: timed out",
    }  # fmt: skip
    assert time.monotonic() - begin < 5
    assert reach.unreachable_reason("http://127.0.0.1:9") == "cannot connect to 127.0.0.1:9: Connection refused"
    with socket.create_server(("127.0.0.1", 0)) as server:
        assert reach.unreachable_reason(f"http://127.0.0.1:{server.getsockname()[1]}") is None


def test_behind_a_proxy_the_proxy_alone_knows(monkeypatch):
    monkeypatch.setenv("http_proxy", "http://proxy:3128")
    monkeypatch.setenv("no_proxy", "localhost")
    assert reach.unreachable_reason("http://127.0.0.1:9") is None
    assert reach.unreachable_reason("http://localhost:9") is not None
    assert reach.unreachable_reason("sqlite:///mlflow.db") is None


def test_a_name_that_is_looked_up_for_ever_is_given_up(monkeypatch):
    over = threading.Event()

    def look_up(*_, **__):
        over.wait()
        raise OSError  # In a thread that outlives the call; no later test may get its error.

    monkeypatch.setattr(reach.socket, "create_connection", look_up)
    reason = reach.unreachable_reason("https://mistyped.example", 0.1)
    over.set()
    for thread in [each for each in threading.enumerate() if each.name == "reach"]:
        thread.join()
    assert reason == "cannot connect to mistyped.example:443: no answer in 0 s"


def test_a_tracking_server_is_named_in_time(silent, monkeypatch):
    monkeypatch.setattr(reach, "CONNECT_S", 0.3)
    monkeypatch.setattr(reach.unreachable_reason, "__defaults__", (0.3,))
    assert str(tracking_reason(f"http://{silent}")).startswith(f"cannot connect to {silent}")


@pytest.mark.parametrize("command", ["generate", "evaluate", "export"])
def test_a_model_on_a_dead_tracking_server_is_one_sentence(command, monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.chdir(tmp_path)
    words = {
        "generate": ["--model", "models:/bundles@best", "--spectrum", "events=10", "--out", "out"],
        "evaluate": ["--truth", "data", "--model", "models:/bundles@best", "--out", "out"],
        "export": ["models:/bundles@best", "--out", "out"],
    }[command]
    begin = time.monotonic()
    assert main([command, *words]) == 1
    said = capsys.readouterr().err
    assert re.search(r"cannot connect to 127\.0\.0\.1:9: Connection refused; check MLFLOW_TRACKING_URI", said), said
    assert time.monotonic() - begin < 30  # Imports on a busy machine.


class Bucket:
    """What `filesystem` sees of S3's file system, which is not installed here."""

    endpoint_url = None
    client_kwargs: dict[str, str] = {}  # noqa: RUF012


@pytest.mark.parametrize("how", ["endpoint_url", "client_kwargs", "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"])
def test_a_dead_s3_endpoint_is_named_before_its_library_tries_it(how, monkeypatch):
    dead = "http://127.0.0.1:9"
    bucket = Bucket()
    if how.startswith("AWS"):
        monkeypatch.setenv(how, dead)
    else:
        setattr(bucket, how, dead if how == "endpoint_url" else {"endpoint_url": dead})
    monkeypatch.setattr(filesystems, "url_to_fs", lambda url: (bucket, url.removeprefix("s3://")))
    with pytest.raises(
        StoreError, match=r"^s3://b/a.parquet: cannot connect to 127.0.0.1:9: Connection refused; check the endpoint"
    ):
        files.open_file("s3://b/a.parquet")
    with socket.create_server(("127.0.0.1", 0)) as server:
        alive = f"http://127.0.0.1:{server.getsockname()[1]}"
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", alive)
        bucket.endpoint_url, bucket.client_kwargs = None, {}
        filesystems.filesystem("s3://b/a.parquet")
    filesystems.filesystem("s3://b/a.parquet")  # Gone now, but known: reading it has its own patience.
