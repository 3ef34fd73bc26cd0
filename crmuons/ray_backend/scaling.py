"""The workers of a run on a cluster: their number and resources, and a log of lost workers."""

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import ray
from ray.train import ScalingConfig, UserCallback

from crmuons import config
from crmuons.ray_backend import node_checks, private


def scaling_config(scaling: config.Scaling) -> ScalingConfig:
    """Return the number of workers and the resources of each, checked against the cluster.

    Raises:
        ValueError: if the cluster has too few resources; Ray would wait for ever.
    """
    available = ray.cluster_resources()
    elastic = scaling.min_workers is not None
    # An elastic run needs room for at least its smallest number of workers.
    least = scaling.min_workers or scaling.num_workers
    # If the setting is unset, workers get GPUs if the cluster has any. The driver itself may have none.
    use_gpu = available.get("GPU", 0.0) > 0 if scaling.use_gpu is None else scaling.use_gpu
    # GPUs first, so that the message names the scarcer resource.
    for kind in ("GPU", "CPU") if use_gpu else ("CPU",):
        if least > available.get(kind, 0.0):
            msg = (
                f"scaling.num_workers = {[least, scaling.num_workers] if elastic else least} needs {least} {kind}s, "
                f"the cluster has {available.get(kind, 0.0):g}; ask for fewer workers"
            )
            raise ValueError(msg)
    if scaling.backend == "nccl" and not use_gpu:
        msg = "scaling.backend = nccl exchanges between GPUs, and the workers have none; use auto or gloo"
        raise ValueError(msg)
    per_worker = {"CPU": _cpus_per_worker(scaling, available.get("CPU", 0.0))} | ({"GPU": 1.0} if use_gpu else {})
    check_cluster_fit("workers", least, per_worker)
    return ScalingConfig(
        num_workers=(least, scaling.num_workers) if elastic else least,  # type: ignore[arg-type]  # mypy sees version 1's
        use_gpu=use_gpu,
        resources_per_worker=per_worker,
        elastic_resize_monitor_interval_s=scaling.resize_seconds,  # type: ignore[call-arg]
    )


def backend(scaling: config.Scaling) -> str | None:
    """Return torch's name of the exchange between workers; None leaves the choice to Ray Train, by the device."""
    return None if scaling.backend == "auto" else scaling.backend


def check_cluster_fit(what: str, number: int, per_process: Mapping[str, float]) -> None:
    """Check with `node_checks.check_fit` that processes fit on the nodes of the cluster."""
    node_checks.check_fit(what, number, per_process, [node["Resources"] for node in ray.nodes() if node["Alive"]])


def _cpus_per_worker(scaling: config.Scaling, cpus: float) -> float:
    """Return the setting, or at most 1 CPU. One CPU of the cluster must stay free to read the data.

    For an elastic run, this holds with the smallest number of workers.
    """
    workers = scaling.min_workers or scaling.num_workers
    per_worker = scaling.cpus_per_worker
    if per_worker is None:
        # With more workers than CPUs, each gets a share of a CPU. This is a reservation, not a limit on threads.
        per_worker = min(1.0, (cpus - 1) / workers) if cpus > 1 else 0.5
    if workers * per_worker > cpus - 1 and cpus > 1:
        msg = (
            f"{workers} workers with scaling.cpus_per_worker = {per_worker:g} leave less than one of the cluster's {cpus:g} "
            f"CPUs to read the data; set it to {(cpus - 1) / workers:.2g} or less"
        )
        raise ValueError(msg)
    return per_worker


class WorkerLossLog(UserCallback):
    """Log which workers were lost and why, one JSON line per loss. Ray Train calls it on the controller's node.

    Args:
        path: path of the log, in the run's directory.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def after_exception(self, run_context: Any, worker_exceptions: Mapping[int, Exception]) -> None:
        """Log a loss, without the workers that failed only because another one was lost."""
        del run_context
        # A lost worker no longer answers. The others then fail when they communicate with it.
        lost = {rank: error for rank, error in worker_exceptions.items() if private.is_lost(error)}
        reasons = {rank: _last_line(error) for rank, error in sorted((lost or worker_exceptions).items())}
        line = {"at": datetime.now(UTC).isoformat(timespec="seconds"), "workers": reasons}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        # Append, because the controller may be restarted and earlier losses must stay.
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")


def _last_line(error: BaseException) -> str:
    """Return the last line of an error's message: Ray's lines before it hold the names and numbers of actors."""
    text = private.without_guesses(error)
    return text.splitlines()[-1].strip() if text else type(error).__name__
