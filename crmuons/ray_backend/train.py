"""The Ray launcher: runs the workers of a training on Ray Train."""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
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
from crmuons.ray_backend.scaling import WorkerLossLog, backend, scaling_config
from crmuons.runs.directory import Run
from crmuons.runs.location import RunStorage
from crmuons.storage.files import File
from crmuons.training import distributed, worker
from crmuons.training.driver import RunFailedError, last_line, train_worker, with_remedy
from crmuons.training.interface import Metrics, Outcome
from crmuons.training.notices import sent_to_driver
from crmuons.training.signals import in_thread
from crmuons.training.trainer import NonFiniteError

logger = logging.getLogger(__name__)

COLLECTIVE_TIMEOUT_S = 600  # Longer than rank 0's longest validation. A rank that hangs is detected after this time.


class RayLauncher:
    """Train on a Ray cluster: the one at RAY_ADDRESS, or one that is started on this machine for the run.

    Attributes:
        job_outlives_run: whether a sweep or a user's own program had connected this process to Ray before the run.
    """

    def __init__(self) -> None:
        self.job_outlives_run = True

    @contextmanager
    def connect(self, urls: Sequence[str]) -> Iterator[None]:
        """Stay connected to the cluster during the block, and share the tokens for these URLs with its nodes."""
        self.job_outlives_run = ray.is_initialized()
        # Sharing the tokens must end before the connection does, because an actor holds them.
        with cluster.cluster(), tokens.shared(urls):
            yield

    def check(
        self, settings: config.Config, storage: RunStorage, tracking_uri: str | None, data: Sequence[File]
    ) -> None:
        """See `preflight.check_cluster`."""
        preflight.check_cluster(storage, tracking_uri, data, lambda: scaling_config(settings.scaling))

    def train(self, settings: config.Config, run: Run, tracking_uri: str) -> Outcome:
        """Train a run that is set up, on the cluster that this process is connected to.

        Raises:
            ValueError: if the cluster has too few resources.
            RunFailedError: if the run stopped before its end.
        """
        payload = {
            # Plain data: the worker checks them again in the same way as a user's settings.
            "settings": settings.model_dump(mode="json"),
            "place": run.uri,
            # The driver's list of files: a worker's own listing could already show other files.
            "files": run.found_files,
            "tracking_uri": tracking_uri,
        }
        try:
            # Workers on other nodes may not see the run's directory.
            with driver_sync(run) as mirror:
                scaling = scaling_config(settings.scaling)
                exchange = backend(settings.scaling)
                trainer = _trainer(scaling, exchange, settings.run, run, payload | {"mirror": mirror})
                private.start_fewer_processes(trainer, job_outlives_run=self.job_outlives_run)
                # In a thread, because in the main thread Ray would replace this process's signal handlers.
                in_thread(trainer.fit)
        except TrainingFailedError as error:
            # Prefer the worker's own message to Ray's errors, which wrap it several times.
            reason = run.reason_of_failure() if run.failure.exists() else _root_cause(error)
            raise RunFailedError(with_remedy(reason, run)) from error
        if run.failure.exists():
            raise RunFailedError(with_remedy(run.reason_of_failure(), run))
        return "finished" if run.done.exists() else "interrupted"


def _work(payload: dict[str, Any]) -> None:
    """Run one Ray Train worker.

    An error that would occur again is written to a file, so that Ray Train's next attempt ends at once.
    """
    # Ray Data would log each execution, one for every 256 segments.
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    tokens.receive()
    # The run is opened here, because a run at a URL has another local copy on each node.
    run = replace(Run.open(payload["place"]), found_files=payload["files"])
    settings = config.from_dict(payload["settings"])
    context = ray.train.get_context()
    rank, world = context.get_world_rank(), context.get_world_size()
    with worker_sync(run, payload["mirror"], rank), sent_to_driver(run, rank, world), distributed.long_waits_said():
        if run.failure.exists():
            return
        try:
            train_worker(
                settings,
                run,
                # The GPU that Ray chose for this worker, or the CPU.
                device=get_device(),
                tracking_uri=payload["tracking_uri"],
                read=partial(read_with_ray, tasks=settings.data.read_tasks),
                workers_on_node=context.get_local_world_size(),
                report=_reporter(run),
            )
        except (ValueError, OSError, NonFiniteError, ray.exceptions.RayTaskError) as error:
            run.directory.mkdir(parents=True, exist_ok=True)
            # These errors would occur again with the same data and settings. For other errors, such as the loss of a
            # node, Ray Train tries again.
            run.fail({"error": _root_cause(error), "kind": type(error).__name__})
            raise


def _trainer(
    scaling: ScalingConfig, exchange: str | None, settings: config.Run, run: Run, payload: dict[str, Any]
) -> TorchTrainer:
    private.forget_checkpoints(run.directory)
    return TorchTrainer(
        _work,
        train_loop_config=payload,
        scaling_config=scaling,
        torch_config=TorchConfig(backend=exchange, timeout_s=COLLECTIVE_TIMEOUT_S),
        run_config=RunConfig(
            name=run.directory.name,
            storage_path=str(run.directory.parent),
            failure_config=FailureConfig(max_failures=settings.max_failures),
            checkpoint_config=CheckpointConfig(),  # runs/checkpoint.py writes, selects and prunes checkpoints.
            callbacks=[WorkerLossLog(run.losses)],  # type: ignore[list-item]  # mypy sees version 1's
        ),
    )


def _reporter(run: Run) -> worker.Report:
    set_gauges = gauges(run.directory.name) if ray.train.get_context().get_world_rank() == 0 else None

    def report(metrics: Metrics, _step: int, saved: Path | None) -> None:
        if set_gauges is not None:
            set_gauges(metrics)
        # Ray drops metrics without a checkpoint, and accepts one report per health interval. It accepts checkpoints only
        # below its own storage; for a run that is stored at a URL it needs none.
        if saved is not None and run.url is None:
            checkpoint = ray.train.Checkpoint.from_directory(str(saved))
            ray.train.report(metrics, checkpoint, checkpoint_upload_mode=CheckpointUploadMode.NO_UPLOAD)

    return report


def _root_cause(error: BaseException) -> str:
    """Return the last line of the error that Ray's errors wrap. Errors of crmuons name the file and the remedy."""
    # Each layer of Ray wraps the error of the one below.
    while isinstance(error, ray.exceptions.RayError | TrainingFailedError):
        inner = getattr(error, "cause", None) or error.__cause__
        if inner is None:
            break
        error = inner
    return last_line(error)
