"""A run's results reach MLflow exactly once, whatever happens to the server, and nothing secret with them."""

import json
import logging
import subprocess
from pathlib import Path

import matplotlib.pyplot as plt
import mlflow
import pytest

from crmuons import config
from crmuons.provenance import code_tags, git_commit
from crmuons.storage.redact import without_credentials
from crmuons.tracking.results import add_results
from crmuons.tracking.sender import sync
from crmuons.tracking.uri import bare_uri, default_uri, resolve_uri
from tests.unit.tracking.store import NOBODY, history, paths


def test_run_reaches_the_store_whole(start, client, tmp_path):
    tracker = start(params={"train.steps": 10, "data.train": ["a", "b"]}, tags={"num_hosts": "2"})
    for step in range(3):
        tracker.metrics({"loss/critic": 0.5 * step, "nan": float("nan")}, step)
    note = tmp_path / "note.txt"
    note.write_text("as it was")
    tracker.artifact(note, "notes")
    note.write_text("as it is")
    tracker.finish("FINISHED")

    run = client.get_run(tracker.run_id)
    assert tracker.unsent == 0
    assert (run.info.status, run.info.run_name) == ("FINISHED", "bundle")
    assert run.data.params == {"train.steps": "10", "data.train": "['a', 'b']"}
    assert run.data.tags["num_hosts"] == "2"
    assert run.data.tags["torch_version"].startswith("2.")
    assert history(client, tracker.run_id, "loss/critic") == [(0, 0.0), (1, 0.5), (2, 1.0)]
    assert len(history(client, tracker.run_id, "nan")) == 3
    assert "system/cpu_utilization_percentage" in run.data.metrics
    assert Path(client.download_artifacts(tracker.run_id, "notes/note.txt")).read_text() == "as it was"


def test_figures_of_steps_form_a_series_in_the_image_grid(start, client):
    tracker = start()
    figure, axes = plt.subplots()
    axes.plot([0, 1])
    for step in (0, 500, 500):  # The second 500 is a replay.
        tracker.figure(figure, "marginals/energy", step)
    tracker.figure(figure, "final")
    plt.close(figure)
    tracker.finish("FINISHED")

    images = paths(client, tracker.run_id, "images")
    series = sorted(path.split("+")[:3] for path in images if path.endswith(".png"))
    assert series == [["images/marginals~energy", "step", "0"], ["images/marginals~energy", "step", "500"]]
    assert sum(path.endswith("+compressed.webp") for path in images) == 2
    assert client.get_run(tracker.run_id).data.tags["mlflow.loggedImages"] == "True"
    assert paths(client, tracker.run_id, "figures") == ["figures/final.png"]


def test_resume_goes_on_with_the_run_and_keeps_the_first_value_of_a_step(start, client):
    first = start(params={"train.steps": 10})
    for step in (10, 20):
        first.metrics({"loss": float(step)}, step)
    first.finish("KILLED")
    again = start(params={"train.steps": 30, "train.lr": 0.1})
    for step in (20, 30):  # The checkpoint was from step 10.
        again.metrics({"loss": float(-step)}, step)
    again.finish("FINISHED")

    run = client.get_run(again.run_id)
    assert again.run_id == first.run_id
    assert run.info.status == "FINISHED"
    assert history(client, again.run_id, "loss") == [(10, 10.0), (20, 20.0), (30, -30.0)]
    assert run.data.params == {"train.steps": "10", "train.lr": "0.1"}
    assert run.data.tags["changed.train.steps"] == "30"


def test_settings_that_do_not_change_the_training_are_tags_and_params_json_has_all(start, client):
    settings = config.load(None, ["train.steps=10", "run.name=first", "run.seed=3"]).flat()
    tracker = start(params=settings)
    tracker.finish("KILLED")
    start(params=settings | {"run.resume": "auto"}).finish("FINISHED")
    run = client.get_run(tracker.run_id)
    tags = {"run.name", "run.seed", "scaling.num_workers", "tracking.parent", "data.staging.dir", "train.profile_steps"}
    assert tags <= set(run.data.tags)
    assert run.data.tags["run.resume"] == "auto"
    assert not any(name.startswith("changed.") for name in run.data.tags)
    assert {"train.optimizer.lr", "train.n_critic", "data.train", "model.width"} <= set(run.data.params)
    assert set(run.data.params) | set(run.data.tags) >= set(settings)
    assert not set(run.data.params) & set(run.data.tags)
    whole = json.loads(Path(client.download_artifacts(tracker.run_id, "params.json")).read_text())
    assert whole.keys() == settings.keys()
    assert (whole["run.resume"], whole["train.optimizer.lr"]) == ("auto", 1e-3)


def test_the_score_is_the_first_metric_that_the_server_lists(start, client):
    tracker = start()
    tracker.metrics({"validation/mean_muons_ratio": 1.0, "validation/score": 0.5}, 0)
    for step in range(1, 4):
        tracker.metrics({"train/critic_loss": 0.5, "validation/score": 0.5 / step}, step)
    tracker.finish("FINISHED")
    names = list(client.get_run(tracker.run_id).data.metrics)
    assert names[:2] == ["validation/score", "validation/mean_muons_ratio"]
    assert "system/cpu_utilization_percentage" in names


def test_child_is_shown_below_its_parent(start, client, tmp_path):
    parent = start(tmp_path / "sweep")
    assert parent.wait_for_run(60) is not None  # Else the child's last attempt may come before it.
    child = start(tmp_path / "trial", parent=parent.identity)
    child.finish("FINISHED")
    assert client.get_run(child.run_id).data.tags["mlflow.parentRunId"] == parent.run_id


