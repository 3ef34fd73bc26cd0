"""A run's results reach MLflow exactly once, whatever happens to the server, and nothing secret with them."""

import errno
import json
import logging
import resource
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import matplotlib.pyplot as plt
import mlflow
import numpy as np
import pandas as pd
import pytest

from crmuons import config
from crmuons.cli import main
from crmuons.data import schema
from crmuons.data.arrow import to_table
from crmuons.data.events import EventArrays
from crmuons.generation.load import load_generator
from crmuons.generation.request import model_digest
from crmuons.models import saved_model
from crmuons.models.bundle_model import BundleModel
from crmuons.models.features import Features
from crmuons.provenance import git_commit
from crmuons.storage.ownership import hold
from crmuons.storage.redact import without_credentials
from crmuons.storage.staging import locks
from crmuons.tracking import logged_models
from crmuons.tracking.journal import Journal
from crmuons.tracking.logged_models import local_place
from crmuons.tracking.results import add_results
from crmuons.tracking.sender import LONGEST_PAUSE, pause_s, sync
from crmuons.tracking.tracker import Tracker
from crmuons.tracking.uri import bare_uri, default_uri, resolve_uri

NOBODY = "http://127.0.0.1:9"  # The discard port: nobody listens, connections are refused at once.


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with one MLflow store for the module: making its tables takes seconds."""
    return tmp_path_factory.mktemp("store")


@pytest.fixture
def client(base: Path, monkeypatch: pytest.MonkeyPatch) -> mlflow.MlflowClient:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return mlflow.MlflowClient(default_uri(base))


@pytest.fixture
def start(base: Path, tmp_path: Path) -> Iterator[Callable[..., Tracker]]:
    """Open trackers on the module's store; those a test leaves open end with it."""
    opened = []

    def open_one(directory: Path = tmp_path, **changes: object) -> Tracker:
        settings = {"uri": default_uri(base), "experiment": "tests", "run_name": "bundle", "params": {}, "tags": {}}
        opened.append(Tracker.open(directory, **(settings | changes)))
        return opened[-1]

    yield open_one
    for tracker in opened:
        tracker.finish("KILLED")


def history(client: mlflow.MlflowClient, run_id: str, key: str) -> list[tuple[int, float]]:
    return [(metric.step, metric.value) for metric in client.get_metric_history(run_id, key)]


def paths(client: mlflow.MlflowClient, run_id: str, folder: str) -> list[str]:
    return [info.path for info in client.list_artifacts(run_id, folder)]


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
    child = start(tmp_path / "trial", parent=parent.identity)
    child.finish("FINISHED")
    assert client.get_run(child.run_id).data.tags["mlflow.parentRunId"] == parent.run_id


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
    kept = next((tmp_path / "tracking" / "files").glob("*/test_tracking.py"))
    kept.unlink()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", client.tracking_uri)
        _, run_id = sync(tmp_path)
    assert client.get_run(run_id).data.params == {"train.steps": "1"}
    assert history(client, run_id, "loss") == [(1, 1.0)]
    assert "refused an entry (params) for good" in caplog.text
    assert json.loads((tmp_path / "tracking" / "sent.json").read_text())["refused"] == 2


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


@pytest.fixture
def model_dir(tmp_path: Path) -> Path:
    """An untrained model whose features know a toy sample."""
    random, settings = np.random.default_rng(0), config.Model()
    events, muons = 200, 10
    primaries = random.uniform([1e5, 0.0, 0.9, 1500], [1e7, 1.0, 52, 2500], (events, 4)).astype(np.float32)
    sample = EventArrays(
        ids=np.zeros((events, 2), np.uint64),
        primaries=primaries,
        counts=np.full(events, muons),
        muons=random.lognormal(2.0, 1.0, (events * muons, 3)).astype(np.float32),
    )
    model = BundleModel(settings, Features().fit(sample))
    return saved_model.save_model(tmp_path / "model", model, {"format": 1, "model": settings.model_dump(mode="json")})


def test_logged_model_generates_bundles_through_mlflow(start, client, model_dir, tmp_path):
    primaries = pd.DataFrame(
        {"energy_gev": [1e6, 5e6], "zenith_rad": [0.1, 0.4], "mass_gev": [0.938, 52.1], "depth_m": [1600, 2000]}
    )
    tracker = start(tmp_path / "run", uri=NOBODY)
    tracker.model(model_dir, primaries.to_numpy(np.float32))
    tracker.finish("FINISHED")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", client.tracking_uri)
        _, run_id = sync(tmp_path / "run")
        patch.setattr(mlflow.tracking._tracking_service.utils, "_tracking_uri", None)
        loaded = mlflow.pyfunc.load_model(f"runs:/{run_id}/model")
    bundles = loaded.predict(primaries.astype(float), params={"seed": 7})

    wanted = to_table(load_generator(model_dir).generate(primaries.to_numpy(np.float32), seed=7)).to_pydict()
    assert bundles.to_dict("list") == wanted
    assert loaded.metadata.signature.inputs.input_names() == list(schema.PRIMARY_FEATURES)
    assert loaded.input_example is not None
    (requirements,) = (tmp_path / "run").rglob("requirements.txt")
    names = [line.partition("==")[0] for line in requirements.read_text().split()]
    assert names == ["mlflow", "numpy", "torch"]  # Not crmuons: whoever takes that name on an index would be run.
    assert "+" not in requirements.read_text()  # No index has torch==2.13.0+cpu under this name.
    files = {path.name for path in (tmp_path / "run").rglob("*")}
    assert {"MLmodel", "weights.pt"} <= files
    assert not any(name.endswith(".pkl") for name in files)


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


