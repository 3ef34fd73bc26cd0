"""Train on one rank: build the step, the data loader, the loop and the services, and run them. This needs no Ray."""

import io
import platform
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pyarrow as pa
import torch

from crmuons import config
from crmuons.data import loader, reader, sampler, shards
from crmuons.data.events import EventArrays
from crmuons.data.quarantine import ReadCounts
from crmuons.data.selection import training_selection
from crmuons.data.staged_reading import read_in_parts
from crmuons.machine import Cpus, keep_freed_memory, num_threads
from crmuons.runs import checkpoint, remote
from crmuons.runs.directory import Run
from crmuons.runs.parent import Parent
from crmuons.storage.identity import Digests
from crmuons.tracking.interface import Status
from crmuons.training import distributed
from crmuons.training.interface import Outcome
from crmuons.training.loop import TrainingLoop
from crmuons.training.services import RankZeroServices, Report, Services
from crmuons.training.trainer import PreparedBatch, Trainer

__all__ = ["Report", "set_up_torch", "threads_of_worker", "train"]

# The training step releases the interpreter's lock at each operation. The thread that prepares batches must give it
# back after this time. Python's default is 5 ms. On two cores, it had 0.85 of the speed of this setting without Ray,
# and 0.94 with Ray (few noisy runs, docs/log.md).
SWITCH_INTERVAL_S = 0.0005


def train(
    settings: config.Config,
    run: Run,
    *,
    device: torch.device,
    tracking_uri: str,
    read: loader.ReadSegments = reader.read_in_process,
    report: Report | None = None,
    workers_on_node: int = 1,
) -> Outcome:
    """Train from the run's last checkpoint, or from the start, to the end.

    Args:
        settings: the run's settings.
        run: the run's directory, set up by the process that started the workers.
        device: the device of this worker.
        tracking_uri: the MLflow server or store.
        read: function that reads segments of the data.
        report: function that receives metrics, their step and the saved checkpoint (or None), on every rank.
        workers_on_node: workers that share the CPUs of this machine.

    Returns:
        Whether the run reached its end or was asked to stop.

    Raises:
        ValueError: if the device is a GPU that torch does not see.
    """
    _check_device(device)
    set_up_torch(settings, workers_on_node)
    # Every rank does this, because each may be on another machine without a copy of the run.
    remote.fetch_start(run)
    trainer = Trainer(settings, run.load_features(settings), device)
    state = _last_state(run, device)
    # A checkpoint has the weights already; the parent's would undo its training.
    if state is None and (parent := Parent.read(run.directory)) is not None:
        trainer.begin_from(parent.model, parent.critic)
    # Reading begins here, before the services: the first batches arrive while MLflow starts.
    batches = _open_loader(settings, run, None if state is None else state["stream"], read, trainer.prepare)
    services = Services(run, report)
    if distributed.rank() == 0:
        first_step = None if state is None else state["trainer"]["num_steps"]
        services = RankZeroServices(
            run, settings, trainer, first_step=first_step, tracking_uri=tracking_uri, report=report
        )
    loop = TrainingLoop(trainer, batches, settings, run.checkpoints, services)
    if state is not None:
        loop.resume(state)
    # Only elastic runs report this. The number of other runs does not change, and the tag num_workers shows it.
    if settings.scaling.min_workers is not None:
        services.report({"scaling/workers": float(distributed.world_size())}, trainer.num_steps, None)
    # If any error ends the loop, the run in MLflow ends as failed.
    status: Status = "FAILED"
    try:
        outcome = loop.fit()
        if outcome == "finished":
            # A stopped run delivers no model: it continues later, and its best checkpoint can still change.
            services.deliver(trainer.num_steps)
        services.finish_uploads()
        status = "FINISHED" if outcome == "finished" else "KILLED"
    finally:
        batches.close()
        services.close(status)
        trainer.release_graphs()
    return outcome


def set_up_torch(settings: config.Config, workers_on_node: int = 1) -> None:
    """Set the threads, the matrix precision and the memory allocator of this process."""
    threads = threads_of_worker(settings.scaling, workers_on_node).number
    torch.set_num_threads(threads)
    # Arrow decodes in its own pool, which by default has one thread for each CPU of the machine.
    pa.set_cpu_count(threads)
    torch.set_float32_matmul_precision("high" if settings.train.tf32 else "highest")
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    keep_freed_memory()


