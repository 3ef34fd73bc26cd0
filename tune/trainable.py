"""What the process of a trial does: an ordinary run, which reports each validation to Ray Tune."""

import logging
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

import ray.tune
import torch

from crmuons import config
from crmuons.ray_backend.train import RayLauncher
from crmuons.storage import atomic
from crmuons.training import driver, worker
from crmuons.training.loop import Metrics
from crmuons.training.trainer import NonFiniteError
from tune import exploit
from tune.trials import STOP_FILE, Trial, scores

SECONDS_BETWEEN_LOOKS = 0.2


def train_trial(payload: dict[str, Any]) -> None:
    """Run a trial to its end, or until it is asked to stop. What stops it is written down, and is no failure of the sweep.

    Args:
        payload: `sweep` (directory), `number`, `tracking_uri`, `use_gpu`.
    """
    trial = Trial.at(Path(payload["sweep"]), payload["number"])
    logging.getLogger("mlflow").setLevel(logging.WARNING)
    try:
        _train(trial, payload)
        while trial.takeover.exists() and not trial.run.done.exists():
            trial.run.stop_request.unlink(missing_ok=True)
            if (Path(payload["sweep"]) / STOP_FILE).exists():  # Looked at in this order: no request to stop gets lost.
                break
            _train(trial, payload)
    except (ValueError, OSError, NonFiniteError, torch.OutOfMemoryError, driver.RunFailedError) as error:
        if not trial.run.failure.exists():  # The workers of a group have written it themselves.
            atomic.write_json(trial.run.failure, {"error": str(error), "kind": type(error).__name__})


def _train(trial: Trial, payload: dict[str, Any]) -> None:
    if trial.takeover.exists():
        exploit.take_over(trial)
    settings = trial.settings()
    if settings.scaling.num_workers:
        _train_group(trial, settings, payload["tracking_uri"])
        return

    def report(metrics: Metrics, _step: int, _saved: object) -> None:
        if "validation/score" in metrics:
            *_, newest = scores(trial.run, settings.train)
            ray.tune.report(asdict(newest))  # Returns once the scheduler has judged: the request to stop is there then.

    device = torch.device("cuda" if payload["use_gpu"] else "cpu")
    worker.train(settings, trial.run, device=device, tracking_uri=payload["tracking_uri"], report=report)


def _train_group(trial: Trial, settings: config.Config, tracking_uri: str) -> None:
    """Train on a group of Ray Train workers, and report what appears in the run's metrics file."""
    reported = sum(1 for _ in scores(trial.run, settings.train))
    with ThreadPoolExecutor(1) as pool:
        work = pool.submit(RayLauncher().train, settings, trial.run, tracking_uri)
        while not work.done():
            time.sleep(SECONDS_BETWEEN_LOOKS)
            for each in list(scores(trial.run, settings.train))[reported:]:
                ray.tune.report(asdict(each))
                reported += 1
        work.result()
