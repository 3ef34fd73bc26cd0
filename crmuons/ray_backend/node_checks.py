"""Checks on one node before a run starts there: storage, data, tracking server, versions. They do not need Ray."""

import hashlib
import importlib.metadata
import platform
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import crmuons
from crmuons.runs import location
from crmuons.storage import files
from crmuons.storage.files import File
from crmuons.tracking.health import unreachable_reason

MAX_NAMED = 3  # Number of nodes that a message names if many have the same fault.


@dataclass(frozen=True)
class NodeCheck:
    """What a node must check.

    Attributes:
        storage: the directory or URL of the runs.
        mark: name of a file that the driver made in the directory; None for a URL.
        data: a file of the training data; None if no data are read.
        tracking_uri: the MLflow server or store; None if tracking is off.
    """

    storage: str
    mark: str | None
    data: File | None
    tracking_uri: str | None


class NodeReport(NamedTuple):
    """The result of a check.

    Attributes:
        faults: one sentence for each fault that makes the run impossible.
        versions: name -> version of everything that must be the same on all nodes.
        tracking: why the tracking server cannot be used from the node, None if it can.
    """

    faults: list[str]
    versions: dict[str, str]
    tracking: str | None


def run_node_check(check: NodeCheck) -> NodeReport:
    """Check, on the node of this process, what a worker will need."""
    # Report all faults and not only the first, so that the user can mend the cluster in one round.
    faults = [*_storage_faults(check), *_data_faults(check.data)]
    return NodeReport(
        faults, versions(), None if check.tracking_uri is None else unreachable_reason(check.tracking_uri)
    )


@contextmanager
def marker_file(storage: Path) -> Iterator[str]:
    """Keep a marker in the directory of the runs, by which other nodes recognise it; yield its name.

    The directory is made if it does not exist.

    Raises:
        OSError: if it cannot be written.
    """
    # A missing permission is reported here, before any directory is made.
    files.check_writable(str(storage))
    storage.mkdir(parents=True, exist_ok=True)
    # The name is unique, so a directory with the same path on another disk does not contain it.
    mark = storage / f".preflight-{uuid.uuid4().hex}"
    mark.touch()
    try:
        yield mark.name
    finally:
        mark.unlink()


def versions() -> dict[str, str]:
    """Return name -> version of everything that must be the same on all nodes, with a digest of crmuons' own source.

    A cluster may mix torch's builds for CPU and CUDA. They count as the same version.
    """
    installed = {name: importlib.metadata.version(name) for name in ("ray", "torch", "crmuons")}
    return {
        "Python": platform.python_version(),
        "Ray": installed["ray"],
        # The part after the plus names the build, such as cpu or cu126.
        "torch": installed["torch"].partition("+")[0],
        "crmuons": f"{installed['crmuons']} (source {_source_digest()})",
    }


def compare_versions(driver: Mapping[str, str], node: Mapping[str, str]) -> list[str]:
    """Return a sentence for each version that differs from the driver's."""
    return [
        f"{name} is {node.get(name, 'missing')}, the driver's is {version}; install the same on all nodes"
        for name, version in driver.items()
        if node.get(name) != version
    ]


def by_node(faults: Mapping[str, Sequence[str]]) -> list[str]:
    """Return each fault once, with the nodes that have it.

    Args:
        faults: node -> its faults.
    """
    # Grouped by fault, so that many nodes without a mount give one sentence.
    nodes: dict[str, list[str]] = {}
    for node, of_node in faults.items():
        for fault in of_node:
            nodes.setdefault(fault, []).append(node)
    return [f"on {_names(names)}: {fault}" for fault, names in nodes.items()]


def check_fit(what: str, number: int, per_process: Mapping[str, float], nodes: Sequence[Mapping[str, float]]) -> None:
    """Check that processes fit on the nodes. A cluster may have enough in total and still have no node for a process.

    Args:
        what: the processes' name in the message.
        number: how many must run at once.
        per_process: resources of a process, all on one node.
        nodes: resources of each node.

    Raises:
        ValueError: if fewer fit; Ray would wait for ever.
    """
    # A fraction of a GPU counts too: several trials share one.
    needed = {kind: amount for kind, amount in per_process.items() if amount > 0}
    if not needed:
        return
    # Ray counts in 1/10000, so an amount that a division rounded up still fits.
    room = sum(min(int(node.get(kind, 0.0) / amount + 1e-4) for kind, amount in needed.items()) for node in nodes)
    if number > room:
        amounts = " and ".join(f"{amount:g} {kind}" for kind, amount in needed.items())
        largest = " and ".join(f"{max(node.get(kind, 0.0) for node in nodes):g} {kind}" for kind in needed)
        msg = (
            f"{number} {what} of {amounts} each do not fit: the nodes have at most {largest} each and room for {room} "
            f"{what}; ask for fewer {what}, or for less per process"
        )
        raise ValueError(msg)


def _storage_faults(check: NodeCheck) -> Iterator[str]:
    try:
        if check.mark is None:
            files.check_writable(check.storage)
            files.check_writable(str(location.caches()))  # The node keeps its own copy of the run here.
            return
        mark = Path(check.storage, check.mark)
        if not mark.is_file():
            yield (
                f"run.storage_path = {check.storage} is not the driver's directory; give a directory that all nodes share, "
                "or a URL"
            )
            return
        own = mark.with_name(f"{mark.name}-{uuid.uuid4().hex}")
        own.write_bytes(b"0")
        own.unlink()
    except OSError as error:
        yield f"run.storage_path = {check.storage} cannot be written ({error}); give a directory that every node can write to"


def _data_faults(file: File | None) -> Iterator[str]:
    if file is None:
        return
    try:
        with files.open_file(file.url, file.size) as opened:
            opened.read(1)
    except OSError as error:
        yield f"{file.url} of data.train cannot be read ({error}); put the data where every node can read them, or give a URL"


def _source_digest() -> str:
    """Return a digest of crmuons' Python files, 8 hexadecimal digits: checkouts of one version may differ."""
    folder = Path(crmuons.__file__).parent
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*.py")):
        digest.update(path.relative_to(folder).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:8]


def _names(nodes: Sequence[str]) -> str:
    more = len(nodes) - MAX_NAMED
    named = ", ".join(nodes[:MAX_NAMED])
    return f"node{'s' * (len(nodes) > 1)} {named}" + (f" and {more} more" if more > 0 else "")
