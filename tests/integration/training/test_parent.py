"""A run that begins from another's weights: it starts at them to the bit, records them, and does not need them again."""

import json
import logging
import re
import shutil

import pytest
import torch

from crmuons import config
from crmuons.cli import main
from crmuons.generation.load import load_generator, model_digest
from crmuons.models import saved_model
from crmuons.runs import checkpoint
from crmuons.runs.directory import Run
from crmuons.runs.location import RunStorage
from crmuons.runs.parent import Parent
from crmuons.training import services, worker
from crmuons.training.parent import set_up_run_and_parent
from tune.controller import SharedInputs, SweepController
from tune.options import SweepOptions
from tune.space import Space

DIGEST = "f16ee7d5"  # Of train.steps=10, as version 0.1 made it.
SMALL = (
    "scaling.num_workers=0", "scaling.threads_per_worker=1", "train.log_every=1", "train.validate_every=2", "train.steps=4",
    "train.events_per_worker=64", "train.validation_events=600", "data.validation_share=0.3", "run.checkpoint_every=2", "run.keep_checkpoints=9",
    "model.width=8", "model.multiplicity_width=8", "model.multiplicity_components=2", "tracking.enabled=false",
)  # fmt: skip


@pytest.fixture(scope="module")
def root(tmp_path_factory, toy_events, write_toy):
    """Two ranges of data, and a run on the first, in a directory and at a URL."""
    root = tmp_path_factory.mktemp("turns")
    write_toy(root / "first" / "0.parquet", toy_events(700, seed=1))
    write_toy(root / "second" / "0.parquet", toy_events(700, seed=2, depths=(2100.0, 3500.0)))
    (root / "small.toml").touch()
    assert train(root, "first", "run.name=parent") == 0
    assert train(root, "first", "run.name=away", f"run.storage_path=local://{root}/remote") == 0
    return root


def words_of(root, data, *words):
    return [*SMALL, f"data.train={root / data}", f"run.storage_path={root / 'runs'}", *words]


def train(root, data, *words):
    return main(["train", str(root / "small.toml"), *words_of(root, data, *words)])


def begin(root, *words):
    """Set up a child, and return its run and settings; nothing is trained."""
    settings = config.load(None, words_of(root, "second", "run.name=child", *words))
    run = Run(root / "runs" / "child")
    shutil.rmtree(run.directory, ignore_errors=True)
    run.create(settings, *set_up_run_and_parent(settings, RunStorage.of(settings)))
    return run, settings


def train_here(settings, run, report=None):
    return worker.train(settings, run, device=torch.device("cpu"), tracking_uri="", report=report)


def weights(run, step):
    saved = checkpoint.path(run.checkpoints, step)
    return saved_model.read_tensors(saved / saved_model.WEIGHTS_FILE), checkpoint.load_training(saved)["trainer"]


def differing(one, other):
    return {name for name in one | other if not torch.equal(one[name], other[name])}


def lines(run):
    return [json.loads(line) for line in run.metrics.read_text().splitlines()]


@pytest.mark.parametrize("source", ["a name", "a directory", "a URL"])
def test_a_run_starts_at_the_weights_and_the_critic_of_its_parent_to_the_bit(root, source):
    place = {"a name": "parent", "a directory": root / "runs" / "parent", "a URL": f"local://{root}/remote/away"}[
        source
    ]
    assert train(root, "first", "run.name=same", f"train.init_from={place}", "train.steps=1") == 0
    parent, child = Run(root / "runs" / "parent"), Run(root / "runs" / "same")
    step = checkpoint.step(checkpoint.best(parent.checkpoints).name)
    (model, trainer), (first, state) = weights(parent, step), weights(child, 0)
    assert differing(model, first) == set()
    assert differing(model, state["model"]) == set()
    assert differing(trainer["critic"], state["critic"]) == set()
    assert not any(state["optimizers"]["generator"]["state"].values())  # A fresh optimizer.
    scores = [
        {name: value for name, value in line.items() if name.startswith("validation/")}
        for run, at in ((parent, step), (child, 0))
        for line in lines(run)
        if line["step"] == at
    ]
    assert scores[0] == scores[1] != {}
    shutil.rmtree(child.directory)


