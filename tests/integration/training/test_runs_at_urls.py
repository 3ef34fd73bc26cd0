"""Runs at a URL: another machine continues from the newest complete checkpoint, and no result is lost silently."""

import json
import shutil
import threading
import uuid

import fsspec
import pytest
import torch

from crmuons import config
from crmuons.generation.load import load_generator
from crmuons.models import saved_model
from crmuons.models.bundle_model import BundleModel
from crmuons.models.features import Features
from crmuons.runs import checkpoint, find, remote, uploads
from crmuons.runs.directory import Run
from crmuons.runs.location import RunStorage
from crmuons.runs.uploads import NotStoredError, Uploads, UploadStatus
from crmuons.storage import artifacts, files
from crmuons.training import worker

pytestmark = pytest.mark.usefixtures("no_figures")

STEPS = 6


@pytest.fixture(autouse=True)
def quick(monkeypatch, tmp_path):
    """A machine of its own, and retries without waits."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(uploads, "FIRST_WAIT_S", 0.01)


@pytest.fixture
def url():
    return f"memory://storage-{uuid.uuid4().hex}/runs"


@pytest.fixture
def data(tmp_path, toy_events, write_toy):
    return [write_toy(tmp_path / "data" / f"{i}.parquet", toy_events(40, seed=i)) for i in range(3)]


def settings_of(storage, *words):
    return config.load(
        None,
        [
            *("run.name=r", f"run.storage_path={storage}", "run.checkpoint_every=2", "run.resume=auto"),
            *(f"train.steps={STEPS}", "train.events_per_worker=32", "train.log_every=1", "train.validate_every=4"),
            *("model.width=8", "model.multiplicity_width=8", "data.validation_share=0", "data.test_share=0"),
            *("scaling.num_workers=0", "scaling.threads_per_worker=1", "tracking.enabled=false"),
            *words,
        ],
    )


@pytest.fixture
def start(data, toy_events):
    """Start the run of these settings, as `crmuons train` does."""

    def start(settings):
        run = find.find_run(settings, RunStorage.of(settings))
        run.create(settings, data, Features().fit(toy_events(120, seed=2)), toy_events(110, seed=9))
        remote.start(run)
        return run

    return start


def train(settings, run):
    return worker.train(settings, run, device=torch.device("cpu"), tracking_uri="")


def on_another_machine(run):
    """Lose this machine's copy."""
    shutil.rmtree(run.directory.parent)
    return Run.open(run.url)


def steps_at(url):
    return [checkpoint.step(name) for name in artifacts.find_artifacts(f"{url}/r", remote.STEPS)]


def test_a_run_goes_on_elsewhere_and_ends_with_the_model_of_an_unbroken_one(tmp_path, url, start):
    whole = start(settings_of(tmp_path / "whole"))
    train(settings_of(tmp_path / "whole"), whole)
    settings = settings_of(url, "run.keep_checkpoints=9")
    run = start(settings)
    train(settings, run)
    for written_later in artifacts.find_artifacts(run.url, rf"(step|model)-{STEPS:08d}"):
        files.remove_tree(f"{run.url}/{written_later}")
    run = on_another_machine(run)
    found = find.find_run(settings, RunStorage.of(settings))
    assert found == run
    remote.fetch_start(found)
    found.check_unchanged(settings)
    assert train(settings, found) == "finished"
    (name,) = artifacts.find_artifacts(run.url, rf"model-{STEPS:08d}")
    artifacts.download(run.url, name, tmp_path / "model")
    assert (tmp_path / "model/weights.pt").read_bytes() == (whole.model / "weights.pt").read_bytes()
    assert {"model.json", "weights.pt", "metrics.jsonl", "done.json"} == {
        p.name for p in (tmp_path / "model").iterdir()
    }
    assert [line["step"] for line in Run(tmp_path / "model")._metric_lines()] == list(range(STEPS + 1))
    assert UploadStatus.of(run).step == STEPS


def test_the_newest_and_the_best_stay(url, start, monkeypatch):
    scores = iter([9.0, 1.0, 5.0, 5.0])  # At the steps 0, 2, 4 and 6.
    monkeypatch.setattr("crmuons.evaluation.metrics.distances.fidelity", lambda *_: {"score": next(scores)})
    settings = settings_of(url, "run.keep_checkpoints=1", "run.checkpoint_every=1", "train.validate_every=2")
    run = start(settings)
    train(settings, run)
    assert steps_at(url) == [2, STEPS]
    shutil.rmtree(run.directory)
    remote.fetch_newest(run)
    assert list(checkpoint.steps(run.checkpoints)) == steps_at(url)
    assert checkpoint.selected(run.checkpoints).name == "step-00000002"


def test_a_half_written_checkpoint_and_a_damaged_one_are_passed_over(url, start, caplog):
    settings = settings_of(url, "run.keep_checkpoints=9")
    run = start(settings)
    train(settings, run)
    memory = fsspec.filesystem("memory")
    for step, file in ((STEPS, "manifest.json"), (4, "training.pt")):
        (name,) = artifacts.find_artifacts(run.url, f"step-{step:08d}")
        path = fsspec.core.url_to_fs(f"{run.url}/{name}/{file}")[1]
        memory.pipe_file(path, memory.cat_file(path)[:-1] + b"?")
    run = on_another_machine(run)
    remote.fetch_newest(run)
    assert checkpoint.latest(run.checkpoints).name == "step-00000002"
    assert "continuing from the checkpoint before it" in caplog.text


