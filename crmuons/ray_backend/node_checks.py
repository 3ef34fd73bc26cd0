"""What is tried on a node before a run starts there: storage, data, tracking server, versions. Ray is not needed."""

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

NAMED = 3  # Nodes that a sentence names, of many with the same fault.


@dataclass(frozen=True)
class NodeCheck:
    """What a node is to try.

    Attributes:
        storage: the directory or URL of the runs.
        mark: a file that the driver made in the directory; None for a URL.
        data: a file of the training data; None if none is to be read.
        tracking_uri: where the run will be sent; None if nowhere.
    """

    storage: str
    mark: str | None
    data: File | None
    tracking_uri: str | None


class NodeReport(NamedTuple):
    """What came of it.

    Attributes:
        faults: sentences; with any of them the run cannot work.
        versions: of what has to be the same everywhere, by its name.
        tracking: why the tracking server cannot be used from the node, None if it can.
    """

    faults: list[str]
    versions: dict[str, str]
    tracking: str | None


def run_node_check(errand: NodeCheck) -> NodeReport:
    """Try, on the node of this process, what a worker will do."""
    faults = [*_storage_faults(errand), *_data_faults(errand.data)]
    return NodeReport(
        faults, versions(), None if errand.tracking_uri is None else unreachable_reason(errand.tracking_uri)
    )


@contextmanager
def marker_file(storage: Path) -> Iterator[str]:
    """Have a file in the directory of the runs, which is made, by which other nodes know it; gives the file's name.

    Raises:
        OSError: if it cannot be written.
    """
    files.check_writable(str(storage))
    storage.mkdir(parents=True, exist_ok=True)
    mark = storage / f".preflight-{uuid.uuid4().hex}"
    mark.touch()
    try:
        yield mark.name
    finally:
        mark.unlink()


def versions() -> dict[str, str]:
    """What has to be the same on all nodes: versions, and a digest of crmuons' own source.

    torch's builds for CPU and CUDA, which a cluster may mix, count as the same.
    """
    installed = {name: importlib.metadata.version(name) for name in ("ray", "torch", "crmuons")}
    return {
        "Python": platform.python_version(),
        "Ray": installed["ray"],
        "torch": installed["torch"].partition("+")[0],
        "crmuons": f"{installed['crmuons']} (source {_source_digest()})",
    }


def compare_versions(ours: Mapping[str, str], theirs: Mapping[str, str]) -> list[str]:
    """Sentences about what differs from the driver."""
    return [
        f"{name} is {theirs.get(name, 'missing')}, the driver's is {version}; install the same on all nodes"
        for name, version in ours.items()
        if theirs.get(name) != version
    ]


def by_node(told: Mapping[str, Sequence[str]]) -> list[str]:
    """Faults with the nodes that have them, each fault once.

    Args:
        told: faults by node.
    """
    nodes: dict[str, list[str]] = {}
    for node, faults in told.items():
        for fault in faults:
            nodes.setdefault(fault, []).append(node)
    return [f"on {_names(having)}: {fault}" for fault, having in nodes.items()]


def check_fit(what: str, number: int, each: Mapping[str, float], nodes: Sequence[Mapping[str, float]]) -> None:
    """Refuse processes that the nodes have no room for, whatever the cluster has in sum: Ray would wait for ever.

    Args:
        what: the processes' name in the message.
        number: how many have to run at once.
        each: what one takes, of a single node.
        nodes: what each node has.

    Raises:
        ValueError: if fewer fit.
    """
    taken = {kind: amount for kind, amount in each.items() if amount > 0}
    if not taken:
        return
    # Ray counts in 1/10000: what is a hair too much after a division fits.
    room = sum(min(int(node.get(kind, 0.0) / amount + 1e-4) for kind, amount in taken.items()) for node in nodes)
    if number > room:
        needs = " and ".join(f"{amount:g} {kind}" for kind, amount in taken.items())
        largest = " and ".join(f"{max(node.get(kind, 0.0) for node in nodes):g} {kind}" for kind in taken)
        msg = (
            f"{number} {what} of {needs} each do not fit: the nodes, none with more than {largest}, have room for {room}; "
            f"ask for fewer {what}, or for less of each"
        )
        raise ValueError(msg)


def _storage_faults(errand: NodeCheck) -> Iterator[str]:
    try:
        if errand.mark is None:
            files.check_writable(errand.storage)
            files.check_writable(str(location.caches()))  # The node's own copy of the run is there.
            return
        mark = Path(errand.storage, errand.mark)
        if not mark.is_file():
            yield (
                f"run.storage_path = {errand.storage} is not the same directory as the driver's; give one that all nodes share, "
                "or a URL"
            )
            return
        own = mark.with_name(f"{mark.name}-{uuid.uuid4().hex}")
        own.write_bytes(b"0")
        own.unlink()
    except OSError as error:
        yield f"run.storage_path = {errand.storage} cannot be written ({error}); give a place that every node may write to"


def _data_faults(file: File | None) -> Iterator[str]:
    if file is None:
        return
    try:
        with files.open_file(file.url, file.size) as opened:
            opened.read(1)
    except OSError as error:
        yield f"{file.url} of data.train cannot be read ({error}); put the data where every node reads them, or give a URL"


def _source_digest() -> str:
    """Eight hexadecimal digits of crmuons' Python files: checkouts differ under one version."""
    folder = Path(crmuons.__file__).parent
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*.py")):
        digest.update(path.relative_to(folder).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:8]


def _names(nodes: Sequence[str]) -> str:
    more = len(nodes) - NAMED
    named = ", ".join(nodes[:NAMED])
    return f"node{'s' * (len(nodes) > 1)} {named}" + (f" and {more} more" if more > 0 else "")
