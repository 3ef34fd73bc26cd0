"""Population-based training's exploitation: a trial goes on from another one's checkpoints, with settings of its own."""

import json
import shutil
from pathlib import Path

from crmuons import config
from crmuons.models import saved_model
from crmuons.runs import checkpoint
from crmuons.runs.directory import Run
from crmuons.storage import atomic
from tune.trials import Trial, scores

ATTEMPTS = 10  # The donor trains on, and deletes old checkpoints while they are copied.


def take_over(trial: Trial) -> None:
    """Do what the trial's takeover.json asks; begun again after a kill, it comes to the same.

    The donor's checkpoints, its metrics up to the newest of them and the new settings replace the trial's own.

    Raises:
        FileNotFoundError: if the donor's checkpoints vanish as fast as they are read.
    """
    wanted = json.loads(trial.takeover.read_text())
    donor, settings = Run(Path(wanted["donor"])), config.from_dict(wanted["settings"])
    copy = trial.run.directory / ".takeover.partial"
    for left in range(ATTEMPTS, 0, -1):
        try:
            step = _copy_checkpoints(donor.checkpoints, copy, settings)
            break
        except FileNotFoundError:
            if left == 1:
                raise
    shutil.rmtree(trial.run.checkpoints, ignore_errors=True)
    copy.rename(trial.run.checkpoints)
    shutil.copyfile(donor.metrics, trial.run.metrics)
    trial.run.forget_metrics_after(step)
    atomic.write_json(trial.run.directory / "config.json", wanted["settings"])
    trial.takeover.unlink()


def can_give(donor: Run, train: config.Train) -> bool:
    """Whether a run has a checkpoint to go on from."""
    return checkpoint.latest(donor.checkpoints) is not None and any(scores(donor, train))


def _copy_checkpoints(donor: Path, copy: Path, settings: config.Config) -> int:
    """Copy the newest and the best checkpoint, and give the optimizers their new constants; returns the step."""
    shutil.rmtree(copy, ignore_errors=True)
    newest, best = checkpoint.latest(donor), checkpoint.best(donor)
    assert newest is not None  # The scheduler asked for it.
    assert best is not None
    shutil.copytree(best, copy / best.name)
    checkpoint.choose_best(copy, copy / best.name)
    model, about = saved_model.load_model(newest)
    training = checkpoint.load_training(newest)
    for name in ("generator", "critic"):
        group = training["trainer"]["optimizers"][name]["param_groups"][0]
        optimizer = settings.train.optimizer
        group |= {"momentum": optimizer.momentum} if optimizer.kind == "sgd" else {"betas": optimizer.betas}
    step: int = training["trainer"]["num_steps"]
    checkpoint.save(copy, step, model, about, training)
    return step
