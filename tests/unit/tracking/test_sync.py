"""What did not reach MLflow at once reaches it later, once: servers that were dead or restored, and crmuons sync."""

import errno
import json
import logging
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest

from crmuons.cli import main
from crmuons.storage.ownership import hold
from crmuons.storage.staging import locks
from crmuons.tracking.journal import Journal
from crmuons.tracking.sender import LONGEST_PAUSE, pause_s, sync
from crmuons.tracking.uri import default_uri
from tests.unit.tracking.store import NOBODY, history, paths


def test_dead_server_costs_no_result(start, client, tmp_path, monkeypatch, caplog):
    tracker = start(uri=NOBODY)
    for step in range(1200):  # More than one request takes.
        tracker.metrics({"loss": float(step)}, step)
    assert tracker.unsent > 1200  # No call waited for the server.
    tracker.finish("FINISHED")

    warnings = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert len(warnings) == 1
    assert warnings[0].startswith(f"{tracker.unsent} entries of this run are not in MLflow")
    assert warnings[0].endswith(f"crmuons sync {tmp_path}")
    assert tracker.unsent > 1200

    monkeypatch.setenv("MLFLOW_TRACKING_URI", client.tracking_uri)
    assert main(["sync", str(tmp_path)]) == 0
    num_sent, run_id = sync(tmp_path)
    assert num_sent == 0
    assert history(client, run_id, "loss") == [(step, float(step)) for step in range(1200)]
    assert client.get_run(run_id).info.status == "FINISHED"


