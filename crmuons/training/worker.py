"""What one worker does: put the parts of a run together and train. Ray is not needed: it is one way to start workers."""

import io
import json
import logging
import os
import platform
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from crmuons import config, provenance
from crmuons.allocator import keep_freed_memory
from crmuons.data import loader, reader, sampler, shards
from crmuons.data.events import EventArrays
from crmuons.data.quarantine import ReadCounts
from crmuons.data.selection import training_selection
from crmuons.data.staged_reading import read_in_parts
from crmuons.models import saved_model
from crmuons.runs import checkpoint, remote
from crmuons.runs.directory import Run
from crmuons.runs.uploads import FAILURE_WAIT_S, Uploads
from crmuons.storage import atomic
from crmuons.storage.staging import stager
from crmuons.storage.staging.download import REPORT
from crmuons.tracking.interface import AnyTracker, NullTracker, Status
from crmuons.training import distributed
from crmuons.training.batch import TrainingBatch
from crmuons.training.loop import Hooks, Metrics, Outcome, TrainingLoop
from crmuons.training.profiling import StepProfiler
from crmuons.training.tensorboard import Board
from crmuons.training.trainer import Trainer
from crmuons.training.validation import Validation

logger = logging.getLogger(__name__)

# The step lets go of the interpreter's lock at each operation, and gets it back from the thread that makes batches ready after this
# time at the latest. Python's 5 ms: 0.85 of the speed on two cores without Ray, 0.94 with (few noisy runs, docs/log.md).
SWITCH_INTERVAL_S = 0.0005

Report = Callable[[Metrics, int, Path | None], None]


def train(
    settings: config.Config,
    run: Run,
    *,
    device: torch.device,
    tracking_uri: str,
    read: loader.ReadSegments = reader.read_in_process,
    report: Report | None = None,
) -> Outcome:
    """Train from the run's last checkpoint, or from the start, to the end.

    Args:
        settings: the run's settings.
        run: prepared by the process that started the workers.
        device: this worker's.
        tracking_uri: the MLflow server or store.
        read: reads the items of the plan.
        report: told of metrics, their step, and the checkpoint where one was saved, on every rank.

    Raises:
        ValueError: if the device is a GPU that torch does not see.
    """
    _check_device(device)
    set_up_torch(settings)
    remote.fetch_start(run)
    trainer = Trainer(settings, run.load_features(settings), device)
    state = _last_state(run, device)
    batches = _stream(settings, run, None if state is None else state["stream"], read, trainer.prepare)
    if distributed.rank() == 0:
        run.forget_metrics_after(-1 if state is None else state["trainer"]["num_steps"])
    tracker = _tracker(settings, run, tracking_uri) if distributed.rank() == 0 else NullTracker()
    reports, exit_stack = [] if report is None else [report], ExitStack()
    if settings.tracking.tensorboard and distributed.rank() == 0:
        first_step = 0 if state is None else state["trainer"]["num_steps"]
        reports.append(exit_stack.enter_context(closing(Board(run.tensorboard, trainer.averaged, first_step))))
    uploads = Uploads(run, settings.run.keep_checkpoints) if distributed.rank() == 0 and run.url else None
    hooks = Hooks(
        report=_reporter(run, tracker, uploads, reports),
        validate=Validation(run, settings, device, tracker),
        should_stop=run.stop_request.exists,
        model_metadata=lambda step: model_metadata(settings, run, step),
        on_step=_profiler(settings, run, tracker, exit_stack),
    )
    loop = TrainingLoop(trainer, batches, settings, run.checkpoints, hooks)
    if state is not None:
        loop.resume(state)
    if settings.scaling.min_workers is not None:
        hooks.report({"scaling/workers": float(distributed.world_size())}, trainer.num_steps, None)
    status: Status = "FAILED"
    try:
        outcome = loop.fit()
        if distributed.rank() == 0 and outcome == "finished":
            _deliver(run, tracker, trainer.num_steps)
            if uploads is not None:
                uploads.add_model(trainer.num_steps)
        if uploads is not None:
            uploads.finish(settings.run.upload_seconds)
        status = "FINISHED" if outcome == "finished" else "KILLED"
    finally:
        batches.close()
        exit_stack.close()
        if uploads is not None:
            uploads.wait(FAILURE_WAIT_S)
        tracker.finish(status)
    return outcome


