"""Artifacts wait by themselves, go only where they belong, and are only the run's own; credentials go to named servers."""

import http.server
import json
import os
import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from crmuons.cli import main
from crmuons.tracking import sender
from crmuons.tracking.journal import DeliveryState, Journal, num_unsent
from crmuons.tracking.results import add_results
from crmuons.tracking.sender import sync
from crmuons.tracking.tracker import Tracker
from crmuons.tracking.uri import database, default_uri


@pytest.fixture
def start(base: Path, tmp_path: Path) -> Callable[..., Tracker]:
    def open_one(experiment: str, **changes: object) -> Tracker:
        settings = {"uri": default_uri(base), "run_name": "bundle", "params": {"train.steps": 1}, "tags": {}}
        return Tracker.open(tmp_path / "run", experiment=experiment, **(settings | changes))

    return open_one


def note(tmp_path: Path, name: str = "note.txt", text: str = "a note") -> Path:
    path = tmp_path / name
    path.write_text(text)
    return path


def test_a_store_that_takes_no_artifact_holds_up_neither_metrics_nor_state(start, client, base, tmp_path, caplog):
    (base / "mlruns").mkdir(exist_ok=True)
    (base / "mlruns" / "blocked").write_text("a file where the folder of the experiment should be")
    tracker = start("blocked")  # Its first entries include the artifact params.json.
    tracker.artifact(note(tmp_path))
    tracker.metrics({"loss": 1.0}, 1)
    tracker.finish("FINISHED")

    run = client.get_run(tracker.run_id)
    assert (run.info.status, run.data.metrics["loss"], run.data.params) == ("FINISHED", 1.0, {"train.steps": "1"})
    assert "2 artifacts of this run are not in MLflow, its metrics and state are" in caplog.text
    assert tracker.unsent == num_unsent(tmp_path / "run") == 2
    with pytest.raises(
        ConnectionError, match=r"has the metrics and the state of .* but does not take 2 of its artifacts"
    ):
        sync(tmp_path / "run")

    (base / "mlruns" / "blocked").unlink()
    assert sync(tmp_path / "run") == (2, tracker.run_id)
    assert sync(tmp_path / "run")[0] == num_unsent(tmp_path / "run") == 0
    assert {info.path for info in client.list_artifacts(tracker.run_id)} == {"params.json", "note.txt"}


def test_a_store_that_hangs_holds_up_neither_metrics_nor_state(start, client, tmp_path, monkeypatch):
    monkeypatch.setattr(sender, "SECONDS_BETWEEN_BATCHES", 0.05)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "300")
    while_it_hung = []

    def hang_until_the_rest_has_arrived():
        deadline = time.monotonic() + 120
        while client.get_run(run_id).info.status != "FINISHED" and time.monotonic() < deadline:
            time.sleep(0.05)
        run = client.get_run(run_id)
        while_it_hung.append((run.info.status, run.data.metrics.get("loss")))
        silent.close()
        connection.close()

    with socket.create_server(("127.0.0.1", 0)) as silent:  # It accepts connections, and never answers.
        silent.settimeout(60)
        port = silent.getsockname()[1]
        client.create_experiment("hanging", artifact_location=f"http://127.0.0.1:{port}/x")
        tracker = start("hanging", flush_seconds=300.0)
        run_id = tracker.wait_for_run(60)
        connection, _ = silent.accept()  # The first artifact is on its way.
        tracker.metrics({"loss": 1.0}, 1)
        thread = threading.Thread(target=hang_until_the_rest_has_arrived)
        thread.start()
        tracker.finish("FINISHED")
        thread.join()
    assert while_it_hung == [("FINISHED", 1.0)]
    assert tracker.unsent == 1