def test_evaluation_joins_the_run_that_has_ended(start, client, tmp_path):
    tracker = start()
    tracker.finish("FINISHED")
    report = tmp_path / "evaluation"
    report.mkdir()
    (report / "report.html").write_text("judged")
    run_id = add_results(tmp_path, {"evaluation/auc": 0.51}, 300, report)
    assert run_id == tracker.run_id
    assert history(client, run_id, "evaluation/auc") == [(300, 0.51)]
    assert paths(client, run_id, "evaluation") == ["evaluation/report.html"]
    assert client.get_run(run_id).info.status == "FINISHED"


def test_secrets_reach_neither_disk_nor_log(start, base, tmp_path, monkeypatch, caplog):
    caplog.set_level(logging.DEBUG)
    for name in ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    data = ["https://reader:hunter2@data.example/a.parquet", "pelican://pool.example/b?authz=eyHunter2"]
    tracker = start(uri="http://me:hunter2@127.0.0.1:9", params={"data.train": data}, tags={"data": data[0]})
    tracker.finish("FAILED")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", default_uri(base))
    sync(tmp_path)

    files = [path for folder in (tmp_path, base) for path in folder.rglob("*") if path.is_file()]
    assert len(files) > 4
    assert [path for path in files if b"hunter2" in path.read_bytes().lower()] == []
    assert "hunter2" not in caplog.text.lower()


def test_user_and_password_of_a_uri_move_to_the_environment(monkeypatch, tmp_path):
    for name in ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://me:p%40ss@mlflow.example/base")
    assert resolve_uri(tmp_path) == "https://mlflow.example/base"
    from mlflow.utils.credentials import get_default_host_creds

    credentials = get_default_host_creds("https://mlflow.example/base")
    assert (credentials.username, credentials.password) == ("me", "p@ss")


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("see http://u:p@h:1/x and s3://k:s@b", "see http://h:1/x and s3://b"),
        ("http://u:p@ss@h/", "http://h/"),
        ("https://h/f?a=1&authz=xyz&b=2", "https://h/f?a=1&authz=***&b=2"),
        ('{"uri": "http://h", "mail": "me@h"}', '{"uri": "http://h", "mail": "me@h"}'),
    ],
)
def test_credentials_are_taken_out_of_urls_only(text, clean):
    assert without_credentials(text) == clean


def test_default_store_is_the_one_that_mlflow_ui_opens(monkeypatch, tmp_path):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(mlflow.tracking._tracking_service.utils, "_tracking_uri", None)
    assert mlflow.get_tracking_uri() == default_uri(tmp_path) == resolve_uri(tmp_path)


def test_relative_sqlite_uri_names_one_file_for_all_processes(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert bare_uri("sqlite:///mlflow.db") == f"sqlite:///{tmp_path}/mlflow.db"


@pytest.mark.parametrize("uri", ["mlruns", "file:///tmp/mlruns"])
def test_directory_as_uri_is_refused_with_the_remedy(uri):
    with pytest.raises(ValueError, match=r"is a directory.*give sqlite:///PATH/mlflow\.db"):
        bare_uri(uri)


def test_long_parameter_is_cut_in_mlflow_and_whole_in_its_artifact(start, client):
    tracker = start(params={"data.train": "x" * 7000})
    tracker.finish("FINISHED")
    assert len(client.get_run(tracker.run_id).data.params["data.train"]) == 6000
    whole = json.loads(Path(client.download_artifacts(tracker.run_id, "params.json")).read_text())
    assert whole == {"data.train": "x" * 7000}


def test_name_that_mlflow_would_refuse_is_refused_at_once(start):
    with pytest.raises(ValueError, match=r"'W1\(E\)' cannot be a name in MLflow"):
        start(uri=NOBODY).metrics({"W1(E)": 1.0}, 1)


def test_commit_names_the_checkout_and_its_changes(tmp_path):
    def git(*words: str) -> str:
        command = ["git", "-C", tmp_path, "-c", "user.name=t", "-c", "user.email=t@t", *words]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    source = tmp_path / "code.py"
    source.write_text("1")
    git("init")
    assert git_commit(source) is None  # Not tracked: an installed copy inside somebody's checkout, say.
    git("add", "code.py")
    git("commit", "-m", "one")
    assert git_commit(source) == git("rev-parse", "HEAD")
    source.write_text("2")
    assert git_commit(source) == git("rev-parse", "HEAD") + "-dirty"


def test_the_code_of_a_process_is_looked_up_once(monkeypatch):
    """Every checkpoint names it, and git takes two processes."""
    tags = code_tags()
    monkeypatch.setattr("crmuons.provenance.subprocess.run", None)
    assert code_tags() == tags
    code_tags().clear()  # A caller's copy.
    assert code_tags()["torch_version"]


@pytest.mark.parametrize("uri", ["http://", "http://[::1", "http://127.0.0.1:99999", "https://:5000", "x" * 5000])
def test_a_tracking_uri_that_is_no_address_is_refused(uri):
    with pytest.raises(ValueError, match=r"^tracking URI '.*give .*http") as caught:
        bare_uri(uri)
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize("uri", ["htp://host:5000", "data://x", "s3://bucket/mlflow", "postgres://h/db"])
def test_a_tracking_uri_of_an_unknown_scheme_is_refused_at_once(uri):
    """SQLAlchemy would look for such a database again and again, at the end of the run too."""
    with pytest.raises(ValueError, match=rf"^tracking URI '{uri}' is of no kind that MLflow knows; give http"):
        bare_uri(uri)


@pytest.mark.parametrize(
    "uri", ["postgresql://h/db", "postgresql+psycopg://h/db", "mysql+pymysql://h/db", "databricks://p"]
)
def test_tracking_uris_of_databases_are_left_as_they_are(uri):
    assert bare_uri(uri) == uri
