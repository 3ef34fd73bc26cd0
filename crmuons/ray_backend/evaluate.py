"""An evaluation's pieces as Ray tasks. Events stay in the cluster's object store; this process sees ids, primaries and results."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import ray
from ray.exceptions import RayTaskError

from crmuons import allocator
from crmuons.evaluation.tasks import Executor, Future, run
from crmuons.ray_backend import cluster

T = TypeVar("T")

READS_AHEAD_PER_CPU = 2  # Units of files being read; what is read beyond the events wanted is thrown away.


@contextmanager
def on_ray(*, num_cpus: int | None = None) -> Iterator[Executor]:
    """Pieces that run as tasks, on the cluster of RAY_ADDRESS or on one started here with so many CPUs.

    The nodes read the data themselves: its paths and URLs mean the same on all of them.
    """
    with cluster.cluster(num_cpus=num_cpus):
        tasks = _Tasks()
        with tasks.bar:
            yield tasks


class _Tasks(Executor):
    def __init__(self) -> None:
        super().__init__()
        self.ahead = READS_AHEAD_PER_CPU * max(1, int(ray.cluster_resources().get("CPU", 1)))
        self.running: list[ray.ObjectRef[Any]] = []

    def given(self, value: T) -> Future[T]:
        return _Ref(ray.put(value))

    def get(self, later: Future[T]) -> T:
        assert isinstance(later, _Ref)
        while later.ref in self.running:
            done, self.running = ray.wait(self.running)
            self.bar.update(len(done))
        try:
            value: T = ray.get(later.ref)
        except RayTaskError as error:
            raise error.cause from error  # The error itself, without the worker's traceback in its message.
        return value

    def _start(self, function: Callable[..., T], arguments: tuple[Any, ...]) -> Future[T]:
        given = (each.ref if isinstance(each, _Ref) else each for each in arguments)
        task = _run.options(name=getattr(function, "__name__", "piece"))
        reference = task.remote(function, *given)
        self.running.append(reference)
        return _Ref(reference)


class _Ref(Future[T]):
    def __init__(self, ref: "ray.ObjectRef[T]") -> None:
        self.ref = ref


@ray.remote
def _run(function: Callable[..., T], *arguments: Any) -> T:
    allocator.keep_freed_memory()
    return run(function, *arguments)