def test_the_parent_is_recorded_in_the_run_its_model_and_its_tags_with_all_ancestors(root, caplog):
    caplog.set_level(logging.INFO, "crmuons")
    assert train(root, "second", "run.name=child", "train.init_from=parent") == 0
    assert train(root, "first", "run.name=grandchild", "train.init_from=child") == 0
    child, grandchild = Run(root / "runs" / "child"), Run(root / "runs" / "grandchild")
    about = json.loads((child.directory / "parent.json").read_text())
    parent = load_generator(root / "runs" / "parent")
    assert about == {
        "uri": str(root / "runs" / "parent"), "digest": model_digest(parent), "run": "parent",
        "step": parent.metadata["step"], "critic": True, "features": "kept", "parent": None,
    }  # fmt: skip
    assert load_generator(grandchild.model).metadata["parent"]["parent"] == about
    assert child.stored_settings().train.init_from == "parent"
    tags = services.tags_of(child)
    assert (tags["init_from.uri"], tags["init_from.digest"]) == (about["uri"], about["digest"])
    assert re.search(
        rf"beginning from {child.directory} \(run child, step \d, digest \w+\) and its critic; .* kept", caplog.text
    )
    for run in (child, grandchild):
        shutil.rmtree(run.directory)


def test_the_parents_statistics_are_kept_unless_refitted_and_its_range_is_never_forgotten(root, caplog):
    parent = load_generator(root / "runs" / "parent").model.features.state_dict()
    run, settings = begin(root, "train.init_from=parent")
    kept = run.load_features(settings).state_dict()
    assert differing(parent, kept) == {"primary_range"}
    run, settings = begin(root, "train.init_from=parent", "train.refit_features=true")
    fitted = run.load_features(settings).state_dict()
    assert {"primary_mean", "knots"} <= differing(parent, fitted)
    for features in (kept, fitted):  # Depths of the first data, and of the second.
        assert features["primary_range"][0, 3] == parent["primary_range"][0, 3]
        assert features["primary_range"][1, 3] > parent["primary_range"][1, 3]
    train_here(settings, run)
    first, _ = weights(run, 0)
    model, _ = weights(Run(root / "runs" / "parent"), load_generator(root / "runs" / "parent").metadata["step"])
    assert all(name.startswith("features.") for name in differing(model, first))


def test_primaries_far_from_the_parents_are_named_with_the_remedy(root, caplog, toy_events, write_toy):
    write_toy(root / "far" / "0.parquet", toy_events(250, seed=3, depths=(5_000.0,), mean=500.0))
    settings = config.load(None, words_of(root, "far", "train.init_from=parent"))
    set_up_run_and_parent(settings, RunStorage.of(settings))
    assert re.search(
        r"far from the primaries of train.init_from \(depth_m \+\d+.\d sigma\).*refit_features", caplog.text
    )


@pytest.fixture(scope="module")
def orphan(root, tmp_path_factory):
    """The settings and a copy of a finished child, whose parent was removed before it trained."""
    shutil.copytree(root / "runs" / "parent", root / "runs" / "lost")
    run, settings = begin(root, "train.init_from=lost")
    shutil.rmtree(root / "runs" / "lost")
    assert train_here(settings, run) == "finished"
    return settings, Run(shutil.copytree(run.directory, tmp_path_factory.mktemp("orphan") / "child"))


@pytest.mark.parametrize("stop_at", [0, 1, 3])
def test_a_resume_is_exact_and_does_not_need_the_parent(orphan, tmp_path, stop_at):
    settings, unbroken = orphan
    whole, metrics = weights(unbroken, 4), lines(unbroken)
    run = Run(shutil.copytree(unbroken.directory, tmp_path / "child"))
    for left_over in (run.checkpoints, run.model):
        shutil.rmtree(left_over)
    run.done.unlink()
    run.metrics.unlink()

    def stop(values, step, saved):
        if step == stop_at - 1:
            run.stop_request.touch()

    if stop_at:
        assert train_here(settings, run, stop) == "interrupted"
        run.stop_request.unlink()
    assert train_here(settings, run) == "finished"
    (model, trainer), (other, state) = whole, weights(run, 4)
    assert differing(model, other) == differing(trainer["critic"], state["critic"]) == set()
    losses = [[line.get("train/critic_loss") for line in each] for each in (metrics, lines(run))]
    assert losses[0] == losses[1]


