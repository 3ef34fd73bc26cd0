"""A run without Ray: stopped at any step and continued, it is the unbroken run to the last bit."""

import json
import math
import shutil

import pytest
import torch

from crmuons import config
from crmuons.generation.load import load_generator
from crmuons.models import saved_model
from crmuons.models.features import Features
from crmuons.runs import checkpoint
from crmuons.runs.directory import Run
from crmuons.tracking.interface import NullTracker
from crmuons.training import objective, tensorboard, validation, worker
from crmuons.training.summary import RunSummary
from crmuons.training.trainer import NonFiniteError, Trainer

STEPS = 6
TINY = {"width": 8, "multiplicity_width": 8, "multiplicity_components": 2}


def settings_of(tmp_path, **train):
    train = {"steps": STEPS, "events_per_worker": 32, "log_every": 1, "validate_every": 4, **train}
    return config.from_dict(
        {
            "run": {"name": "r", "storage_path": str(tmp_path), "checkpoint_every": 2, "keep_checkpoints": 10},
            "data": {"validation_share": 0, "test_share": 0, "prefetch_batches": 2},
            "model": TINY,
            "train": train,
            "tracking": {"enabled": False},
            "scaling": {"num_workers": 0, "threads_per_worker": 1},
        }
    )


@pytest.fixture(scope="module")
def inputs(tmp_path_factory, toy_events, write_toy):
    """Training files, fitted features and validation events."""
    root = tmp_path_factory.mktemp("inputs")
    files = [write_toy(root / f"{i}.parquet", toy_events(40, seed=i)) for i in range(3)]
    features = Features().fit(toy_events(120, seed=2))
    features.training_showers = 40
    return files, features, toy_events(110, seed=9)


def create(inputs, folder, name, **train):
    settings, run = settings_of(folder, **train), Run(folder / name)
    run.create(settings, *inputs)
    return settings, run


@pytest.fixture
def prepared(inputs, tmp_path):
    """A prepared run in a directory, and its settings."""
    return lambda name, **train: create(inputs, tmp_path, name, **train)


@pytest.fixture(scope="module")
def unbroken(inputs, tmp_path_factory):
    """The settings and the run of a training that nothing interrupted; it is only read."""
    settings, run = create(inputs, tmp_path_factory.mktemp("unbroken"), "whole")
    assert train(settings, run) == "finished"
    return settings, run


@pytest.fixture(scope="module")
def stopped_at_3(inputs, tmp_path_factory):
    settings, run = create(inputs, tmp_path_factory.mktemp("stopped"), "r")
    assert train_until(settings, run, 3) == "interrupted"
    return settings, run


@pytest.fixture
def interrupted(stopped_at_3, tmp_path):
    """The settings and a copy of a run that was stopped after step 3; it has checkpoints of the steps 2 and 3."""
    settings, run = stopped_at_3
    return settings, Run(shutil.copytree(run.directory, tmp_path / "r"))


def train(settings, run, report=None):
    return worker.train(settings, run, device=torch.device("cpu"), tracking_uri="", report=report)


def train_until(settings, run, step):
    """Train, and ask to stop as a user does once a step is done."""

    def stop_at_step(values, at, saved):
        if at == step - 1:
            run.stop_request.touch()

    try:
        return train(settings, run, stop_at_step)
    finally:
        run.stop_request.unlink()


def same(one, other, path=""):
    """Equal to the last bit, in every tensor and number of two nested states."""
    assert type(one) is type(other), path
    if isinstance(one, dict):
        assert one.keys() == other.keys(), path
        for key in one:
            same(one[key], other[key], f"{path}/{key}")
    elif isinstance(one, list | tuple):
        assert len(one) == len(other), path
        for i, pair in enumerate(zip(one, other, strict=True)):
            same(*pair, f"{path}/{i}")
    elif torch.is_tensor(one):
        assert torch.equal(one, other), path
    elif not path.endswith("/progress/seconds"):  # A clock's.
        assert one == other, path


def states(run, step):
    saved = checkpoint.path(run.checkpoints, step)
    return checkpoint.load_training(saved), torch.load(saved / saved_model.WEIGHTS_FILE, weights_only=True)


def test_a_resumed_run_equals_the_unbroken_one_bitwise(prepared, unbroken):
    check_resumed_at(3, prepared, unbroken)


def check_resumed_at(stop_at, prepared, unbroken):
    _, whole = unbroken
    settings, broken = prepared("broken")
    assert train_until(settings, broken, stop_at) == "interrupted"
    assert list(checkpoint.steps(broken.checkpoints))[-1] == stop_at
    assert not broken.done.exists()
    assert train(settings, broken) == "finished"
    for step in (STEPS, 4) if stop_at < 4 else (STEPS,):
        for one, other in zip(states(whole, step), states(broken, step), strict=True):
            same(one, other)


