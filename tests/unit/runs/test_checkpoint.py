"""Checkpoints appear complete or not at all, are loaded strictly, and the newest and the best are kept."""

import json
import os
import resource
import signal

import pytest
import torch

from crmuons import config
from crmuons.generation.load import load_generator
from crmuons.models import saved_model
from crmuons.models.bundle_model import BundleModel
from crmuons.models.features import Features
from crmuons.runs import checkpoint

MODEL = config.Model(width=8, multiplicity_width=8, multiplicity_components=2)
ABOUT = {"model": MODEL.model_dump(mode="json"), "step": 3}


@pytest.fixture
def model(toy_events):
    torch.manual_seed(0)
    return BundleModel(MODEL, Features().fit(toy_events(100)))


def save(directory, step, model, value=0):
    return checkpoint.save(directory, step, model, ABOUT | {"step": step}, {"value": torch.tensor([value])})


def test_a_model_is_loaded_as_it_was_saved(tmp_path, model):
    saved = save(tmp_path, 3, model, value=7)
    assert saved.name == "step-00000003"
    loaded, about = saved_model.load_model(saved)
    assert all(torch.equal(value, loaded.state_dict()[name]) for name, value in model.state_dict().items())
    assert not any(parameter.requires_grad for parameter in loaded.parameters())
    assert not loaded.training
    assert about["step"] == 3
    assert checkpoint.load_training(saved)["value"].item() == 7


def test_only_tensors_and_plain_values_are_loaded(tmp_path, model):
    saved = save(tmp_path, 1, model)
    torch.save({"value": config.Model()}, saved / checkpoint.TRAINING_FILE)  # Loading an object may run code.
    with pytest.raises(ValueError, match="other things than tensors, perhaps code, which is never run"):
        checkpoint.load_training(saved)


def test_a_failure_in_the_middle_leaves_the_earlier_checkpoint_alone(tmp_path, model):
    first = save(tmp_path, 1, model)
    before = {file.name: file.read_bytes() for file in first.iterdir()}
    with pytest.raises(TypeError):  # model.json is written after the weights.
        checkpoint.save(tmp_path, 2, model, {"oops": object()}, {})
    assert checkpoint.latest(tmp_path) == first
    assert {file.name: file.read_bytes() for file in first.iterdir()} == before
    assert save(tmp_path, 2, model).is_dir()  # The leftovers of the failure do not matter.
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["step-00000001", "step-00000002"]


def test_a_full_disk_is_an_os_error_and_the_earlier_checkpoint_is_intact(tmp_path, model):
    first = save(tmp_path, 1, model)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))  # Writing longer files fails, as on a full disk.
        with pytest.raises(
            OSError, match=r"checkpoint of step 2 could not be written to .* limit .*; earlier checkpoints are intact"
        ):
            save(tmp_path, 2, model)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, before)
    assert [entry.name for entry in tmp_path.iterdir()] == [first.name]
    saved_model.load_model(first)


def test_a_step_that_is_saved_again_replaces_the_first(tmp_path, model):
    save(tmp_path, 5, model, value=1)
    saved = save(tmp_path, 5, model, value=2)
    assert checkpoint.load_training(saved)["value"].item() == 2
    assert [entry.name for entry in tmp_path.iterdir()] == ["step-00000005"]


def test_the_newest_and_the_best_are_kept(tmp_path, model):
    for step in (10, 20, 30, 40):
        saved = save(tmp_path, step, model)
        if step == 20:
            checkpoint.mark_best(tmp_path, saved)
        checkpoint.prune(tmp_path, 2)
    assert list(checkpoint.steps(tmp_path)) == [20, 30, 40]
    assert checkpoint.latest(tmp_path) == checkpoint.path(tmp_path, 40)
    assert checkpoint.best(tmp_path) == checkpoint.path(tmp_path, 20)
    checkpoint.mark_best(tmp_path, checkpoint.path(tmp_path, 40))
    checkpoint.prune(tmp_path, 1)
    assert list(checkpoint.steps(tmp_path)) == [40]


def test_without_a_selection_the_newest_is_the_best(tmp_path, model):
    assert checkpoint.latest(tmp_path) is None
    assert checkpoint.best(tmp_path) is None
    save(tmp_path, 1, model)
    newest = save(tmp_path, 100_000_000 - 1, model)
    assert checkpoint.best(tmp_path) == newest
    (tmp_path / checkpoint.BEST_FILE).write_text("step-00000777")  # Gone.
    assert checkpoint.best(tmp_path) == newest


def test_half_written_directories_are_no_checkpoints(tmp_path, model):
    save(tmp_path, 1, model)
    (tmp_path / ".step-00000002.partial").mkdir()
    (tmp_path / ".step-00000002.partial" / saved_model.WEIGHTS_FILE).write_bytes(b"half")
    (tmp_path / "step-2").mkdir()
    assert list(checkpoint.steps(tmp_path)) == [1]
    assert save(tmp_path, 2, model).is_dir()
    checkpoint.prune(tmp_path, 2)
    assert not (tmp_path / ".step-00000002.partial").exists()


def test_what_cannot_be_loaded_is_named(tmp_path, model):
    with pytest.raises(FileNotFoundError, match=r"no model at .*nowhere: it has no model\.json; give a run"):
        load_generator(tmp_path / "nowhere")
    saved = save(tmp_path, 1, model)
    about = json.loads((saved / saved_model.SETTINGS_FILE).read_text())
    (saved / saved_model.SETTINGS_FILE).write_text(json.dumps(about | {"format": 99}))
    with pytest.raises(ValueError, match=r"model\.json has format 99, this crmuons reads formats 1 and 2"):
        saved_model.load_model(saved)
    wider = about | {"model": about["model"] | {"width": 9}}
    (saved / saved_model.SETTINGS_FILE).write_text(json.dumps(wider))
    with pytest.raises(ValueError, match=r"weights\.pt is damaged.*size mismatch"):
        saved_model.load_model(saved)


@pytest.mark.parametrize(
    ("name", "change", "fault"),
    [
        ("features.log_count_std", torch.zeros_like, "a spread that is not above 0"),
        ("features.muon_std", torch.neg, "a spread that is not above 0"),
        ("features.scores", torch.zeros_like, "numbers that do not rise"),
        ("features.knots", torch.neg, "numbers that do not rise"),
    ],
)
def test_statistics_that_would_make_nan_of_finite_numbers_are_refused(tmp_path, model, name, change, fault):
    saved = save(tmp_path, 1, model)
    weights = saved_model.read_tensors(saved / saved_model.WEIGHTS_FILE)
    saved_model.write_tensors(saved / saved_model.WEIGHTS_FILE, weights | {name: change(weights[name])})
    with pytest.raises(ValueError, match=rf"weights.pt is damaged: '{name}' holds {fault}; copy the model again"):
        saved_model.load_model(saved)


def test_a_generator_is_loaded_from_a_run_a_checkpoint_or_a_model_directory(tmp_path, model):
    run = tmp_path / "run"
    first = save(run / "checkpoints", 1, model)
    save(run / "checkpoints", 2, model)
    checkpoint.mark_best(run / "checkpoints", first)
    assert load_generator(run).metadata["step"] == 1
    assert load_generator(checkpoint.path(run / "checkpoints", 2)).metadata["step"] == 2
    copied = saved_model.save_model(tmp_path / "model", model, ABOUT)
    saved_model.save_model(copied, model, ABOUT | {"step": 4})
    assert load_generator(str(copied)).metadata["step"] == 4
    assert sorted(os.listdir(tmp_path)) == ["model", "run"]  # noqa: PTH208 - names alone