def test_an_artifact_that_fails_holds_up_only_later_ones_of_its_path(start, client, tmp_path, monkeypatch):
    client.create_experiment("one bad", artifact_location=(tmp_path / "root").as_uri())
    tracker = start("one bad", uri="http://127.0.0.1:9")
    for number in range(4):  # More than the attempts that may fail.
        tracker.artifact(note(tmp_path, f"bad-{number}"))
    tracker.artifact(note(tmp_path, "bad-0", "the second value"))
    tracker.artifact(note(tmp_path, "good"))
    tracker.finish("FINISHED")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", client.tracking_uri)
    (tmp_path / "root").write_text("a file where the folder should be")
    with pytest.raises(ConnectionError, match="7 of its artifacts"):
        sync(tmp_path / "run")
    (tmp_path / "root").unlink()
    run_id = json.loads((tmp_path / "run/tracking/sent.json").read_text())["run_id"]
    root = tmp_path / "root" / run_id / "artifacts"
    for number in range(4):
        (root / f"bad-{number}" / f"bad-{number}").mkdir(parents=True)  # In the way of the file.
    with pytest.raises(ConnectionError, match="5 of its artifacts"):
        sync(tmp_path / "run")
    assert (root / "good").read_text() == "a note"
    for number in range(4):
        shutil.rmtree(root / f"bad-{number}")
    sync(tmp_path / "run")
    assert (root / "bad-0").read_text() == "the second value"


def test_the_record_of_an_earlier_version_goes_on(start, client, tmp_path):
    tracker = start("earlier")
    tracker.metrics({"loss": 1.0}, 1)
    tracker.finish("FINISHED")
    path = tmp_path / "run" / "tracking" / "sent.json"
    record = json.loads(path.read_text())
    assert record.pop("waiting") == []
    path.write_text(json.dumps(record))
    assert sync(tmp_path / "run") == (0, tracker.run_id)


SECRET = "PRIVATE KEY hush"


def make_link(files: Path, secret: Path) -> str:
    (files / "linked").symlink_to(secret)
    return "linked"


def make_folder_with_link(files: Path, secret: Path) -> str:
    (files / "folder").mkdir()
    (files / "folder" / "fine").write_text("fine")
    (files / "folder" / "linked").symlink_to(secret)
    return "folder"


def make_linked_files(files: Path, secret: Path) -> str:
    files.rmdir()
    files.symlink_to(secret.parent)
    return secret.name


def make_pipe(files: Path, secret: Path) -> str:
    os.mkfifo(files / "pipe")
    return "pipe"


KINDS = ("artifact", "figure", "model")


def sync_strangers(client, run: Path, name: str, kinds: tuple[str, ...]) -> str:
    """Send a journal with entries of a file that may not be the run's, and a metric; return the id of its run."""
    journal = Journal(run)
    journal.append("open", identity=f"{run}", uri=client.tracking_uri, experiment="strange", run_name="x", parent="")
    for kind in kinds:
        journal.append(kind, file=name, folder="", key="images/a", step=1)
    journal.append_metrics({"loss": 1.0}, 1)
    journal.close()
    try:
        return sync(run)[1]
    finally:
        stored = [path for path in (database(client.tracking_uri).parent / "mlruns").rglob("*") if path.is_file()]
        assert not any(SECRET in path.read_text(errors="replace") for path in stored)


def journal_files(run: Path) -> Path:
    files = run / "tracking" / "files"
    files.mkdir(parents=True)
    return files


@pytest.fixture
def secret(tmp_path):
    path = tmp_path / "secret" / "id"
    path.parent.mkdir()
    path.write_text(SECRET)
    return path


@pytest.mark.parametrize(
    "make",
    [
        lambda files, secret: str(secret),
        lambda files, secret: os.path.relpath(secret, files),
        make_link,
        make_folder_with_link,
        make_linked_files,
        make_pipe,
        lambda files, secret: "../journal.jsonl/../../../secret/id",
    ],
)
def test_a_strangers_journal_sends_no_file_but_the_runs_own(client, tmp_path, secret, make, caplog):
    name = make(journal_files(tmp_path / "run"), secret)
    run_id = sync_strangers(client, tmp_path / "run", name, KINDS)
    assert client.get_run(run_id).data.metrics == {"loss": 1.0}
    assert caplog.text.count("refused an entry") == len(KINDS)


