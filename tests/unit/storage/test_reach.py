"""A server that cannot be reached is named in one sentence within 10 s, whatever asks for it."""

import asyncio
import re
import socket
import threading
import time
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
from yarl import URL

from crmuons import progress
from crmuons.cli import main
from crmuons.storage import files, filesystems, reach
from crmuons.storage.http import exchange
from crmuons.storage.http.site import WebFiles
from crmuons.storage.http.waits import Waits
from crmuons.storage.pelican import waits as pelican_waits
from crmuons.storage.pelican.federation import Federation
from crmuons.storage.stores import Named, StoreError
from crmuons.tracking.health import unreachable_reason as tracking_reason

TIME = r"\d\d:\d\d:\d\d"


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


@pytest.fixture
def mute(monkeypatch):
    """The address of a server that takes connections and never answers; what waits for it speaks after 0.05 s, not 5."""
    for module in (exchange, progress):
        monkeypatch.setattr(module, "SAY_AFTER_S", 0.05)
    monkeypatch.setattr(exchange, "_said_at", {})
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"127.0.0.1:{server.getsockname()[1]}"


def test_nothing_waits_for_the_first_answer_longer_than_10_s():
    """5 s and the start of a command, which takes 1 to 2 CPU-seconds."""
    for waits in (Waits(), pelican_waits.Waits()):
        assert max(waits.connect_s, waits.start_s) <= 5.0
    assert reach.CONNECT_S <= 5.0
    assert progress.SAY_AFTER_S <= 5.0


@pytest.mark.parametrize("scheme", ["http", "pelican"])
def test_who_waits_for_a_silent_server_says_for_what_and_until_when(scheme, mute, monkeypatch, caplog):
    """Where the connection stands: a federation's server must also have a certificate, so its first answer is tested."""
    monkeypatch.setenv("CRMUONS_HTTP_READ_S", "0.6")
    monkeypatch.setenv("CRMUONS_HTTP_START_S", "0.2")
    monkeypatch.setenv("CRMUONS_PELICAN_START_S", "0.6")
    url = f"{scheme}://{mute}/data/a.parquet"
    with pytest.raises(ConnectionError, match=f"{scheme}://{mute}"):
        (WebFiles() if scheme == "http" else Federation(mute)).info(url if scheme == "http" else "/data/a.parquet")
    (line,) = [record.getMessage() for record in caplog.records if "silent" in record.getMessage()]
    what = "/data/a.parquet" if scheme == "http" else "/.well-known/pelican-configuration"
    assert re.fullmatch(
        rf"https?://{mute} has been silent since {TIME}: waiting for {what} until {TIME} at the latest", line
    )


@pytest.fixture
def heard(monkeypatch):
    """What is said after 0.05 s, not 5; the list's event is set with the first sentence."""
    said, event = [], threading.Event()
    for module in (exchange, progress):
        monkeypatch.setattr(module, "SAY_AFTER_S", 0.05)
        monkeypatch.setattr(module.logger, "warning", lambda *words: (said.append(words[0] % words[1:]), event.set()))
    monkeypatch.setattr(exchange, "_said_at", {})
    return said, event


@contextmanager
def breaking_off(event):
    """Serve no answer, and close the connection once the client has spoken of its wait."""

    def serve():
        asked = b""
        while not asked:  # Whoever only tries the connection sends nothing.
            connection, _ = server.accept()
            with connection:
                if asked := connection.recv(4096):
                    event.wait(30)

    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.getsockname()[1]}"
        thread.join(30)


def test_who_waits_for_the_rest_of_an_answer_says_so(heard):
    said, event = heard

    async def pieces():
        yield b"PAR1"
        while not event.is_set():
            await asyncio.sleep(0.01)
        yield b"rest"

    async def read():
        answer = SimpleNamespace(url=URL("http://h:1/a?x=1"), content=SimpleNamespace(iter_any=pieces))
        return [piece async for piece in exchange.steady(answer, 60)]

    assert asyncio.run(read()) == [b"PAR1", b"rest"]
    words = rf"http://h:1 has been silent since {TIME}: waiting for the rest of an answer until {TIME} at the latest"
    assert re.fullmatch(words, said[0])


def test_who_waits_for_a_store_says_so(heard):
    said, event = heard

    class Slow:
        def info(self, path):
            event.wait(30)
            return path

    assert Named(Slow(), "s3://b/x").info("b/x") == "b/x"
    assert re.fullmatch(rf"waiting since {TIME} for the store of s3://b/x, until its library gives up", said[0])


def test_who_waits_for_a_tracking_server_says_so(heard):
    said, event = heard
    with breaking_off(event) as url:
        assert tracking_reason(url) is not None
    assert re.fullmatch(rf"waiting since {TIME} for the tracking server {url}, for at most 20 s", said[0])


@pytest.mark.parametrize("scheme", ["postgresql", "postgresql+psycopg", "mysql+pymysql", "mssql+pyodbc"])
def test_a_tracking_database_that_is_down_is_named_at_once(scheme):
    """MLflow would try ten times, with growing pauses, for 70 s."""
    assert tracking_reason(f"{scheme}://me@127.0.0.1:9/db") == "cannot connect to 127.0.0.1:9: Connection refused"


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
