"""The Ray launcher: a run's workers on Ray Train."""

import json
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray
import ray.train
from ray.train import (
    CheckpointConfig,
    CheckpointUploadMode,
    FailureConfig,
    RunConfig,
    ScalingConfig,
    TrainingFailedError,
)
from ray.train.torch import TorchConfig, TorchTrainer, get_device

from crmuons import config
from crmuons.ray_backend import cluster, preflight, private, tokens
from crmuons.ray_backend.data import read_with_ray
from crmuons.ray_backend.metrics import gauges
from crmuons.ray_backend.mirror import driver_sync, worker_sync
from crmuons.ray_backend.scaling import WorkerLossLog, scaling_config
from crmuons.runs.directory import Run
from crmuons.runs.location import RunStorage
from crmuons.storage.files import File
from crmuons.training import worker
from crmuons.training.driver import RunFailedError, last_line, train_worker, with_remedy
from crmuons.training.loop import Metrics, Outcome
from crmuons.training.signals import in_thread
from crmuons.training.trainer import NonFiniteError

logger = logging.getLogger(__name__)

COLLECTIVE_TIMEOUT_S = 600  # Longer than rank 0's longest validation; a rank that hangs is noticed after this.


class RayLauncher:
    """Trains on the workers of a Ray cluster: the one of RAY_ADDRESS, or one started on this machine for the run."""

    @contextmanager
    def connect(self, urls: Sequence[str]) -> Iterator[None]:
        """Connect to the cluster, and share the tokens that these URLs take with its nodes."""
        with cluster.cluster(), tokens.shared(urls):
            yield

    def check(
        self, settings: config.Config, storage: RunStorage, tracking_uri: str | None, data: Sequence[File]
    ) -> None:
        """See `ray_preflight.check`."""
        preflight.check_cluster(storage, tracking_uri, data, lambda: scaling_config(settings.scaling))

    def train(self, settings: config.Config, run: Run, tracking_uri: str) -> Outcome:
        """Train a run that is set up on Ray Train workers of the cluster that this process is connected to.

        Raises:
            ValueError: if the cluster has too few resources.
            RunFailedError: if the run stopped on the way.
        """
        payload = {"settings": settings.model_dump(mode="json"), "place": run.uri, "tracking_uri": tracking_uri}
        try:
            with driver_sync(run) as mirror:
                _fit(scaling_config(settings.scaling), settings.run, run, payload | {"mirror": mirror})
        except TrainingFailedError as error:
            reason = json.loads(run.failure.read_text())["error"] if run.failure.exists() else _root_cause(error)
            raise RunFailedError(with_remedy(reason, run)) from error
        if run.failure.exists():
            raise RunFailedError(with_remedy(json.loads(run.failure.read_text())["error"], run))
        return "finished" if run.done.exists() else "interrupted"


def _work(payload: dict[str, Any]) -> None:
    """Run one Ray Train worker. An error that another attempt would meet again is written down, so that the next attempt ends."""
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    tokens.receive()
    run, settings = Run.open(payload["place"]), config.from_dict(payload["settings"])
    with worker_sync(run, payload["mirror"], ray.train.get_context().get_world_rank()):
        if run.failure.exists():
            return
        try:
            train_worker(
                settings,
                run,
                device=get_device(),
                tracking_uri=payload["tracking_uri"],
                read=read_with_ray,
                report=_reporter(run),
            )
        except (ValueError, OSError, NonFiniteError, ray.exceptions.RayTaskError) as error:
            run.directory.mkdir(parents=True, exist_ok=True)
            run.fail({"error": _root_cause(error), "kind": type(error).__name__})
            raise


def _fit(scaling: ScalingConfig, how: config.Run, run: Run, payload: dict[str, Any]) -> None:
    private.forget_checkpoints(run.directory)
    trainer = TorchTrainer(
        _work,
        train_loop_config=payload,
        scaling_config=scaling,
        torch_config=TorchConfig(timeout_s=COLLECTIVE_TIMEOUT_S),
        run_config=RunConfig(
            name=run.directory.name,
            storage_path=str(run.directory.parent),
            failure_config=FailureConfig(max_failures=how.max_failures),
            checkpoint_config=CheckpointConfig(),  # Checkpoints are written, chosen and pruned by checkpoint.py.
            callbacks=[WorkerLossLog(run.losses)],  # type: ignore[list-item]  # mypy sees version 1's
        ),
    )
    in_thread(trainer.fit)


def _reporter(run: Run) -> worker.Report:
    show = gauges(run.directory.name) if ray.train.get_context().get_world_rank() == 0 else None

    def report(metrics: Metrics, _step: int, saved: Path | None) -> None:
        if show is not None:
            show(metrics)
        # Ray drops metrics without a checkpoint, and takes one report in each health interval. It takes note of
        # checkpoints below its own storage alone; of a run kept at a URL it needs to know of none.
        if saved is not None and run.url is None:
            kept = ray.train.Checkpoint.from_directory(str(saved))
            ray.train.report(metrics, kept, checkpoint_upload_mode=CheckpointUploadMode.NO_UPLOAD)

    return report


def _root_cause(error: BaseException) -> str:
    """Return the message of the error inside those that Ray puts around it. Errors of crmuons name file and remedy."""
    while isinstance(error, ray.exceptions.RayError | TrainingFailedError):
        inner = getattr(error, "cause", None) or error.__cause__
        if inner is None:
            break
        error = inner
    return last_line(error)
