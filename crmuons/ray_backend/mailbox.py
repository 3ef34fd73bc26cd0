"""An actor on the driver's node that holds what processes of a run tell each other. It imports nothing heavy: it starts with each run."""

from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy


class KeyValueActor:
    """Holds what was told last under each name."""

    def __init__(self) -> None:
        self.told: dict[str, tuple[int, Any]] = {}
        self.version = 0

    def put(self, name: str, content: Any) -> None:
        """Replace what is told under a name."""
        self.version += 1
        self.told[name] = (self.version, content)

    def get(self, name: str) -> Any:
        """What is told under a name, None before anything is."""
        return self.told[name][1] if name in self.told else None

    def changes_since(self, version: int) -> tuple[int, dict[str, Any]]:
        """What was told after a version (0: everything), and the version now."""
        return self.version, {name: content for name, (at, content) in self.told.items() if at > version}


def start_key_value_actor(name: str | None = None) -> Any:
    """A new one, on this node, until it is killed; a name is known in the whole job."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    options: dict[str, Any] = {"num_cpus": 0, "scheduling_strategy": here} | ({"name": name} if name else {})
    remote: Any = ray.remote(KeyValueActor)
    return remote.options(**options).remote()
