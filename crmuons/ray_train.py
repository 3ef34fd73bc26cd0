"""A run from the outside: prepare it, start its workers on Ray Train, watch it, and say how it ended."""

import errno
import json
import logging
import shutil
import signal
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import ray
import ray.train
import torch
from ray.train import (
    CheckpointConfig,
    CheckpointUploadMode,
    FailureConfig,
    RunConfig,
    ScalingConfig,
    TrainingFailedError,
)
from ray.train.torch import TorchConfig, TorchTrainer, get_device

from crmuons import config, ray_cluster, ray_data, ray_metrics, ray_mirror, ray_preflight, ray_tokens
from crmuons.ray_scaling import Losses, scaling_config
from crmuons.runs import checkpoint, directory, location, remote
from crmuons.runs.directory import Run
from crmuons.storage import files
from crmuons.tracking.uri import resolve_uri
from crmuons.training import tensorboard, worker
from crmuons.training.loop import Metrics, Outcome
from crmuons.training.progress_bar import progress_of
from crmuons.training.setup import prepare, refuse_credentials
from crmuons.training.summary import Result
from crmuons.training.trainer import NonFiniteError

logger = logging.getLogger(__name__)

RAYS_RECORD = "checkpoint_manager_snapshot.json"
COLLECTIVE_TIMEOUT_S = 600  # Longer than rank 0's longest validation; a rank that hangs is noticed after this.


DISK_FULL = (errno.ENOSPC, errno.EDQUOT)


class RunFailedError(RuntimeError):
    """The run stopped; the message says why and what to do."""


def run_training(settings: config.Config) -> Result:
    """Train as the settings say, from the data's files to a delivered model.

    Raises:
        FileNotFoundError, ValueError: if the data or the settings do not allow it; nothing was started then.
        RunFailedError: if the run stopped on the way. Its last checkpoint is intact.
    """
    refuse_credentials(settings)
    tensorboard.check_installed(settings)
    if (url := location.storage_url(settings)) is not None:
        files.check_writable(url)
    run = directory.find_run(settings)
    remote.fetch_start(run)
    started = run.has_started()
    if started:
        run.check_unchanged(settings)
    origin = None if started else prepare(settings)
    here = settings.scaling.num_workers == 0
    data = run.load_files() if origin is None else origin[0]
    urls = (*settings.data.train, *settings.data.validation, settings.run.storage_path)
    with nullcontext() if here else ray_cluster.cluster(), nullcontext() if here else ray_tokens.shared(urls):
        scaling = None if here else ray_preflight.check(settings, data, lambda: scaling_config(settings.scaling))
        if origin is not None:  # Only now is anything written: what was refused above can be tried again.
            run.prepare(settings, *origin)
        remote.start(run)
        logger.info("%s run %s", "continuing" if started else "starting", run.place)
        outcome = _attempt(settings, run, scaling)
    return Result(run, outcome)


def _attempt(settings: config.Config, run: Run, scaling: ScalingConfig | None) -> Outcome:
    for left_over in (run.failure, run.stop_request):
        left_over.unlink(missing_ok=True)
    run.reserve_failure()
    payload = {
        "settings": settings.model_dump(mode="json"),
        "place": run.place,
        "tracking_uri": resolve_uri(_tracking_base(settings)),
    }
    with stop_on_signals(run.stop_request.touch), progress_of(run, settings):
        return _train_here(payload) if scaling is None else _train_on_ray(scaling, settings.run, run, payload)


def train_worker(payload: dict[str, Any]) -> None:
    """One Ray Train worker. What trying again cannot mend is written down, so that the next attempt ends at once."""
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    ray_tokens.receive()
    run = Run.at(payload["place"])
    with ray_mirror.of_worker(run, payload["mirror"], ray.train.get_context().get_world_rank()):
        if run.failure.exists():
            return
        try:
            _train(payload, get_device(), read=ray_data.read_with_ray, report=_reporter(run))
        except (ValueError, OSError, NonFiniteError, ray.exceptions.RayTaskError) as error:
            run.directory.mkdir(parents=True, exist_ok=True)
            run.fail({"error": _sentence(error), "kind": type(error).__name__})
            raise


def _train(payload: dict[str, Any], device: torch.device, **how: Any) -> Outcome:
    settings, run = config.from_dict(payload["settings"]), Run.at(payload["place"])
    try:
        return worker.train(settings, run, device=device, tracking_uri=payload["tracking_uri"], **how)
    except OSError as error:
        if error.errno not in DISK_FULL:
            raise
        raise OSError(_which_disk(error, run)) from error


def _which_disk(error: OSError, run: Run) -> str:
    """The sentence for a write that found no room; Python names the file where it was opened, not where it was written."""
    here = run.directory if shutil.disk_usage(run.directory).free < 2**20 else tempfile.gettempdir()
    return f"{error.filename or here} cannot be written ({error.strerror}); free space there"


