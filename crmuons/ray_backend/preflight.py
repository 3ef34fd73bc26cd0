"""Check the cluster before a run or a sweep starts, and report all faults that would stop it later in one error."""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any, TypeVar

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from crmuons.ray_backend import node_checks, tokens
from crmuons.ray_backend.node_checks import NodeCheck, NodeReport
from crmuons.runs.location import RunStorage
from crmuons.storage.files import File
from crmuons.tracking import health

TIMEOUT_S = 180.0  # Enough for a node that starts its first process and imports torch and MLflow from a slow disk.

Planned = TypeVar("Planned")


def check_cluster(
    storage: RunStorage, tracking_uri: str | None, data: Sequence[File], plan: Callable[[], Planned]
) -> Planned:
    """Check that the cluster can execute a run: its resources, and each node where a worker may run.

    The driver's own node is not checked, because the driver has already read and written there. So a cluster of one node
    starts no task.

    Args:
        storage: storage of the runs. The caller has shared the tokens for its URL.
        tracking_uri: the MLflow server or store; None if tracking is off.
        data: the training files; each node opens the first one.
        plan: function that divides the cluster's resources.

    Returns:
        The result of `plan`.

    Raises:
        ValueError: lists all faults, one sentence per line.
        OSError: if the driver cannot write into the directory of the runs.
    """
    # The nodes are checked before the plan is made. The plan may fail too, and the user gets all faults in one message.
    faults = _faults_of_nodes(storage, tracking_uri, data)
    try:
        planned = plan()
    except ValueError as error:
        raise ValueError("\n".join([str(error), *faults])) from error
    if faults:
        raise ValueError("\n".join(faults))
    return planned


def _faults_of_nodes(storage: RunStorage, uri: str | None, data: Sequence[File]) -> list[str]:
    # The driver's own node has read and written already, so a cluster of one node costs nothing.
    nodes = _other_nodes()
    if not nodes:
        return []
    with nullcontext() if storage.url is not None else node_checks.marker_file(storage.directory) as mark:
        check = NodeCheck(storage.url or str(storage.directory), mark, data[0] if data else None, uri)
        # The first file is enough: if a node can open it, the mount, the token and the network work.
        reports, faults = _run_on(nodes, check)
    driver_versions = node_checks.versions()
    for node, report in reports.items():
        faults[node] = [*report.faults, *node_checks.compare_versions(driver_versions, report.versions)]
    if uri is not None:
        _warn_of_tracking(uri, reports)
    return node_checks.by_node(faults)


def _other_nodes() -> dict[str, str]:
    """Return the names of the other nodes where a worker may run, by node id."""
    this_node = ray.get_runtime_context().get_node_id()
    return {
        node["NodeID"]: f"{node['NodeManagerHostname']} ({node['NodeName']})"
        for node in ray.nodes()
        # A head node without CPUs runs no worker, so it needs no data and no storage.
        if node["Alive"] and node["NodeID"] != this_node and (node["Resources"].keys() & {"CPU", "GPU"})
    }


def _run_on(nodes: dict[str, str], check: NodeCheck) -> tuple[dict[str, NodeReport], dict[str, list[str]]]:
    """Run the check on nodes; return the reports, and the faults of nodes without a report, by the nodes' names."""
    task: Any = ray.remote(_run_node_check)
    names = {}
    for node, name in nodes.items():
        strategy = NodeAffinitySchedulingStrategy(node, soft=False)
        # No CPU, so that a busy cluster answers too. No retry, because a node that dies has failed the check.
        names[task.options(num_cpus=0, max_retries=0, scheduling_strategy=strategy).remote(check)] = name
    # Wait for all at once, because the nodes start their processes at the same time.
    ready, silent = ray.wait(list(names), num_returns=len(names), timeout=TIMEOUT_S)
    reports: dict[str, NodeReport] = {}
    faults = {names[ref]: [f"no answer within {TIMEOUT_S:g} s; check the node, or remove it"] for ref in silent}
    for ref in ready:
        try:
            reports[names[ref]] = ray.get(ref)
        except ray.exceptions.RayError as error:
            reason = str(error).strip().splitlines()[-1]
            faults[names[ref]] = [f"the check cannot run on the node ({reason}); install the driver's crmuons on it"]
    return reports, faults


def _run_node_check(check: NodeCheck) -> NodeReport:
    tokens.receive()
    return node_checks.run_node_check(check)


def _warn_of_tracking(uri: str, reports: dict[str, NodeReport]) -> None:
    """Log why nodes cannot reach the server."""
    reasons = {node: [] if report.tracking is None else [report.tracking] for node, report in reports.items()}
    for sentence in node_checks.by_node(reasons):
        health.warn(uri, sentence)
