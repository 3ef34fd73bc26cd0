"""Run an evaluation's tasks on Ray. Events stay in the object store; the driver sees only headers and results."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import ray

from crmuons.evaluation.tasks import Executor, Future, run
from crmuons.machine import keep_freed_memory
from crmuons.ray_backend import cluster, tasks

T = TypeVar("T")


@contextmanager
def on_ray(*, num_cpus: int | None = None) -> Iterator[Executor]:
    """Yield an executor whose tasks run on the cluster of RAY_ADDRESS, or on a local one started with `num_cpus` CPUs.

    The nodes read the data themselves, so its paths and URLs must mean the same on all of them.
    """
    with cluster.cluster(num_cpus=num_cpus):
        executor = _RayExecutor()
        with executor.bar:
            yield executor


class _RayExecutor(Executor):
    """Submit every task at once. `map_unordered` does not fit, because a task may wait for the results of others."""

    def __init__(self) -> None:
        super().__init__()
        # Events that are read beyond the requested number are thrown away, so only a few reads run ahead.
        self.reads_ahead = tasks.tasks_at_once()
        self.running: list[ray.ObjectRef[Any]] = []

    def put(self, value: T) -> Future[T]:
        return _RayFuture(ray.put(value))

    def get(self, future: Future[T]) -> T:
        assert isinstance(future, _RayFuture)
        while future.ref in self.running:
            done, self.running = ray.wait(self.running)
            self.bar.update(len(done))
        value: T = tasks.result(future.ref)
        return value

    def _submit(self, function: Callable[..., T], arguments: tuple[Any, ...]) -> Future[T]:
        values = (argument.ref if isinstance(argument, _RayFuture) else argument for argument in arguments)
        task = _run.options(name=getattr(function, "__name__", "task"))
        reference = task.remote(function, *values)
        self.running.append(reference)
        return _RayFuture(reference)


class _RayFuture(Future[T]):
    def __init__(self, ref: "ray.ObjectRef[T]") -> None:
        self.ref = ref


@ray.remote
def _run(function: Callable[..., T], *arguments: Any) -> T:
    keep_freed_memory()
    return run(function, *arguments)