def test_a_run_killed_while_it_saved_goes_on_from_the_checkpoint_before(prepared, unbroken):
    _, whole = unbroken
    settings, killed = prepared("killed")
    shutil.copytree(whole.checkpoints, killed.checkpoints)
    for later in (4, STEPS):  # As if step 4 had been half written.
        shutil.rmtree(checkpoint.path(killed.checkpoints, later))
    (killed.checkpoints / checkpoint.BEST_FILE).unlink(missing_ok=True)
    partial = killed.checkpoints / ".step-00000004.partial"
    partial.mkdir()
    (partial / saved_model.WEIGHTS_FILE).write_bytes(b"half of it")
    assert train(settings, killed) == "finished"
    for one, other in zip(states(whole, STEPS), states(killed, STEPS), strict=True):
        same(one, other)
    assert not partial.exists()


def test_a_finished_run_leaves_a_model_metrics_and_a_mark(unbroken):
    settings, run = unbroken
    model = load_generator(run.model)
    assert model.metadata["config"] == settings.model_dump(mode="json")
    done = json.loads(run.done.read_text())
    assert done["steps"] == STEPS
    assert done["selected"] == checkpoint.best(run.checkpoints).name
    lines = [json.loads(line) for line in run.metrics.read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(STEPS + 1))
    assert [line["step"] for line in lines if "validation/score" in line] == [0, 4, STEPS]
    assert lines[-1]["data/rows"] > 0
    assert all(math.isfinite(value) for line in lines for value in line.values())
    train(settings, run)  # Once more: there is nothing left to do.
    assert len(run.metrics.read_text().splitlines()) == STEPS + 1


def test_a_run_ends_by_its_time(prepared):
    settings, run = prepared("timed", steps=None, max_seconds=0.05)
    assert train(settings, run) == "finished"
    assert json.loads(run.metrics.read_text().splitlines()[-1])["progress/seconds"] >= 0.05


def test_a_run_ends_by_its_epochs_and_continues_to_more(prepared):
    settings, run = prepared("epochs", steps=None, epochs=2, validate_every=100, events_per_worker=96)
    settings = config.changed(settings, {"run.checkpoint_every": 100})  # A run that continues reads all checkpoints.
    assert train(settings, run) == "finished"
    last = json.loads(run.metrics.read_text().splitlines()[-1])
    assert 2 <= last["progress/epochs"] < 3
    rows = last["data/rows"]
    assert "train.epochs = 2 after" in RunSummary(run, "finished", settings.train).describe()
    more = config.changed(settings, {"train.epochs": 4})
    assert train(more, run) == "finished"
    last = json.loads(run.metrics.read_text().splitlines()[-1])
    assert 4 <= last["progress/epochs"] < 5
    assert last["data/rows"] == pytest.approx(2 * rows, rel=0.4)


def test_a_nan_leaves_the_last_checkpoint_good(interrupted):
    settings, run = interrupted
    state = checkpoint.load_training(checkpoint.path(run.checkpoints, 3))
    next(iter(state["trainer"]["critic"].values()))[0] = math.nan  # As a run that went wrong would have it.
    torch.save(state, checkpoint.path(run.checkpoints, 3) / checkpoint.TRAINING_FILE)
    with pytest.raises(
        NonFiniteError, match=r"step 3: a loss or a gradient on rank 0 is NaN .* The checkpoint of step 3 holds NaN"
    ):
        train(settings, run)
    assert list(checkpoint.steps(run.checkpoints)) == [2, 3]