@pytest.mark.parametrize("kind", KINDS)
def test_the_name_of_all_of_the_journals_files_sends_none_of_another_place(client, tmp_path, secret, kind):
    note(journal_files(tmp_path / "run"), "own")
    run_id = sync_strangers(client, tmp_path / "run", ".", (kind,))
    assert client.get_run(run_id).data.metrics == {"loss": 1.0}


@pytest.fixture
def stranger() -> Iterator[tuple[str, list[str]]]:
    """A server that writes down what it is sent; yields its address and its notes."""
    notes: list[str] = []

    class Noting(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            notes.append(f"{self.command} {self.path} {self.headers.get('Authorization')} {body!r}")
            self.send_error(403)

        do_POST = do_PUT = do_PATCH = do_GET  # noqa: N815

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Noting) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}).start()
        yield f"http://127.0.0.1:{server.server_port}", notes
        server.shutdown()


def of_stranger(directory: Path, uri: str) -> Path:
    journal = Journal(directory)
    journal.append("open", identity="x", uri=uri, experiment="x", run_name="x", parent="")
    journal.close()
    return directory


@pytest.mark.parametrize("place", ["environment", "token", "file"])
def test_a_server_that_only_the_directory_names_gets_no_credentials(stranger, tmp_path, monkeypatch, capsys, place):
    uri, notes = stranger
    directory = of_stranger(tmp_path / "run", uri)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    if place == "environment":
        monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "me")
        monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "hush")
    elif place == "token":
        monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "hush")
    else:
        (tmp_path / ".mlflow").mkdir()
        note(
            tmp_path / ".mlflow",
            "credentials",
            "[mlflow]\nmlflow_tracking_username = me\nmlflow_tracking_password = hush\n",
        )
    assert main(["sync", str(directory)]) == 1
    assert notes == []
    assert f"if you trust it: crmuons sync {directory} --to {uri}" in capsys.readouterr().err

    assert main(["sync", str(directory), "--to", uri]) == 1  # It answers 403.
    assert "None" not in notes[0]  # Now the user has named it.


def test_an_evaluation_sends_nothing_to_a_server_that_the_directory_names(stranger, tmp_path, monkeypatch):
    uri, notes = stranger
    directory = of_stranger(tmp_path / "run", uri)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with pytest.raises(ConnectionError, match=f"crmuons sync {directory} --to {uri}"):
        add_results(directory, {"evaluation/auc": 0.5}, 1, note(tmp_path))
    assert notes == []
    assert num_unsent(directory) == 3  # It is kept.


def test_a_store_that_only_the_directory_names_chooses_no_path_of_the_user(tmp_path, monkeypatch, client):
    """As a stranger's archive that holds a run and the MLflow store beside it."""
    client.create_experiment("elsewhere", artifact_location=(tmp_path / "home").as_uri())
    journal = Journal(tmp_path / "run")
    journal.append("open", identity="y", uri=client.tracking_uri, experiment="elsewhere", run_name="x", parent="")
    journal.append("artifact", file=journal.keep_file(note(tmp_path)), folder="")
    journal.close()
    with pytest.raises(ConnectionError, match=r"the store keeps artifacts at .*, not next to it"):
        sync(tmp_path / "run")
    assert not (tmp_path / "home").exists()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", client.tracking_uri)
    assert sync(tmp_path / "run")[0] == 1


def test_delivery_counts_what_the_server_has():
    assert DeliveryState(uri="x", entries=10, refused=2, waiting=[5, 7]).num_sent == 6


@pytest.mark.parametrize(("umask", "group"), [(0o022, 0o5), (0o007, 0o7), (0o077, 0o0)])
def test_the_journals_files_follow_the_umask(tmp_path, umask, group):
    source = note(tmp_path, "figure")
    source.chmod(0o600)
    before = os.umask(umask)
    try:
        journal = Journal(tmp_path / "run")
        kept = journal.files / journal.keep_file(source)
        journal.close()
    finally:
        os.umask(before)
    folders = (kept.parent, kept.parent.parent)
    assert {folder.stat().st_mode >> 3 & 7 for folder in folders} == {group}
    assert {path.stat().st_mode >> 3 & 6 for path in (kept, kept.parents[2] / "journal.jsonl")} == {group & 6}
