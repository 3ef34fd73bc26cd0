"""Train a trial in its process: an ordinary run, which reports each validation to Ray Tune."""

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
from crmuons.runs.owned import own
from crmuons.storage import atomic
from crmuons.training import driver, worker
from crmuons.training.interface import Metrics
from crmuons.training.trainer import NonFiniteError
from tune.exploit import exploit
from tune.trials import STOP_FILE, Trial, scores

POLL_S = 0.2
PATIENCE_S = 60.0


def train_trial(payload: dict[str, Any]) -> None:
    """Run a trial until it ends or a stop is requested. Its error goes to a file, so that the sweep continues.

    Args:
        payload: `sweep` (directory), `number`, `tracking_uri`, `use_gpu`.
    """
    trial = Trial.at(Path(payload["sweep"]), payload["number"])
    logging.getLogger("mlflow").setLevel(logging.WARNING)
    try:
        # If a sweep is killed, the process of its trial lives on for seconds and holds the run.
        with own(trial.run, patience_s=PATIENCE_S):
            _train(trial, payload)
            while trial.exploit_request.exists() and not trial.run.done.exists():
                trial.run.stop_request.unlink(missing_ok=True)
                # This check comes after the line above, so that it sees a stop of the sweep in between.
                if (Path(payload["sweep"]) / STOP_FILE).exists():
                    break
                _train(trial, payload)
    except (ValueError, OSError, NonFiniteError, torch.OutOfMemoryError, driver.RunFailedError) as error:
        if not trial.run.failure.exists():  # The workers of a group write the file themselves.
            atomic.write_json(trial.run.failure, {"error": str(error), "kind": type(error).__name__})


def _train(trial: Trial, payload: dict[str, Any]) -> None:
    if trial.exploit_request.exists():
        exploit(trial)
    settings = trial.settings()
    if settings.scaling.num_workers:
        _train_group(trial, settings, payload["tracking_uri"])
        return

    def report(metrics: Metrics, _step: int, _saved: object) -> None:
        if "validation/score" in metrics:
            *_, newest = scores(trial.run, settings.train)
            # This returns after the scheduler has decided, so its stop request exists by then.
            ray.tune.report(asdict(newest))

    device = torch.device("cuda" if payload["use_gpu"] else "cpu")
    worker.train(settings, trial.run, device=device, tracking_uri=payload["tracking_uri"], report=report)


def _train_group(trial: Trial, settings: config.Config, tracking_uri: str) -> None:
    """Train on a group of Ray Train workers, and report each new score in the run's metrics file."""
    num_reported = sum(1 for _ in scores(trial.run, settings.train))
    with ThreadPoolExecutor(1) as pool:
        training = pool.submit(RayLauncher().train, settings, trial.run, tracking_uri)
        while not training.done():
            time.sleep(POLL_S)
            for score in list(scores(trial.run, settings.train))[num_reported:]:
                ray.tune.report(asdict(score))
                num_reported += 1
        training.result()