def threads_of_worker(scaling: config.Scaling, workers_on_node: int = 1) -> Cpus:
    """Return the number of threads of a worker and its reason: the setting, or a share of the CPUs of this process."""
    if scaling.threads_per_worker is not None:
        return Cpus(scaling.threads_per_worker, "scaling.threads_per_worker")
    return num_threads(workers_on_node)


def _check_device(device: torch.device) -> None:
    if device.type == "cuda" and not torch.cuda.is_available():
        msg = (
            f"Ray reserved a GPU for this worker, but torch {torch.__version__} sees none on {platform.node()}; install "
            "torch's build for its GPUs, or train on CPUs (scaling.use_gpu=false, for sweeps --gpus-per-trial 0)"
        )
        raise ValueError(msg)


def _last_state(run: Run, device: torch.device) -> dict[str, Any] | None:
    """Return the training state of the last checkpoint, None without one.

    The ranks of a run at a URL may be on different machines, so rank 0 sends the state to all of them.
    """
    if distributed.rank() == 0:
        # Only rank 0 does this, before any rank looks for the newest checkpoint: two ranks must not rename one
        # directory.
        checkpoint.set_aside_damaged(run.checkpoints)
        remote.fetch_newest(run)
    if run.url is None:
        newest = checkpoint.latest(run.checkpoints)
        # Rank 0 chooses, because another rank may still see a checkpoint that was set aside.
        name = distributed.bytes_from_rank_zero(newest.name.encode() if newest else b"", device).decode()
        return checkpoint.load_training(run.checkpoints / name) if name else None
    last = checkpoint.latest(run.checkpoints)
    # Rank 0 has fetched it from the URL; the others need no access to the storage for this.
    local = b"" if last is None else (last / checkpoint.TRAINING_FILE).read_bytes()
    content = distributed.bytes_from_rank_zero(local, device)
    return checkpoint.load_training(io.BytesIO(content)) if content else None


def _open_loader(
    settings: config.Config,
    run: Run,
    state: dict[str, object] | None,
    read: loader.ReadSegments,
    prepare: Callable[[EventArrays], PreparedBatch],
) -> loader.Loader[PreparedBatch]:
    """Return this rank's loader, at the position of a checkpoint. The number of ranks may have changed since then."""
    files = run.load_files()
    slices, segment_bytes = shards.slices_and_segment_bytes(files, settings.data.shuffle_bytes)
    rank, world = distributed.rank(), distributed.world_size()
    if state is None:
        # The plan depends on the files, the seed and the sizes, and not on the rank: all ranks compute the same plan.
        plan = sampler.ReadPlan(tuple(slices), settings.run.seed, segment_bytes, world)
        positions, counts = [(0, 0)] * world, ReadCounts()
    else:
        saved: list[list[int]] = state["positions"]  # type: ignore[assignment]
        previous = sampler.ReadPlan.from_state(slices, settings.run.seed, segment_bytes, state["plan"])  # type: ignore[arg-type]
        plan, positions = previous.continued(world, [(item, taken) for item, taken, *_ in saved])
        saved_counts = [ReadCounts(*numbers) for _, _, *numbers in saved]
        if world == previous.world:
            counts = saved_counts[rank]
        else:  # The counts are summed over ranks when they are reported, so rank 0 can take all of them.
            counts = sum(saved_counts, ReadCounts()) if rank == 0 else ReadCounts()
    known: dict[str, str] = {} if state is None else state.get("digests", {})  # type: ignore[assignment]
    selection = training_selection(settings.data, run.uri, settings.train.muons_per_event)
    selection = replace(selection, digests=Digests(known))
    if selection.staging is not None:
        # The run's files decide whether there is anything to stage, and whether parts of a file fit the cache.
        selection = replace(
            selection, staging=selection.staging.of_run(files, read_in_parts(files), run.directory, f"rank-{rank}")
        )
    return loader.Loader(
        plan,
        rank,
        position=positions[rank],
        read_counts=counts,
        selection=selection,
        data=settings.data,
        events_per_batch=settings.train.events_per_worker,
        read=read,
        prepare=prepare,
    )
