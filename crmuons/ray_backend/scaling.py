"""The workers of a run on a cluster: how many it asks for, and what it writes down when some are lost."""

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
    """Workers and what each reserves, checked against the cluster.

    Raises:
        ValueError: if the cluster has too little; Ray would wait for ever.
    """
    have = ray.cluster_resources()
    elastic = scaling.min_workers is not None
    least = scaling.min_workers or scaling.num_workers
    use_gpu = have.get("GPU", 0.0) > 0 if scaling.use_gpu is None else scaling.use_gpu
    for kind in ("GPU", "CPU") if use_gpu else ("CPU",):
        if least > have.get(kind, 0.0):
            msg = (
                f"scaling.num_workers = {[least, scaling.num_workers] if elastic else least} needs {least} {kind}s, "
                f"the cluster has {have.get(kind, 0.0):g}; ask for fewer workers"
            )
            raise ValueError(msg)
    each = {"CPU": _cpus_per_worker(scaling, have.get("CPU", 0.0))} | ({"GPU": 1.0} if use_gpu else {})
    check_fit("workers", least, each)
    return ScalingConfig(
        num_workers=(least, scaling.num_workers) if elastic else least,  # type: ignore[arg-type]  # mypy sees version 1's
        use_gpu=use_gpu,
        resources_per_worker=each,
        elastic_resize_monitor_interval_s=scaling.resize_seconds,  # type: ignore[call-arg]
    )


def check_fit(what: str, number: int, each: Mapping[str, float]) -> None:
    """See `preflight.check_fit`; the nodes are the cluster's."""
    node_checks.check_fit(what, number, each, [node["Resources"] for node in ray.nodes() if node["Alive"]])


def _cpus_per_worker(scaling: config.Scaling, cpus: float) -> float:
    """What was set, or at most 1; one CPU of the cluster stays free to read the data, in an elastic run at its least."""
    workers = scaling.min_workers or scaling.num_workers
    each = scaling.cpus_per_worker
    if each is None:
        each = min(1.0, (cpus - 1) / workers) if cpus > 1 else 0.5
    if workers * each > cpus - 1 and cpus > 1:
        msg = (
            f"{workers} workers with scaling.cpus_per_worker = {each:g} leave less than one of the cluster's {cpus:g} "
            f"CPUs to read the data; set it to {(cpus - 1) / workers:.2g} or less"
        )
        raise ValueError(msg)
    return each


class WorkerLossLog(UserCallback):
    """Writes down which workers were lost and why, one JSON line a loss; Ray Train calls it on the controller's node.

    Args:
        path: of the file, in the run's directory.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def after_exception(self, run_context: Any, worker_exceptions: Mapping[int, Exception]) -> None:
        """Note a loss. Workers that failed because another was lost are not named."""
        del run_context
        # A worker that answers no more was lost; the others then fail in their exchange with it.
        lost = {rank: error for rank, error in worker_exceptions.items() if private.is_lost(error)}
        reasons = {rank: _last_line(error) for rank, error in sorted((lost or worker_exceptions).items())}
        line = {"at": datetime.now(UTC).isoformat(timespec="seconds"), "workers": reasons}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a") as file:
            file.write(json.dumps(line) + "\n")


def _last_line(error: BaseException) -> str:
    """Return the last line of an error's message: Ray's lines before it hold the names and numbers of actors."""
    text = private.without_guesses(error)
    return text.splitlines()[-1].strip() if text else type(error).__name__
