"""The time limit and a request to stop act within a second, whatever the run does at that moment."""

import json
import logging
import math
import re
import threading
import time

import pytest
import torch

from crmuons import config
from crmuons.data import prefetch, reader
from crmuons.models.features import Features
from crmuons.runs import checkpoint
from crmuons.runs.directory import Run
from crmuons.training import loop, waiting, worker
from crmuons.training.diagnosis import cause_of_nonfinite
from crmuons.training.trainer import NonFiniteError, Trainer
from crmuons.training.waiting import NoBatchError, PatientBatches

SLOW_MACHINE_S = 60.0  # A busy machine may pause for long; without the checks, these runs last for hours.


def settings_of(tmp_path, **train):
    train = {"events_per_worker": 32, "n_critic": 1, "log_every": 10**9, "validate_every": 10**9, **train}
    return config.from_dict(
        {
            "run": {"name": "r", "storage_path": str(tmp_path), "checkpoint_every": 10**9},
            "data": {"validation_share": 0, "test_share": 0, "prefetch_batches": 2},
            "model": {"width": 8, "multiplicity_width": 8, "multiplicity_components": 2},
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
    return files, Features().fit(toy_events(120, seed=2)), toy_events(110, seed=9)


@pytest.fixture
def prepared(inputs, tmp_path):
    def prepare(**train):
        settings, run = settings_of(tmp_path, **train), Run(tmp_path / "r")
        run.create(settings, *inputs)
        return settings, run

    return prepare


def train(settings, run, **how):
    begin = time.monotonic()
    outcome = worker.train(settings, run, device=torch.device("cpu"), tracking_uri="", **how)
    assert time.monotonic() - begin < SLOW_MACHINE_S
    return outcome


def stop_after(run, seconds):
    timer = threading.Timer(seconds, run.stop_request.touch)
    timer.daemon = True
    timer.start()


@pytest.fixture(autouse=True)
def restless(monkeypatch):
    """A loop and waits that look ten times as often, so that the runs of this module are short."""
    monkeypatch.setattr(prefetch, "CLOSE_S", 0.1)
    monkeypatch.setattr(loop, "CHECK_S", 0.04)
    monkeypatch.setattr(waiting, "POLL_S", 0.02)


@pytest.fixture
def first_step(monkeypatch):
    """An event that is set once a training step was taken."""
    taken, step = threading.Event(), Trainer.step

    def tell(self, batches):
        terms = step(self, batches)
        taken.set()
        return terms

    monkeypatch.setattr(Trainer, "step", tell)
    return taken


def hang_after(segments, then=lambda: None):
    """Return a reader that gives this many segments, calls `then`, and gives nothing more, as a server that hangs."""

    def read(plan, selection):
        for number, result in enumerate(reader.read_in_process(plan, selection)):
            if number >= segments:
                then()
                threading.Event().wait()
            yield result

    return read


def request_after(event, run):
    """Return a function that requests a stop once the event has come."""
    return lambda: event.wait(SLOW_MACHINE_S) and run.stop_request.touch()


def last_line(run):
    return json.loads(run.metrics.read_text().splitlines()[-1])


def test_the_time_limit_acts_between_log_steps(prepared):
    settings, run = prepared(max_seconds=0.3)
    assert train(settings, run) == "finished"
    assert 0.3 <= last_line(run)["progress/seconds"] < 0.3 + SLOW_MACHINE_S / 2
    assert run.done.exists()


def test_a_request_to_stop_acts_between_log_steps(prepared):
    settings, run = prepared(steps=10**9)
    stop_after(run, 0.3)
    assert train(settings, run) == "interrupted"
    assert list(checkpoint.steps(run.checkpoints)) == [last_line(run)["step"]]


@pytest.mark.parametrize("limit", ["time", "request"])
def test_a_source_of_data_that_hangs_holds_up_no_end(prepared, first_step, limit):
    settings, run = prepared(**({"max_seconds": 0.5} if limit == "time" else {"steps": 10**9}))
    read = hang_after(4) if limit == "time" else hang_after(4, request_after(first_step, run))
    assert train(settings, run, read=read) == ("finished" if limit == "time" else "interrupted")
    (saved,) = checkpoint.steps(run.checkpoints)
    assert saved == last_line(run)["step"] > 0


def test_data_that_never_come_end_the_run_without_a_checkpoint(prepared):
    settings, run = prepared(steps=10**9)
    stop_after(run, 0.2)
    assert train(settings, run, read=hang_after(0)) == "interrupted"
    assert not checkpoint.steps(run.checkpoints)


def test_a_run_goes_on_after_its_source_hung(prepared, first_step):
    settings, run = prepared(steps=10**9)
    train(settings, run, read=hang_after(4, request_after(first_step, run)))
    run.stop_request.unlink()
    (saved,) = checkpoint.steps(run.checkpoints)
    assert train(config.changed(settings, {"train.steps": saved + 2}), run) == "finished"
    assert last_line(run)["step"] == saved + 2


def test_slow_steps_are_said_once_and_logged_at_the_steps_of_the_settings_alone(prepared, monkeypatch, caplog):
    """A restart from step 0 could not take a line of its own back from MLflow."""
    monkeypatch.setattr(loop, "FIRST_LOG_S", 0.0)
    monkeypatch.setattr(loop, "CHECK_S", 0.0)
    settings, run = prepared(steps=6, log_every=5)
    train(settings, run)
    said = [record.message for record in caplog.records if "metrics come every" in record.message]
    assert len(said) == 1
    assert re.fullmatch(r"the first 1 steps took \d+ s; metrics come every train\.log_every=5 steps", said[0])
    steps = [
        line["step"] for line in map(json.loads, run.metrics.read_text().splitlines()) if "train/critic_loss" in line
    ]
    assert steps == [5, 6]


class Late:
    """A loader with some batches at hand, and no other ever."""

    def __init__(self, *batches):
        self.batches = list(batches)

    def wait(self, seconds):
        time.sleep(0 if self.batches else min(seconds, 0.01))
        return bool(self.batches)

    def __next__(self):
        return self.batches.pop(0)


@pytest.mark.parametrize("alone", [True, False])
def test_a_step_that_has_begun_ends_with_a_batch_that_it_had(alone):
    batches = PatientBatches(Late("one"), lambda: True, lambda: False, str, alone=alone)
    assert [next(batches), next(batches), next(batches)] == ["one"] * 3
    batches.step_begun = False
    if alone:
        with pytest.raises(NoBatchError):
            next(batches)
    else:  # The other ranks wait in an exchange: this one takes part until they agree to stop.
        assert next(batches) == "one"


def test_a_slow_first_batch_comes_after_a_short_time_limit():
    """A run of a moment does one step; only a source that gives nothing for long ends it without one."""
    late = Late()
    threading.Timer(0.2, late.batches.append, ["one"]).start()
    assert next(PatientBatches(late, bool, lambda: True, str, alone=True)) == "one"


def test_a_long_wait_says_for_what_and_until_when(monkeypatch, caplog):
    monkeypatch.setattr(waiting, "SAY_AFTER_S", 0.0)
    stops = iter([False, False, False, True])
    batches = PatientBatches(Late(), lambda: next(stops), bool, lambda: "train.max_seconds is over in 7 s", alone=True)
    with caplog.at_level(logging.WARNING), pytest.raises(NoBatchError):
        next(batches)
    (said,) = (record.message for record in caplog.records)
    assert re.fullmatch(
        r"no data since \d\d:\d\d:\d\d, for 0 s: waiting for the next batch until it comes, or train.max_seconds is over in 7 s",
        said,
    )


def test_the_end_of_a_long_wait_is_said_too(monkeypatch, caplog):
    monkeypatch.setattr(waiting, "SAY_AFTER_S", 0.0)
    late = Late()
    threading.Timer(0.2, late.batches.append, ["one"]).start()
    assert next(PatientBatches(late, bool, bool, lambda: "Ctrl-C", alone=True)) == "one"
    assert [record.message for record in caplog.records][-1] == "data have come after 0 s"


def test_a_damaged_checkpoint_is_the_cause_and_not_the_learning_rate(prepared):
    settings, run = prepared(steps=2)
    train(settings, run)
    (saved,) = checkpoint.steps(run.checkpoints).values()
    state = checkpoint.load_training(saved)
    next(iter(state["trainer"]["critic"].values()))[0] = math.nan
    torch.save(state, saved / checkpoint.TRAINING_FILE)
    with pytest.raises(NonFiniteError, match=r"The checkpoint of step 2 holds NaN .* remove its directory") as caught:
        train(config.changed(settings, {"train.steps": 4}), run)
    assert "optimizer.lr" not in str(caught.value)


def test_data_far_out_of_range_are_the_cause_and_not_the_learning_rate(tmp_path, toy_events):
    events = toy_events(40, seed=0)
    features = Features().fit(events)
    trainer = Trainer(settings_of(tmp_path, steps=1), features, torch.device("cpu"))
    batch = trainer.prepare(events)
    assert "lower train.optimizer.lr" in cause_of_nonfinite(trainer, batch, 0)
    trainer.model.features.primary_std[3] = 1e-30  # As if the sample had one depth alone, and the files have others.
    said = cause_of_nonfinite(trainer, batch, 0)
    assert said.startswith("The data are the likely cause")
    assert "optimizer.lr" not in said