def test_sync_to_a_dead_server_says_so(start, tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    start(uri=NOBODY).finish("FINISHED")
    assert main(["sync", str(tmp_path)]) == 1
    assert f"crmuons sync: {NOBODY} takes no results of {tmp_path}" in capsys.readouterr().err


def test_sync_leaves_a_living_run_alone(start, tmp_path):
    start().wait_for_run(20)
    with pytest.raises(BlockingIOError, match="tracked by a process that is alive"):
        sync(tmp_path)


def test_results_are_sent_from_a_file_system_without_locks(start, client, tmp_path, monkeypatch):
    def no_flock(descriptor, operation):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(locks, "flock", no_flock)
    tracker = start()
    tracker.metrics({"loss/critic": 0.5}, 1)
    tracker.finish("FINISHED")
    assert history(client, tracker.run_id, "loss/critic") == [(1, 0.5)]
    assert main(["sync", str(tmp_path)]) == 0


def test_sync_while_another_process_owns_the_run_says_who_it_is(start, tmp_path, capsys):
    start().finish("FINISHED")
    with hold(tmp_path):
        assert main(["sync", str(tmp_path)]) == 1
    assert "in use by" in capsys.readouterr().err


def test_sync_of_no_run_names_the_directory(tmp_path):
    with pytest.raises(FileNotFoundError, match=f"no journal of a tracked run in {tmp_path}"):
        sync(tmp_path)
    assert not list(tmp_path.iterdir())


def test_killed_run_ends_as_killed_and_loses_only_the_line_cut_short(client, base, tmp_path):
    journal = Journal(tmp_path)
    journal.append(
        "open", identity=journal.identity, uri=default_uri(base), experiment="tests", run_name="r", parent=""
    )
    journal.append_metrics({"loss": 1.0}, 1)
    journal.close()
    path = tmp_path / "tracking" / "journal.jsonl"
    with path.open("ab") as file:
        file.write(b'{"kind": "metrics", "ste')  # Killed while writing.
    _, run_id = sync(tmp_path)
    assert history(client, run_id, "loss") == [(1, 1.0)]
    assert client.get_run(run_id).info.status == "KILLED"


def test_entry_that_mlflow_refuses_holds_up_nothing(start, client, tmp_path, caplog):
    tracker = start(uri=NOBODY, params={"train.steps": 1})
    tracker._journal.append("params", values={"train.steps": "2"})  # MLflow never changes a parameter.
    tracker.artifact(Path(__file__))
    tracker.metrics({"loss": 1.0}, 1)
    tracker.finish("FINISHED")
    kept = next((tmp_path / "tracking" / "files").glob(f"*/{Path(__file__).name}"))
    kept.unlink()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", client.tracking_uri)
        _, run_id = sync(tmp_path)
    assert client.get_run(run_id).data.params == {"train.steps": "1"}
    assert history(client, run_id, "loss") == [(1, 1.0)]
    assert "refused an entry (params) for good" in caplog.text
    assert json.loads((tmp_path / "tracking" / "sent.json").read_text())["refused"] == 2


def test_journal_sent_twice_is_stored_once(start, client, model_dir, tmp_path, monkeypatch):
    """As after a kill between a request and the note that it was answered."""
    tracker = start(tmp_path / "run", params={"train.steps": 2})
    figure, axes = plt.subplots()
    axes.plot([0, 1])
    for step in range(2):
        tracker.metrics({"loss": float(step)}, step)
        tracker.figure(figure, "marginals", step)
    plt.close(figure)
    tracker.model(model_dir, np.ones((1, 4), np.float32))
    tracker.finish("FINISHED")
    (tmp_path / "run" / "tracking" / "sent.json").unlink()
    num_sent, run_id = sync(tmp_path / "run")

    run = client.get_run(run_id)
    assert num_sent > 6
    assert run_id == tracker.run_id
    assert history(client, run_id, "loss") == [(0, 0.0), (1, 1.0)]
    assert len(paths(client, run_id, "images")) == 4  # Two figures and their thumbnails.
    assert len(client.search_logged_models([run.info.experiment_id], f"source_run_id = '{run_id}'")) == 1
    assert len(run.outputs.model_outputs) == 1
    assert run.info.status == "FINISHED"


def test_run_deleted_in_the_ui_gets_its_entries_once_restored(start, client, tmp_path, caplog):
    first = start()
    first.finish("FINISHED")
    client.delete_run(first.run_id)
    again = start()
    again.metrics({"loss": 1.0}, 1)
    again.finish("FINISHED")
    assert "Current state is deleted" in caplog.text
    client.restore_run(first.run_id)
    sync(tmp_path)
    assert history(client, first.run_id, "loss") == [(1, 1.0)]


def test_server_that_lost_the_run_gets_all_of_it_again(start, client, tmp_path):
    tracker = start(params={"train.steps": 1})
    tracker.metrics({"loss": 1.0}, 1)
    tracker.finish("FINISHED")
    sent = tmp_path / "tracking" / "sent.json"
    sent.write_text(sent.read_text().replace(tracker.run_id, "0" * 32))
    client.set_tag(tracker.run_id, "crmuons.journal", "somebody else's")  # As if it were not there.
    _, run_id = sync(tmp_path)
    assert run_id != tracker.run_id
    assert client.get_run(run_id).data.params == {"train.steps": "1"}
    assert history(client, run_id, "loss") == [(1, 1.0)]
    assert client.get_run(run_id).info.status == "FINISHED"


def test_the_pauses_between_attempts_grow_to_a_minute_and_never_fail() -> None:
    assert [pause_s(failures) for failures in (0, 1, 2, 10, 10_000)] == [2.0, 4.0, 8.0, LONGEST_PAUSE, LONGEST_PAUSE]


def test_a_model_is_registered_in_the_store_that_sync_was_given(start, client, model_dir, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # Where MLflow's own choice of a store would be.
    sweep = start(tmp_path / "sweep", uri=NOBODY)
    trial = start(tmp_path / "trial", uri=NOBODY, parent=sweep.identity)
    trial.model(model_dir, np.ones((1, 4), np.float32))
    sweep.register(trial.identity, "given", score=0.1, tags={"validation": "same data"})
    for tracker in (trial, sweep):
        tracker.finish("FINISHED")
    with pytest.raises(ConnectionError, match="send that journal first"):  # The sweep's run was made all the same.
        sync(tmp_path / "sweep", client.tracking_uri)
    _, run_id = sync(tmp_path / "trial", client.tracking_uri)
    sync(tmp_path / "sweep", client.tracking_uri)
    assert client.get_model_version_by_alias("given", "best").run_id == run_id
    assert not (tmp_path / "mlflow.db").exists()