def set_up_torch(settings: config.Config) -> None:
    """Threads, precision and memory of this process."""
    threads = settings.scaling.threads_per_worker
    if threads is None:
        threads = max(1, (os.cpu_count() or 1) // max(1, settings.scaling.num_workers))
    torch.set_num_threads(threads)
    torch.set_float32_matmul_precision("high" if settings.train.tf32 else "highest")
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    keep_freed_memory()


def _check_device(device: torch.device) -> None:
    if device.type == "cuda" and not torch.cuda.is_available():
        msg = (
            f"Ray reserved a GPU for this worker, and torch {torch.__version__} sees none on {platform.node()}; install torch's "
            "build for its GPUs, or train on CPUs (scaling.use_gpu=false, for sweeps --gpus-per-trial 0)"
        )
        raise ValueError(msg)


def model_metadata(settings: config.Config, run: Run, step: int) -> dict[str, object]:
    """What model.json says of a model: how it is built, and where it comes from."""
    return {
        "model": settings.model.model_dump(mode="json"),
        "run": run.directory.name,
        "step": step,
        "written": datetime.now(UTC).isoformat(timespec="seconds"),
        "config": settings.model_dump(mode="json"),
        "versions": provenance.code_tags(),
    }


def _last_state(run: Run, device: torch.device) -> dict[str, Any] | None:
    """What the last checkpoint holds, None where there is none; of a run kept at a URL rank 0 says which is the last."""
    if distributed.rank() == 0:
        remote.fetch_newest(run)
    last = checkpoint.latest(run.checkpoints)
    if run.url is None:
        return None if last is None else checkpoint.load_training(last)
    ours = b"" if last is None else (last / checkpoint.TRAINING_FILE).read_bytes()
    content = distributed.bytes_from_rank_zero(ours, device)
    return checkpoint.load_training(io.BytesIO(content)) if content else None


def _stream(
    settings: config.Config,
    run: Run,
    state: dict[str, object] | None,
    read: loader.ReadSegments,
    prepare: Callable[[EventArrays], TrainingBatch],
) -> loader.Loader[TrainingBatch]:
    """The rank's batches, from where a checkpoint left off; ranks may have become more or fewer since."""
    files = run.load_files()
    units, segment_bytes = shards.slices_and_segment_bytes(files, settings.data.shuffle_bytes)
    rank, world = distributed.rank(), distributed.world_size()
    if state is None:
        reading = sampler.ReadPlan(tuple(units), settings.run.seed, segment_bytes, world)
        positions, tally = [(0, 0)] * world, ReadCounts()
    else:
        saved: list[list[int]] = state["positions"]  # type: ignore[assignment]
        before = sampler.ReadPlan.from_state(units, settings.run.seed, segment_bytes, state["plan"])  # type: ignore[arg-type]
        reading, positions = before.continued(world, [(item, taken) for item, taken, *_ in saved])
        tallies = [ReadCounts(*tally) for _, _, *tally in saved]
        same = world == before.world
        tally = tallies[rank] if same else sum(tallies, ReadCounts()) if rank == 0 else ReadCounts()
    selection = training_selection(settings.data, run.uri, settings.train.muons_per_event)
    if selection.staging is not None:
        selection = replace(
            selection, staging=selection.staging.of_run(files, read_in_parts(files), run.directory, f"rank-{rank}")
        )
    return loader.Loader(
        reading,
        rank,
        position=positions[rank],
        read_counts=tally,
        selection=selection,
        data=settings.data,
        events_per_batch=settings.train.events_per_worker,
        read=read,
        prepare=prepare,
    )


def _tracker(settings: config.Config, run: Run, uri: str) -> AnyTracker:
    if not settings.tracking.enabled:
        return NullTracker()
    from crmuons.tracking.tracker import Tracker  # noqa: PLC0415  # MLflow, 1.6 CPU-seconds: rank 0 alone needs it.

    return Tracker.open(
        run.directory,
        uri=uri,
        experiment=settings.tracking.experiment,
        run_name=run.directory.name,
        params=settings.flat(),
        tags={"dataset_fingerprint": run.fingerprint(), "num_workers": str(distributed.world_size())},
        parent=settings.tracking.parent,
    )


def _profiler(settings: config.Config, run: Run, tracker: AnyTracker, exit_stack: ExitStack) -> Callable[[int], None]:
    """What is told of the steps: on rank 0 the recorder of the chosen ones, where there are any."""
    if settings.train.profile_steps is None or distributed.rank() != 0:
        return lambda _: None
    profiler = StepProfiler(settings.train.profile_steps, run.profile, lambda trace: tracker.artifact(trace, "profile"))
    return exit_stack.enter_context(closing(profiler))


def _reporter(
    run: Run, tracker: AnyTracker, uploads: Uploads | None, reports: Sequence[Report]
) -> Callable[[Metrics, int, Path | None], None]:
    def tell(values: Metrics, step: int, saved: Path | None) -> None:
        if uploads is not None and values:
            values = values | {"storage/steps_behind": step - max(uploads.stored.step, 0)}
        if distributed.rank() == 0 and values:
            values = values | stager.metrics(run.directory / REPORT)
            with run.metrics.open("a") as file:
                file.write(json.dumps({"step": step, **values}) + "\n")
            tracker.metrics(values, step)
        if uploads is not None and saved is not None:
            uploads.add(saved)
        for report in reports:
            report(values, step, saved)

    return tell


def _deliver(run: Run, tracker: AnyTracker, steps: int) -> None:
    """Put the selected model where people look for it."""
    chosen = checkpoint.best(run.checkpoints)
    assert chosen is not None  # The last step was saved.
    model, said = saved_model.load_model(chosen)
    saved_model.save_model(run.model, model, said)
    tracker.model(run.model, run.load_validation().primaries[:3])
    atomic.write_json(run.done, {"steps": steps, "model": str(run.model), "selected": chosen.name})
