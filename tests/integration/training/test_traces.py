"""What a run shows on request: TensorBoard's events, and traces of chosen steps."""

import gzip
import json
import shutil

import pytest

from crmuons import config
from crmuons.models import saved_model
from crmuons.runs import checkpoint
from crmuons.tracking.interface import NullTracker
from tests.unit.training.test_worker import inputs, prepared, train, train_until  # noqa: F401 - fixtures


def test_tensorboard_shows_every_metric_of_every_step_and_the_weights_at_validations(prepared):  # noqa: F811
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    settings, run = prepared("shown")
    settings = config.changed(settings, {"tracking.tensorboard": True})
    assert train_until(settings, run, 5) == "interrupted"
    shutil.rmtree(checkpoint.path(run.checkpoints, 5))
    train(settings, run)  # Goes on from step 4 in a second event file, and repeats 5.
    read = accumulator.EventAccumulator(str(run.tensorboard), size_guidance={"histograms": 0})  # 0: all of them
    read.Reload()
    lines = list(run._metric_lines())
    for name in ("train/critic_loss", "speed/events_per_second", "validation/score"):
        told = [(line["step"], line[name]) for line in lines if name in line]
        assert [(event.step, event.value) for event in read.Scalars(name)] == [
            (step, pytest.approx(value, rel=1e-6)) for step, value in told
        ]
    assert {name for line in lines for name in line} - {"step"} == set(read.Tags()["scalars"])
    weights = saved_model.load_model(run.model)[0]
    for name, values in weights.named_parameters():
        shown = read.Histograms(f"weights/{name}")
        assert [event.step for event in shown] == [0, 4, 6]
        assert shown[-1].histogram_value.num == values.numel()
    truth = run.load_validation()
    (primaries,) = {
        read.Histograms(f"primaries/{name}")[-1].histogram_value.num for name in ("log10_energy_gev", "depth_m")
    }
    assert primaries == len(truth.counts)
    assert read.Histograms("true/muon_log10_radius_m")[-1].histogram_value.num == len(truth.muons)
    assert [event.step for event in read.Histograms("generated/log10_num_muons_plus_1")] == [0, 4, 6]


def traced_steps(run, name):
    """The numbers of the steps in a trace, and the names of all that was recorded."""
    with gzip.open(run.profile / name) as file:
        names = [event.get("name", "") for event in json.load(file)["traceEvents"]]
    steps = {int(name.partition("#")[2]) for name in names if name.startswith("ProfilerStep#")}
    return sorted(steps), set(names)


def test_the_chosen_steps_are_traced_and_the_trace_is_an_artifact(prepared, monkeypatch):  # noqa: F811
    sent = []
    monkeypatch.setattr(NullTracker, "artifact", lambda self, path, folder="": sent.append((path, folder)))
    settings, run = prepared("traced", profile_steps=[2, 3], steps=4, validate_every=100)
    train(settings, run)
    assert sent == [(run.profile / "steps-2-3.json.gz", "profile"), (run.profile / "steps-2-3.txt", "profile")]
    assert "Self CPU" in (run.profile / "steps-2-3.txt").read_text()
    steps, names = traced_steps(run, "steps-2-3.json.gz")
    assert steps == [2, 3]
    assert "aten::addmm" in names


def test_a_run_that_ends_or_goes_on_amid_the_chosen_steps_traces_those_it_does(prepared):  # noqa: F811
    settings, run = prepared("broken", profile_steps=[2, 4], steps=4, validate_every=100)
    train_until(settings, run, 2)
    assert traced_steps(run, "steps-2-2.json.gz")[0] == [2, 3]  # Of 3 what comes before the next step: saving.
    train(settings, run)
    assert traced_steps(run, "steps-3-4.json.gz")[0] == [3, 4]
    assert len(list(run.profile.glob("*.json.gz"))) == 2