def test_best_model_is_registered_once_its_run_is_known_and_keeps_the_alias_from_worse_ones(
    start, client, model_dir, tmp_path, monkeypatch
):
    example = np.ones((1, 4), np.float32)
    sweep, trials = start(tmp_path / "sweep", uri=NOBODY), {}
    for name, score in (("good", 0.1), ("worse", 0.2), ("other", 0.3)):
        trials[name] = start(tmp_path / name, uri=NOBODY, run_name=name, parent=sweep.identity)
        trials[name].model(model_dir, example)
        trials[name].finish("FINISHED")
        tags = {"validation": "other data" if name == "other" else "same data"}
        sweep.register(trials[name].identity, "bundles", score=score, tags=tags)
    sweep.finish("FINISHED")

    monkeypatch.setenv("MLFLOW_TRACKING_URI", client.tracking_uri)
    with pytest.raises(ConnectionError, match="which this entry refers to; send that journal first"):
        sync(tmp_path / "good")
    with pytest.raises(ConnectionError, match="which this entry refers to; send that journal first"):
        sync(tmp_path / "sweep")  # The run itself was made all the same.
    runs = {name: sync(tmp_path / name)[1] for name in ("good", "worse")}
    with pytest.raises(ConnectionError):
        sync(tmp_path / "sweep")
    assert client.get_model_version_by_alias("bundles", "best").run_id == runs["good"]
    runs["other"] = sync(tmp_path / "other")[1]
    (tmp_path / "sweep" / "tracking" / "sent.json").unlink()  # As after a kill: all is sent again.
    parent = sync(tmp_path / "sweep")[1]

    assert {client.get_run(run).data.tags["mlflow.parentRunId"] for run in runs.values()} == {parent}
    versions = client.search_model_versions("name = 'bundles'")
    assert sorted(version.run_id for version in versions) == sorted(runs.values())
    holder = client.get_model_version_by_alias("bundles", "best")
    assert holder.run_id == runs["other"]  # Other events: its score does not compare.
    assert (holder.tags["validation"], holder.tags["score"]) == ("other data", "0.3")


@pytest.mark.parametrize("uri", ["http://", "http://[::1", "http://127.0.0.1:99999", "https://:5000", "x" * 5000])
def test_a_tracking_uri_that_is_no_address_is_refused(uri):
    with pytest.raises(ValueError, match=r"^tracking URI '.*give .*http") as caught:
        bare_uri(uri)
    assert len(str(caught.value)) < 300


def test_the_pauses_between_attempts_grow_to_a_minute_and_never_fail() -> None:
    assert [pause_s(failures) for failures in (0, 1, 2, 10, 10_000)] == [2.0, 4.0, 8.0, LONGEST_PAUSE, LONGEST_PAUSE]


def test_a_model_of_the_registry_is_a_model_like_others(start, client, model_dir, tmp_path):
    tracker = start(tmp_path / "run", uri=NOBODY)
    tracker.model(model_dir, np.array([[1e6, 0.1, 0.938, 1600]], np.float32))
    tracker.finish("FINISHED")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", client.tracking_uri)
        _, run_id = sync(tmp_path / "run")
        patch.setattr(mlflow.tracking._tracking_service.utils, "_tracking_uri", None)
        (model,) = client.search_logged_models(
            [client.get_run(run_id).info.experiment_id], f"source_run_id = '{run_id}'"
        )
        client.create_registered_model("bundles-by-name")
        version = client.create_model_version(
            "bundles-by-name", f"models:/{model.model_id}", run_id, model_id=model.model_id
        )
        client.set_registered_model_alias("bundles-by-name", "best", version.version)
        for place in (
            "models:/bundles-by-name@best",
            f"models:/bundles-by-name/{version.version}",
            f"models:/{model.model_id}",
        ):
            assert model_digest(load_generator(local_place(place))) == model_digest(load_generator(model_dir))
        patch.setattr(logged_models, "MAX_FILE_BYTES", 1000)
        with pytest.raises(ValueError, match="is no model of crmuons: it has a file of more than"):
            local_place("models:/bundles-by-name@best")
        assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] == resource.RLIM_INFINITY
        with pytest.raises(FileNotFoundError, match=r"models:/bundles-by-name@worst cannot be read from .*sqlite.*: "):
            local_place("models:/bundles-by-name@worst")
        with pytest.raises(FileNotFoundError, match=r"models:/nothing@best cannot be read from .*sqlite.*: "):
            local_place("models:/nothing@best")
