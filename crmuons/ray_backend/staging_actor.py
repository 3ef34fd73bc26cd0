"""The stager of a rank that reads with Ray: an actor on the rank's node, to which the read tasks there talk."""

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
    """Tells an actor what is read on its node; a task on another node stages for itself, there.

    Attributes:
        actor: a Stager.
        node: its node.
    """

    actor: Any
    node: str

    def ahead(self, window: Sequence[FileUse]) -> None:
        """See Stager.ahead."""
        if _node() == self.node:
            self.actor.ahead.remote(window)

    def used(self, use: FileUse, staged: bool) -> bool:
        """See Stager.used."""
        if _node() != self.node:
            return False
        self.actor.used.remote(use, staged)
        return True


class _Stager(Stager):
    """A stager in a process of its own, which has the driver's tokens."""

    def __init__(self, staging: Staging) -> None:
        tokens.receive()
        super().__init__(staging)


@contextmanager
def actor(staging: Staging) -> Iterator[RemoteStager]:
    """A stager on this node for as long as the block lasts; one that is killed is started again."""
    here = NodeAffinitySchedulingStrategy(_node(), soft=False)
    stager: Any = ray.remote(_Stager)
    remote = stager.options(num_cpus=0, max_restarts=-1, scheduling_strategy=here).remote(staging)
    try:
        yield RemoteStager(remote, _node())
    finally:
        ray.kill(remote)


def where_to_read(staging: Staging | None) -> dict[str, Any]:
    """Ray's arguments for a read task: where files are staged, the stager's node, and another where it has no CPU left."""
    helper = None if staging is None else staging.helper
    if not isinstance(helper, ReadNotifier) or not isinstance(helper.stager, RemoteStager):
        return {}
    return {"scheduling_strategy": private.node_or_any_free(helper.stager.node)}


def _node() -> str:
    return str(ray.get_runtime_context().get_node_id())
