"""Before a run or a sweep starts on a cluster: what would fail on the way is found, and told all at once."""

import logging
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any, TypeVar

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from crmuons.ray_backend import node_checks, tokens
from crmuons.ray_backend.node_checks import NodeCheck, NodeReport
from crmuons.runs.location import RunStorage
from crmuons.storage.files import File
from crmuons.tracking.health import unreachable_reason

logger = logging.getLogger(__name__)

TIMEOUT_S = 180.0  # A node that starts its first process, and imports torch and MLflow in it, from a slow disk.

Planned = TypeVar("Planned")


def check_cluster(
    storage: RunStorage, tracking_uri: str | None, data: Sequence[File], plan: Callable[[], Planned]
) -> Planned:
    """Look whether the cluster can do a run: its resources, and each node where a worker may be put.

    The driver's own node is not tried: what it reads and writes itself was looked at before. So a cluster of one node
    starts no task.

    Args:
        storage: where the runs live. The tokens that its URL takes are shared.
        tracking_uri: the MLflow server or store; None if tracking is off.
        data: the training files, of which the first is opened.
        plan: divides the cluster's resources.

    Returns:
        What `plan` gives.

    Raises:
        ValueError: all faults, a sentence a line.
        OSError: if the driver cannot write to the directory of the runs.
    """
    faults = _faults_of_nodes(storage, tracking_uri, data)
    try:
        planned = plan()
    except ValueError as error:
        raise ValueError("\n".join([str(error), *faults])) from error
    if faults:
        raise ValueError("\n".join(faults))
    return planned


def _faults_of_nodes(storage: RunStorage, uri: str | None, data: Sequence[File]) -> list[str]:
    nodes = _other_nodes()
    if not nodes:
        if uri is not None:
            _warn_of_tracking(uri, {"this node": unreachable_reason(uri)})
        return []
    with nullcontext() if storage.url is not None else node_checks.marker_file(storage.directory) as mark:
        errand = NodeCheck(storage.url or str(storage.directory), mark, data[0] if data else None, uri)
        found, told = _try_on(nodes, errand)
    ours = node_checks.versions()
    for node, findings in found.items():
        told[node] = [*findings.faults, *node_checks.compare_versions(ours, findings.versions)]
    if uri is not None:
        _warn_of_tracking(uri, {node: findings.tracking for node, findings in found.items()})
    return node_checks.by_node(told)


def _other_nodes() -> dict[str, str]:
    """Nodes where a worker may be put, but for this process's own: their names by their ids."""
    here = ray.get_runtime_context().get_node_id()
    return {
        node["NodeID"]: f"{node['NodeManagerHostname']} ({node['NodeName']})"
        for node in ray.nodes()
        if node["Alive"] and node["NodeID"] != here and (node["Resources"].keys() & {"CPU", "GPU"})
    }


def _try_on(nodes: dict[str, str], errand: NodeCheck) -> tuple[dict[str, NodeReport], dict[str, list[str]]]:
    """What was found on nodes, and why nothing was on others, by the nodes' names."""
    task: Any = ray.remote(_run_node_check)
    names = {}
    for node, name in nodes.items():
        there = NodeAffinitySchedulingStrategy(node, soft=False)
        names[task.options(num_cpus=0, max_retries=0, scheduling_strategy=there).remote(errand)] = name
    ready, silent = ray.wait(list(names), num_returns=len(names), timeout=TIMEOUT_S)
    found: dict[str, NodeReport] = {}
    told = {names[each]: [f"no answer within {TIMEOUT_S:g} s; look at the node, or take it away"] for each in silent}
    for each in ready:
        try:
            found[names[each]] = ray.get(each)
        except ray.exceptions.RayError as error:
            reason = str(error).strip().splitlines()[-1]
            told[names[each]] = [f"the node cannot be tried ({reason}); install the driver's crmuons on it"]
    return found, told


def _run_node_check(errand: NodeCheck) -> NodeReport:
    tokens.receive()
    return node_checks.run_node_check(errand)


def _warn_of_tracking(uri: str, by_node: dict[str, str | None]) -> None:
    """No fault: the run's journal keeps what cannot be sent (docs/tracking.md)."""
    told = {node: [] if reason is None else [reason] for node, reason in by_node.items()}
    for sentence in node_checks.by_node(told):
        logger.warning(
            "the tracking server %s cannot be used %s; the run keeps what it would send, and `crmuons sync` sends it later",
            uri,
            sentence,
        )
