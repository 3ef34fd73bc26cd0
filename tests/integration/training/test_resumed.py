"""Runs without Ray that were stopped and continue: at further steps, and with the score of an earlier crmuons."""

import json

import pytest

from crmuons.runs import checkpoint
from tests.unit.training.test_worker import (  # noqa: F401 - fixtures
    STEPS,
    check_resumed_at,
    inputs,
    prepared,
    train,
    train_until,
    unbroken,
)


@pytest.mark.parametrize("stop_at", [1, 5])
def test_a_resumed_run_equals_the_unbroken_one_bitwise(prepared, unbroken, stop_at):  # noqa: F811 - fixtures
    check_resumed_at(stop_at, prepared, unbroken)


def test_a_best_checkpoint_of_fewer_quantities_is_not_selected_when_a_run_goes_on(prepared, monkeypatch):  # noqa: F811
    """As a run of an earlier crmuons has it: its score was a mean over the quantities that there were."""
    settings, run = prepared("old")
    with monkeypatch.context() as patch:
        patch.setattr("crmuons.training.validation.distances.fidelity", lambda *_: {"score": 0.001})
        assert train_until(settings, run, 5) == "interrupted"
    assert checkpoint.selected(run.checkpoints) is None or checkpoint.selected(run.checkpoints).name == "step-00000004"
    checkpoint.mark_best(run.checkpoints, checkpoint.path(run.checkpoints, 4))
    monkeypatch.setattr("crmuons.training.validation.distances.fidelity", lambda *_: {"mean_muons_ratio": 1.0})
    assert train(settings, run) == "finished"
    assert json.loads(run.done.read_text())["selected"] == f"step-{STEPS:08d}"
