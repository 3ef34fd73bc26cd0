"""A tracking store that cannot be used is refused before a command works; one that does not answer is named in seconds."""

import logging
import socket

import pytest

from crmuons.cli import main
from crmuons.tracking import health
from crmuons.tracking.journal import Journal
from crmuons.tracking.sender import sync
from crmuons.tracking.uri import bare_uri
from tests.toy import make_events, write_file


@pytest.fixture
def store(tmp_path, monkeypatch):
    """Make a URI that of the user."""
    return lambda uri: monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)


@pytest.mark.parametrize(
    ("uri", "fault"),
    [
        ("nosuch://127.0.0.1/x", r"'nosuch://127.0.0.1/x' is of no kind that MLflow knows; give"),
        ("sqlite://", "is of no kind that MLflow knows; give"),
        ("sqlite:///BASE/none/x.db", "BASE/none is not a directory; make it, or give"),
        ("sqlite:///BASE/text", "BASE/text is not a SQLite database; give another name"),
        ("sqlite:///BASE", "is not a file that this user can read and write; give"),
        ("sqlite:////dev/null", "/dev/null is not a file that this user can read and write; give"),
        ("sqlite:///BASE/" + "x" * 300, "File name too long; give another name"),
        ("mysql+nosuch://me:hunter2@127.0.0.1:1/x", "is no address of a database .*; give"),
    ],
)
def test_a_store_that_can_never_work_is_refused_and_nothing_is_made(uri, fault, store, tmp_path):
    (tmp_path / "text").write_text("no database\n")
    store(uri.replace("BASE", str(tmp_path)))
    with pytest.raises(ValueError, match=fault.replace("BASE", str(tmp_path))) as raised:
        health.usable_uri(tmp_path)
    assert "hunter2" not in str(raised.value)
    assert [path.name for path in tmp_path.iterdir()] == ["text"]


def test_sync_refuses_the_same_and_makes_no_directory(start, tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    start(uri="http://127.0.0.1:9").finish("FINISHED")
    for uri, fault in (("nosuch://x", "no kind that MLflow knows"), (f"sqlite:///{tmp_path}/none/x.db", "make it")):
        with pytest.raises(ValueError, match=fault):
            sync(tmp_path, uri)
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("scheme", ["http", "postgresql", "postgresql+psycopg"])
def test_a_store_that_is_down_is_named_in_one_sentence_without_its_password(scheme, store, tmp_path, caplog):
    pytest.importorskip("psycopg", reason="the driver of PostgreSQL is not installed")
    store(f"{scheme}://me:hunter2@127.0.0.1:9/x")
    with pytest.MonkeyPatch.context() as patch:
        for name in ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"):
            patch.setenv(name, "")
        health.usable_uri(tmp_path)
    (record,) = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert record.getMessage() == (
        f"the tracking server {scheme}://127.0.0.1:9/x cannot be used from this machine: cannot connect to 127.0.0.1:9: "
        "Connection refused; check MLFLOW_TRACKING_URI; the run keeps its entries, and `crmuons sync` sends them later"
    )


def test_a_database_that_is_down_is_left_after_one_look(start, tmp_path):
    pytest.importorskip("psycopg", reason="the driver of PostgreSQL is not installed")
    tracker = start(uri="postgresql://me:hunter2@127.0.0.1:9/x")
    tracker.finish("FINISHED")
    assert tracker.unsent
    # Not MLflow's own words: it tries for more than 70 s.
    assert tracker._sender.last_error == "ConnectionError: cannot connect to 127.0.0.1:9: Connection refused"
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and b"hunter2" in path.read_bytes()]


def test_a_server_that_stays_silent_is_named(store, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(health, "ANSWER_S", 0.1)
    with socket.create_server(("127.0.0.1", 0)) as server:  # The kernel accepts, and nobody answers.
        store(f"http://127.0.0.1:{server.getsockname()[1]}")
        health.usable_uri(tmp_path)
        assert "cannot be used from this machine: no answer in 0 s" in caplog.text


def test_a_database_that_only_a_directory_names_gets_no_connection(tmp_path, monkeypatch):
    # A driver takes the user's password from PGPASSWORD and ~/.pgpass, and a server of a stranger may ask for it.
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with socket.create_server(("127.0.0.1", 0)) as server:
        uri = f"postgresql://127.0.0.1:{server.getsockname()[1]}/x"
        journal = Journal(tmp_path)
        journal.append("open", identity=journal.identity, uri=uri, experiment="e", run_name="r", parent="")
        journal.close()
        with pytest.raises(ConnectionError, match=f"only the directory .* names the server {uri}.*--to {uri}"):
            sync(tmp_path)
        server.settimeout(0)
        with pytest.raises(BlockingIOError):
            server.accept()


def test_a_training_is_refused_before_its_run_is_made(store, tmp_path, monkeypatch, capsys):
    store("nosuch://127.0.0.1/x")
    monkeypatch.chdir(tmp_path)
    write_file(tmp_path / "data" / "0.parquet", make_events(100, seed=0))
    words = ["data.train=data", "train.steps=1", "scaling.num_workers=0", "model.width=4"]
    assert main(["train", *words]) == 1
    assert "no kind that MLflow knows" in capsys.readouterr().err
    assert not list(tmp_path.glob("runs/[!.]*/*.json"))


def test_plain_addresses_stay_as_they_are():
    for uri in ("http://h:5000", "postgresql://h/db", "postgresql+psycopg://h/db", "mysql+pymysql://h/db"):
        assert bare_uri(uri) == uri