def _train_here(payload: dict[str, Any]) -> Outcome:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return _train(payload, device)
    except (ValueError, OSError, NonFiniteError) as error:
        raise RunFailedError(_with_remedy(_sentence(error), Run.at(payload["place"]))) from error


def train_group(settings: config.Config, run: Run, tracking_uri: str) -> Outcome:
    """Train a prepared run on Ray Train workers of the cluster that this process belongs to.

    Raises:
        RunFailedError: if the run stopped on the way.
    """
    payload = {"settings": settings.model_dump(mode="json"), "place": run.place, "tracking_uri": tracking_uri}
    return _train_on_ray(scaling_config(settings.scaling), settings.run, run, payload)


def _train_on_ray(scaling: ScalingConfig, how: config.Run, run: Run, payload: dict[str, Any]) -> Outcome:
    try:
        with ray_mirror.of_driver(run) as mirror:
            _fit(scaling, how, run, payload | {"mirror": mirror})
    except TrainingFailedError as error:
        reason = json.loads(run.failure.read_text())["error"] if run.failure.exists() else _sentence(error)
        raise RunFailedError(_with_remedy(reason, run)) from error
    if run.failure.exists():
        raise RunFailedError(_with_remedy(json.loads(run.failure.read_text())["error"], run))
    return "finished" if run.done.exists() else "interrupted"


def _fit(scaling: ScalingConfig, how: config.Run, run: Run, payload: dict[str, Any]) -> None:
    # Ray's own record of an earlier command names checkpoints that were pruned since, and it would refuse to go on.
    (run.directory / RAYS_RECORD).unlink(missing_ok=True)
    trainer = TorchTrainer(
        train_worker,
        train_loop_config=payload,
        scaling_config=scaling,
        torch_config=TorchConfig(timeout_s=COLLECTIVE_TIMEOUT_S),
        run_config=RunConfig(
            name=run.directory.name,
            storage_path=str(run.directory.parent),
            failure_config=FailureConfig(max_failures=how.max_failures),
            checkpoint_config=CheckpointConfig(),  # Checkpoints are written, chosen and pruned by checkpoint.py.
            callbacks=[Losses(run.losses)],  # type: ignore[list-item]  # mypy sees version 1's
        ),
    )
    in_thread(trainer.fit)


def _reporter(run: Run) -> worker.Report:
    show = ray_metrics.gauges(run.directory.name) if ray.train.get_context().get_world_rank() == 0 else None

    def report(metrics: Metrics, _step: int, saved: Path | None) -> None:
        if show is not None:
            show(metrics)
        # Ray drops metrics without a checkpoint, and takes one report in each health interval. It takes note of
        # checkpoints below its own storage alone; of a run kept at a URL it needs to know of none.
        if saved is not None and run.url is None:
            kept = ray.train.Checkpoint.from_directory(str(saved))
            ray.train.report(metrics, kept, checkpoint_upload_mode=CheckpointUploadMode.NO_UPLOAD)

    return report


def _tracking_base(settings: config.Config) -> Path:
    """Where a plain `mlflow ui` finds the runs: beside the directory of the runs."""
    return location.storage_path(settings).parent


def _sentence(error: BaseException) -> str:
    """What an error says, without the errors that Ray puts around it. What we put around one names file and remedy."""
    while isinstance(error, ray.exceptions.RayError | TrainingFailedError):
        inner = getattr(error, "cause", None) or error.__cause__
        if inner is None:
            break
        error = inner
    return str(error).strip().splitlines()[-1] if str(error).strip() else type(error).__name__


def _with_remedy(reason: str, run: Run) -> str:
    last = max(remote.Stored.of(run).step, *checkpoint.steps(run.checkpoints), -1)
    where = (
        "no checkpoint was written"
        if last < 0
        else f"the last checkpoint is {checkpoint.path(run.checkpoints, last).name}; run.resume=auto continues"
    )
    return f"run {run.directory.name} stopped: {reason} ({where})"


def in_thread(work: Callable[[], Any]) -> None:
    """Run in a thread, so that signals reach this process's own handlers (Ray would replace them)."""
    failed: list[BaseException] = []

    def target() -> None:
        try:
            work()
        except BaseException as error:  # noqa: BLE001 - raised again in the main thread
            failed.append(error)

    thread = threading.Thread(target=target, daemon=True)
    thread.start()
    while thread.is_alive():
        thread.join(timeout=0.2)
    if failed:
        raise failed[0]


@contextmanager
def stop_on_signals(stop: Callable[[], None]) -> Iterator[None]:
    """On Ctrl-C or SIGTERM ask the workers, through `stop`, to save and end; a second one ends at once."""
    asked = threading.Event()

    def ask(_number: int, _frame: object) -> None:
        if asked.is_set():
            raise KeyboardInterrupt
        asked.set()
        logger.warning("stopping: the workers save a checkpoint and end (once more: end at once)")
        stop()

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
