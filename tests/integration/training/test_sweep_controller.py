"""The sweep controller with real trials of a tiny model in this process: after a kill it continues from the disk."""

import dataclasses
import json

import pytest
import torch

from crmuons import config
from crmuons.runs import checkpoint
from crmuons.training import worker
from tests.unit.tune.test_controller import RUN_ALL, SPACE, settings, start  # noqa: F401 - fixtures
from tune import exploit, outcome
from tune.controller import SharedInputs
from tune.options import SweepOptions
from tune.trials import Trial


def run(controller, trial, *, ends_at=None):
    """Train a trial as its process does; at step `ends_at` the process is killed."""

    def report(metrics, step, _saved):
        if "validation/score" in metrics:
            controller.on_score(trial.number, trial.scores()[-1])
        if step == ends_at:
            raise KeyboardInterrupt

    worker.train(trial.settings(), trial.run, device=torch.device("cpu"), tracking_uri="", report=report)
    controller.on_end(trial.number, crashed=False)


def test_a_killed_sweep_goes_on_with_the_trials_it_had_and_repeats_none(start, tmp_path):  # noqa: F811
    first = start()
    run(first, first.next_trial())
    killed = first.next_trial()
    with pytest.raises(KeyboardInterrupt):
        run(first, killed, ends_at=2)
    before = {number: trial.values(SPACE) for number, trial in first.trials.items()}
    done = first.trials[0].run.done.stat().st_mtime_ns

    again = start()
    order: list[int] = []
    while (trial := again.next_trial()) is not None:
        order.append(trial.number)
        run(again, trial)
    assert order == [1]
    assert again.is_complete
    assert {number: again.trials[number].values(SPACE) for number in before} == before
    assert first.trials[0].run.done.stat().st_mtime_ns == done
    assert [line["step"] for line in lines(again.trials[1])] == list(range(5))
    check_results(tmp_path, list(again.trials.values()))
    whole = start()
    assert whole.next_trial() is None
    assert [trial.state() for trial in whole.trials.values()] == ["finished"] * 2


def check_results(tmp_path, trials):
    """The table, and a preset that trains the best model again."""
    rows, best = outcome.write_results(tmp_path, trials, SPACE)
    assert rows[0]["score"] == best.best_score() == min(row["score"] for row in rows)
    assert {path.name for path in (tmp_path / "figures").iterdir()} >= {"parallel_coordinates.png", "scores.png"}
    assert (tmp_path / "trials.csv").read_text().count("\n") == 3
    assert json.loads((tmp_path / "trials.json").read_text()) == rows

    again = config.load(tmp_path / "best.toml", [f"run.storage_path={tmp_path}/again", "run.name=x"])
    ours, theirs = again.flat(), best.settings().flat()
    assert {key for key in ours if ours[key] != theirs[key]} == {"run.storage_path", "run.name", "run.resume"}
    repeated = Trial(0, dataclasses.replace(best.run, directory=tmp_path / "again" / "x"))
    repeated.run.create(again, *SharedInputs()(again))
    worker.train(again, repeated.run, device=torch.device("cpu"), tracking_uri="")
    assert repeated.best_score() == best.best_score()


def lines(trial):
    return [json.loads(line) for line in trial.run.metrics.read_text().splitlines()]


def test_halving_stops_a_trial_and_says_why(start):  # noqa: F811
    """The third trial learns nothing (learning rate 1e-9): the two others are better."""
    controller = start(dataclasses.replace(RUN_ALL, samples=3, scheduler="asha", first_rung=0.5, reduction=2))
    trials = [controller.next_trial() for _ in range(3)]
    for trial, lr in zip(trials, (3e-2, 1e-2, 1e-9), strict=True):
        tree = trial.settings().model_dump(mode="json")
        tree["train"]["optimizer"] |= {"lr": lr, "multiplicity_lr": lr, "warmup_steps": 0}
        (trial.run.directory / "config.json").write_text(json.dumps(tree))
        run(controller, trial)
    assert [trial.state() for trial in trials][::2] == ["finished", "stopped"]
    assert trials[2].reason().endswith("where 2 of 2 trials were better")
    assert checkpoint.latest(trials[2].run.checkpoints).name < "step-00000004"
    assert trials[2].is_over()


def test_a_trial_exploits_another_one_and_continues_with_settings_near_its_own(start, settings):  # noqa: F811
    controller = start(SweepOptions(search="random", scheduler="pbt", samples=2, seed=1), **{"train.ema_decay": 0.5})
    donor, trial = controller.next_trial(), controller.next_trial()
    with pytest.raises(KeyboardInterrupt):
        run(controller, donor, ends_at=2)
    before = trial.values(SPACE)
    run(controller, trial)  # It is the worse of the two: half-way it gets an exploit request.
    asked = json.loads(trial.exploit_request.read_text())
    exploit.exploit(trial)
    trial.run.stop_request.unlink()

    assert not trial.exploit_request.exists()
    assert trial.settings().run.name == trial.name
    assert trial.values(SPACE) != before
    assert trial.values(SPACE)["train.optimizer.lr"] in [
        pytest.approx(factor * donor.values(SPACE)["train.optimizer.lr"]) for factor in (0.8, 1.25)
    ]
    assert [score.step for score in trial.scores()] == [0, 2]  # The donor's newest checkpoint.
    taken = checkpoint.load_training(checkpoint.latest(trial.run.checkpoints))["trainer"]
    theirs = checkpoint.load_training(checkpoint.latest(donor.run.checkpoints))["trainer"]
    assert all(torch.equal(value, theirs["model"][name]) for name, value in taken["model"].items())
    group = taken["optimizers"]["critic"]["param_groups"][0]
    assert list(group["betas"]) == asked["settings"]["train"]["optimizer"]["betas"]
    run(controller, trial)
    assert trial.state() == "finished"
    assert [line["step"] for line in lines(trial)] == list(range(5))
