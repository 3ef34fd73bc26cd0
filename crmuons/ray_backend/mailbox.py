"""An actor that holds values by name, through which the processes of a run exchange small messages.

The module imports nothing slow, because the actor starts with each run.
"""

from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy


class KeyValueActor:
    """Hold the last value that was put under each name."""

    def __init__(self) -> None:
        # By name: the version of the last put, and the value. Nobody needs older values.
        self.values: dict[str, tuple[int, Any]] = {}
        self.version = 0

    def put(self, name: str, value: Any) -> None:
        """Replace the value under a name."""
        self.version += 1
        self.values[name] = (self.version, value)

    def get(self, name: str) -> Any:
        """Return the value under a name, or None."""
        return self.values[name][1] if name in self.values else None

    def changes_since(self, version: int) -> tuple[int, dict[str, Any]]:
        """Return the current version, and the values that were put after `version` (0: all values)."""
        return self.version, {name: value for name, (at, value) in self.values.items() if at > version}


def start_key_value_actor(name: str | None = None) -> Any:
    """Start a KeyValueActor on this node, and return its handle. The caller kills it.

    Args:
        name: name under which all processes of the job can find the actor.
    """
    # The actor runs on the driver's node, so that it survives the loss or removal of other nodes.
    this_node = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    # It reserves no CPU, because it must start even if the workers have reserved all CPUs.
    options: dict[str, Any] = {"num_cpus": 0, "scheduling_strategy": this_node} | ({"name": name} if name else {})
    remote: Any = ray.remote(KeyValueActor)
    return remote.options(**options).remote()
