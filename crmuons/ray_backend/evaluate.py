"""The tasks of an evaluation on Ray. Events stay in the object store; this process holds ids, primaries and results."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import ray

from crmuons import allocator
from crmuons.evaluation.tasks import Executor, Future, run
from crmuons.ray_backend import cluster, tasks

T = TypeVar("T")


@contextmanager
def on_ray(*, num_cpus: int | None = None) -> Iterator[Executor]:
    """Yield an executor that runs tasks on the cluster at RAY_ADDRESS, or on one that is started here.

    The nodes read the data themselves: its paths and URLs must mean the same on all of them.

    Args:
        num_cpus: CPUs of a cluster that is started here; None for all CPUs of the machine.
    """
    with cluster.cluster(num_cpus=num_cpus):
        executor = _RayExecutor()
        with executor.bar:
            yield executor


class _RayExecutor(Executor):
    """Submits every task at once: a task may wait for the results of others, so `map_unordered` does not fit."""

    def __init__(self) -> None:
        super().__init__()
        self.ahead = tasks.tasks_at_once()  # Mostly reads: what is read beyond the wanted events is discarded.
        self.running: list[ray.ObjectRef[Any]] = []

    def given(self, value: T) -> Future[T]:
        return _Ref(ray.put(value))

    def get(self, later: Future[T]) -> T:
        assert isinstance(later, _Ref)
        while later.ref in self.running:
            done, self.running = ray.wait(self.running)
            self.bar.update(len(done))
        value: T = tasks.result(later.ref)
        return value

    def _start(self, function: Callable[..., T], arguments: tuple[Any, ...]) -> Future[T]:
        values = (argument.ref if isinstance(argument, _Ref) else argument for argument in arguments)
        task = _run.options(name=getattr(function, "__name__", "piece"))
        reference = task.remote(function, *values)
        self.running.append(reference)
        return _Ref(reference)


class _Ref(Future[T]):
    def __init__(self, ref: "ray.ObjectRef[T]") -> None:
        self.ref = ref


@ray.remote
def _run(function: Callable[..., T], *arguments: Any) -> T:
    allocator.keep_freed_memory()
    return run(function, *arguments)