def test_the_parents_weights_are_selected_if_no_step_is_better(root):
    run, settings = begin(
        root, "train.init_from=parent", "train.optimizer.lr=1e-12", "train.optimizer.multiplicity_lr=1e-12"
    )
    train_here(settings, run)
    assert checkpoint.best(run.checkpoints).name == "step-00000000"
    assert load_generator(run.model).metadata["step"] == 0


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["train.init_from=parent", "model.width=16"], r"model.width is 8 there, 16 here; set model.width=8"),
        (["train.init_from=parent", "model.kind=predecessor", "model.layers=3"], r"model.kind is set there, predecessor here; model.layers"),
        (["train.init_from=nowhere"], r"train.init_from=nowhere: no model at .*runs/nowhere: it has no model.json"),
        (["train.init_from="], r"an empty path"),
        (["train.init_from=parent", "train.frozen=['discrete']"], r"has no discrete features; leave 'discrete' out"),
        (["train.frozen=['generator']"], r"frozen=\['generator'\] goes with train.init_from"),
        (["train.refit_features=true"], r"refit_features goes with train.init_from"),
        (["train.init_from=damaged"], r"train.init_from=damaged: .*weights.pt is damaged or cut short"),
        (["train.init_from=models:/nothing@best"], r"looked up in MLflow, and there is no sqlite:///.*MLFLOW_TRACKING_URI"),
    ],
)  # fmt: skip
def test_a_parent_that_cannot_be_used_is_refused_in_one_sentence(root, capsys, words, sentence, monkeypatch):
    monkeypatch.chdir(root)  # It has no store of MLflow's.
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    if not (root / "runs" / "damaged").exists():
        shutil.copytree(root / "runs" / "parent" / "model", root / "runs" / "damaged")
        content = (root / "runs" / "damaged" / "weights.pt").read_bytes()
        (root / "runs" / "damaged" / "weights.pt").write_bytes(content[: len(content) // 2])
    assert train(root, "second", "run.name=refused", *words) == 1
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert re.search(sentence, error), error
    assert not (root / "runs" / "refused").exists()


def test_a_model_directory_has_no_critic_so_the_run_begins_with_a_new_one_of_any_size(root):
    run, settings = begin(root, f"train.init_from={root / 'runs' / 'parent' / 'model'}", "model.critic_layers=2")
    parent = Parent.read(run.directory)
    assert parent.critic is None
    assert parent.about["critic"] is False
    train_here(settings, run)
    assert any("layers.1" in name for name in weights(run, 0)[1]["critic"])


def test_every_trial_of_a_sweep_begins_from_the_parent(root, tmp_path):
    settings = config.load(None, words_of(root, "second", "train.init_from=parent"))
    space = Space.from_dict({"train": {"optimizer": {"lr": {"grid": [1e-3, 1e-2]}}}})
    options = SweepOptions(search="grid", scheduler="none")
    controller = SweepController(tmp_path, settings, space, options, SharedInputs(RunStorage.of(settings)))
    digest = model_digest(load_generator(root / "runs" / "parent"))
    for _ in range(2):
        trial = controller.next_trial()
        assert Parent.read(trial.run.directory).about["digest"] == digest
    with pytest.raises(ValueError, match=r"'model.width' cannot be swept with train.init_from"):
        Space.from_dict({"model": {"width": {"grid": [8, 16]}}}).check(settings)


def test_settings_of_later_versions_leave_the_names_of_earlier_runs_alone():
    assert config.load(None, ["train.steps=10"]).digest() == DIGEST
    assert config.load(None, ["train.steps=10", "train.init_from=parent"]).digest() != DIGEST
