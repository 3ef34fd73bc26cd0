"""The stager of a rank that reads with Ray: an actor on the rank's node, which the read tasks on that node notify."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from crmuons.data.staged_reading import ReadNotifier
from crmuons.ray_backend import private, tokens
from crmuons.storage.staging.download import Staging
from crmuons.storage.staging.stager import FileUse, Stager


@dataclass(frozen=True)
class RemoteStager:
    """Forward notifications to the stager on this node. A task on another node stages its files by itself there.

    Attributes:
        actor: handle of a _StagerActor.
        node: id of the actor's node.
    """

    actor: Any
    node: str

    def ahead(self, window: Sequence[FileUse]) -> None:
        """See `Stager.ahead`."""
        # Files are staged where they are read: another node's disk is of no use to this task.
        if _this_node() == self.node:
            self.actor.ahead.remote(window)

    def used(self, use: FileUse, staged: bool) -> bool:
        """See `Stager.used`."""
        if _this_node() != self.node:
            return False
        # Do not wait for the answer: a read must not wait for a message about itself.
        self.actor.used.remote(use, staged)
        return True


class _StagerActor(Stager):
    """A stager in its own process, which receives the driver's tokens."""

    def __init__(self, staging: Staging) -> None:
        tokens.receive()
        super().__init__(staging)


@contextmanager
def actor(staging: Staging) -> Iterator[RemoteStager]:
    """Run a stager on this node for the duration of the block. Ray restarts it if it dies."""
    this_node = NodeAffinitySchedulingStrategy(_this_node(), soft=False)
    stager: Any = ray.remote(_StagerActor)
    # Ray restarts it without limit. Its state is in the directory, and readers download files themselves meanwhile.
    remote = stager.options(num_cpus=0, max_restarts=-1, scheduling_strategy=this_node).remote(staging)
    try:
        yield RemoteStager(remote, _this_node())
    finally:
        ray.kill(remote)


def where_to_read(staging: Staging | None) -> dict[str, Any]:
    """Return Ray's options of a read task: with a stager, its node, or another node while that one has no free CPU."""
    helper = None if staging is None else staging.helper
    if not isinstance(helper, ReadNotifier) or not isinstance(helper.stager, RemoteStager):
        return {}
    return {"scheduling_strategy": private.node_or_any_free(helper.stager.node)}


def _this_node() -> str:
    return str(ray.get_runtime_context().get_node_id())
