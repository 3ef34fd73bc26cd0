"""Run a function on many items in Ray tasks, and read a task's result."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import islice
from typing import Any, TypeVar

import ray
from ray.exceptions import RayTaskError

Item = TypeVar("Item")
Result = TypeVar("Result")

TASKS_AHEAD_PER_CPU = 2  # One runs and one waits, which keeps every CPU busy. More would fill Ray's queue and memory.


def map_unordered(
    function: Callable[[Item], Result],
    items: Iterable[Item],
    *,
    ahead: int = TASKS_AHEAD_PER_CPU,
    options: Mapping[str, Any] | None = None,
) -> Iterator[Result]:
    """Run `function(item)` in a Ray task for each item, and yield the results in the order in which the tasks finish.

    Args:
        function: it goes to the object store once, with the arguments that a `functools.partial` binds.
        items: a new item is taken when a task finishes, so that few items are in memory.
        ahead: tasks per CPU of the cluster that run or wait at a time.
        options: Ray's options of each task, such as `num_gpus` or its `name` in the dashboard.

    Raises:
        Exception: the error of the first task found to have failed, as `function` raised it.
    """
    # The function is sent once, because its bound arguments, such as a list of files, may be megabytes.
    shared = ray.put(function)
    task: Any = _call.options(**(options or {}))
    waiting = (task.remote(shared, item) for item in items)
    running = list(islice(waiting, tasks_at_once(ahead)))
    while running:
        done, running = ray.wait(running)
        # New tasks start before the results are used, so that no CPU waits for the caller.
        running.extend(islice(waiting, len(done)))
        yield from map(result, done)


def tasks_at_once(ahead: int = TASKS_AHEAD_PER_CPU) -> int:
    """Return how many tasks to submit before the first result is read: `ahead` for each CPU of the cluster."""
    return ahead * max(1, int(ray.cluster_resources().get("CPU", 1)))


def result(reference: "ray.ObjectRef[Result]") -> Result:
    """Wait for a task, and return its result.

    Raises:
        Exception: the task's own error, without the worker's traceback in its message.
    """
    try:
        return ray.get(reference)
    except RayTaskError as error:
        raise error.cause from error


@ray.remote
def _call(function: Callable[[Item], Result], item: Item) -> Result:
    return function(item)