DAMAGE = {"truncated": lambda old: old[: len(old) // 2], "empty": lambda old: b"", "garbage": lambda old: b"x" * 1000}


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("name", [checkpoint.TRAINING_FILE, saved_model.WEIGHTS_FILE, saved_model.SETTINGS_FILE])
def test_a_damaged_checkpoint_is_set_aside_and_nothing_is_thrown_away(interrupted, damage, name, caplog):
    _, run = interrupted
    newest = checkpoint.path(run.checkpoints, 3)
    (newest / name).write_bytes(DAMAGE[damage]((newest / name).read_bytes()))
    checkpoint.set_aside_damaged(run.checkpoints)
    (said,) = [record.message for record in caplog.records if "damaged" in record.message]
    assert f"step-00000003/{name}" in said
    assert said.endswith("damaged-step-00000003, and the newest intact checkpoint is step-00000002")
    assert (run.checkpoints / "damaged-step-00000003" / name).is_file()
    assert checkpoint.latest(run.checkpoints).name == "step-00000002"


def test_a_run_goes_on_from_the_newest_intact_checkpoint(interrupted):
    settings, run = interrupted
    (checkpoint.path(run.checkpoints, 3) / checkpoint.TRAINING_FILE).write_bytes(b"")
    assert train(settings, run) == "finished"
    assert (run.checkpoints / "damaged-step-00000003").is_dir()
    steps = [json.loads(line)["step"] for line in run.metrics.read_text().splitlines()]
    assert steps == list(range(STEPS + 1))  # Step 3 was done again.


def test_a_run_without_an_intact_checkpoint_is_refused_and_loses_nothing(interrupted):
    settings, run = interrupted
    saved = checkpoint.steps(run.checkpoints)
    for path in saved.values():
        (path / checkpoint.TRAINING_FILE).write_bytes(b"")
    with pytest.raises(ValueError, match=r"no checkpoint in .* can be read; step-00000003: .*Copy one back"):
        train(settings, run)
    assert checkpoint.steps(run.checkpoints) == saved


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_features_come_from_the_newest_checkpoint(interrupted, damage, caplog, tmp_path):
    settings, run = interrupted
    showers = run.load_features(settings).training_showers
    whole = {name: values.clone() for name, values in run.load_features(settings).state_dict().items()}
    path = run.directory / "features.pt"
    path.write_bytes(DAMAGE[damage](path.read_bytes()))
    run.checkpoints.rename(tmp_path / "away")
    with pytest.raises(ValueError, match=r"features\.pt is damaged"):  # No checkpoint holds them yet.
        run.load_features(settings)
    (tmp_path / "away").rename(run.checkpoints)
    features = run.load_features(settings)
    assert features.training_showers == showers == 40
    again = features.state_dict()
    assert all(torch.equal(again[name], values) for name, values in whole.items())
    assert "features.pt is damaged" in caplog.text
    assert "taken from the newest checkpoint" in caplog.text


def test_a_multiplicity_beyond_reason_is_a_bad_score_and_no_failed_run(prepared):
    settings, run = prepared("many")
    model = Trainer(settings, run.load_features(settings), torch.device("cpu")).averaged
    validate = validation.Validation(run, settings, torch.device("cpu"), NullTracker())
    before = validate(model, 0)["score"]
    with torch.no_grad():
        model.multiplicity.network[-1].bias[2:4] += 6.0  # The log means' third: exp(18) muons an event.
    assert before < validate(model, 0)["score"] < math.inf


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda network: network[0].weight[0].fill_(math.inf), r"weights are NaN or infinite \(multiplicity.network.0"),
        (lambda network: network[-1].weight.fill_(3e38), "the multiplicity model gives NaN as the mean of N"),
    ],
)
def test_a_model_that_gives_nan_at_a_validation_ends_the_run_with_its_nan_sentence(
    prepared, monkeypatch, damage, reason
):
    settings, run = prepared("nan-at-validation")
    average = Trainer._average

    def diverges(trainer):
        average(trainer)
        if trainer.num_steps == 3:  # Of the step being taken: the fourth, which is validated.
            with torch.no_grad():
                damage(trainer.averaged.multiplicity.network)

    monkeypatch.setattr(Trainer, "_average", diverges)
    with pytest.raises(
        NonFiniteError, match=rf"step 4: the averaged model cannot be validated: .*{reason}.* lower train.optimizer.lr"
    ):
        train(settings, run)
    assert list(checkpoint.steps(run.checkpoints))[-1] == 2


def test_anomaly_detection_names_the_operation_that_made_the_nan(prepared, monkeypatch):
    def loss(real, fake, kind):
        del kind
        return fake - (real * 0).sqrt()  # The slope of sqrt at 0 is infinite, and times 0 NaN.

    monkeypatch.setattr(objective.losses, "critic_loss", loss)
    settings, run = prepared("anomaly", detect_anomaly=True)
    with (
        pytest.warns(UserWarning, match=r"(?s)Error detected in MulBackward0.*test_worker.py.*real \* 0"),
        pytest.raises(
            NonFiniteError,
            match=r"step 0: the first NaN on rank 0 came from an operation's gradient: Function 'MulBackward0' returned nan",
        ),
    ):
        train(settings, run)
    assert not torch.is_anomaly_enabled()


def test_few_events_to_validate_with_leave_the_last_checkpoint_selected(tmp_path, toy_events, write_toy):
    settings, run = settings_of(tmp_path), Run(tmp_path / "few")
    files = [write_toy(tmp_path / "data" / "0.parquet", toy_events(40, seed=0))]
    run.create(settings, files, Features().fit(toy_events(120, seed=2)), toy_events(3, seed=9))
    assert train(settings, run) == "finished"
    assert json.loads(run.done.read_text())["selected"] == f"step-{STEPS:08d}"


def test_a_run_that_tensorboard_is_missing_for_does_not_start(tmp_path, monkeypatch):
    settings = config.changed(settings_of(tmp_path), {"tracking.tensorboard": True})
    tensorboard.check_installed(settings)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"needs the package tensorboard.*crmuons\[tensorboard\]"):
        tensorboard.check_installed(settings)


@pytest.mark.parametrize("steps", [[0, 3], [4, 3]])
def test_steps_to_trace_are_in_order(tmp_path, steps):
    with pytest.raises(ValueError, match=r"train\.profile_steps: the first and the last step"):
        settings_of(tmp_path, profile_steps=steps)


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here")
def test_a_worker_that_was_given_a_gpu_torch_does_not_see_says_what_to_do(prepared):
    settings, run = prepared("gpu")
    with pytest.raises(
        ValueError, match=r"torch .* sees none on .*; install torch's build for its GPUs, or train on CPUs"
    ):
        worker.train(settings, run, device=torch.device("cuda"), tracking_uri="")