@pytest.fixture
def down(monkeypatch):
    """A storage that refuses every file until it is back."""
    back, put = threading.Event(), files.put

    def put_once_back(local, target):
        if not back.is_set():
            msg = "storage is down"
            raise ConnectionError(msg)
        put(local, target)

    monkeypatch.setattr(files, "put", put_once_back)
    return back


def test_a_storage_that_is_down_at_the_end_loses_nothing(url, start, down):
    settings = settings_of(url, "run.upload_seconds=0.2")
    down.set()
    run = start(settings)
    down.clear()
    with pytest.raises(NotStoredError, match=r"step-00000006 and model-00000006 could not be copied to memory://.*/r within "
                       r"run.upload_seconds = 0.2 \(storage is down\); all of it is in .*/cache/.* on \w+.*run.resume=auto"):  # fmt: skip
        train(settings, run)
    assert UploadStatus.of(run).upload_error == "storage is down"
    assert run.done.exists()
    down.set()
    assert train(settings_of(url), run) == "finished"  # The same command again, on a machine that may be busy.
    assert steps_at(url) == [STEPS]
    assert len(artifacts.find_artifacts(run.url, r"model-\d{8}")) == 1
    assert UploadStatus.of(run).upload_error is None


def test_training_does_not_wait_for_a_slow_storage_and_what_is_overtaken_is_left_out(url, start, down):
    settings = settings_of(url, "train.steps=2", "train.validate_every=100", "run.keep_checkpoints=9")
    down.set()
    run = start(settings)
    train(settings, run)
    down.clear()
    uploads = Uploads(run, keep=9)
    for step in (3, 4, 5):
        shutil.copytree(checkpoint.path(run.checkpoints, 2), checkpoint.path(run.checkpoints, step))
        uploads.add(checkpoint.path(run.checkpoints, step))
    down.set()
    uploads.finish(20)
    assert len(steps_at(url)) <= 3  # The one that was on its way, if any, between the first and the last.
    assert steps_at(url)[-1] == 5


def test_what_may_not_be_removed_stays_and_is_said_once(url, start, monkeypatch, caplog):
    def refuse(target):
        msg = f"{target} takes storage.modify"
        raise PermissionError(msg)

    monkeypatch.setattr(files, "remove_tree", refuse)
    settings = settings_of(url, "run.keep_checkpoints=1", "run.checkpoint_every=1", "train.validate_every=100")
    run = start(settings)
    train(settings, run)
    assert "takes storage.modify" in UploadStatus.of(run).removal_error
    assert caplog.text.count("old checkpoints cannot be removed") == 1


def test_a_copy_of_another_run_of_the_same_name_is_not_mixed_in(url, start, data):
    settings = settings_of(url)
    run = start(settings)
    files.remove_tree(run.url)
    shutil.move(run.directory, run.directory.parent / "kept")
    data.pop()
    start(settings)
    shutil.rmtree(run.directory)
    shutil.move(run.directory.parent / "kept", run.directory)
    with pytest.raises(ValueError, match=r"this machine's copy of another run than the run at .*; move it away"):
        remote.fetch_start(run)


def test_a_name_that_is_taken_at_the_url_is_taken_everywhere(url, start):
    run = on_another_machine(start(settings_of(url)))
    with pytest.raises(ValueError, match=rf"run 'r' exists in {url}; continue it with run\.resume=auto"):
        find.find_run(settings_of(url, "run.resume=never"), RunStorage.of(settings_of(url, "run.resume=never")))
    assert find.find_run(settings_of(f"{url}/"), RunStorage.of(settings_of(f"{url}/"))) == run


def test_a_run_whose_start_was_not_all_written_never_began_and_is_started_anew(url, start):
    settings = settings_of(url)
    run = start(settings)
    (half,) = artifacts.find_artifacts(run.url, "start")
    fsspec.filesystem("memory").rm_file(fsspec.core.url_to_fs(f"{run.url}/{half}/manifest.json")[1])
    run = on_another_machine(run)
    remote.fetch_start(run)
    assert not run.has_started()
    assert start(settings) == run
    remote.fetch_start(run)
    assert run.has_started()


def test_the_model_of_a_run_at_a_url_is_fetched_once(url, start, monkeypatch):
    settings = settings_of(url, "run.checkpoint_every=3")
    run = start(settings)
    with pytest.raises(FileNotFoundError, match=f"nothing to copy below '{url}/other'"):
        load_generator(f"{url}/other")
    train(settings, run)
    model = load_generator(run.url)
    assert model.metadata["step"] == STEPS
    assert (
        load_generator(f"{run.url}/{artifacts.find_artifacts(run.url, 'step-00000006')[0]}").metadata["step"] == STEPS
    )
    monkeypatch.setattr(artifacts, "download", None)
    again = load_generator(run.url)
    assert all(torch.equal(value, again.model.state_dict()[name]) for name, value in model.model.state_dict().items())


def test_a_model_directory_at_a_url_is_fetched_as_it_is_now(url, tmp_path):
    settings = settings_of(url).model
    for step in (3, STEPS):
        about = {"model": settings.model_dump(mode="json"), "step": step}
        files.remove_tree(url)
        files.put_tree(saved_model.save_model(tmp_path / "model", BundleModel(settings), about), url)
        assert load_generator(url).metadata["step"] == step


def test_the_record_of_uploads_of_an_earlier_version_is_read(tmp_path):
    run = Run(tmp_path)
    record = {"step": 7, "model": None, "trouble": "storage is down", "kept": "not allowed"}
    (tmp_path / "upload.json").write_text(json.dumps(record))
    status = UploadStatus.of(run)
    assert (status.step, status.upload_error, status.removal_error) == (7, "storage is down", "not allowed")
