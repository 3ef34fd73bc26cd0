"""The executor that runs an evaluation's tasks, in this process or on a Ray cluster (`crmuons.ray_backend.evaluate`).

A task is a function of its arguments. If it draws random numbers, its seed is an argument. Each task runs on one
thread, because the last bit of a sum depends on the number of threads. An evaluation therefore gives the same numbers
on every executor.
"""

import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any, Generic, TypeVar

from threadpoolctl import ThreadpoolController

from crmuons.progress import progress

T = TypeVar("T")


class Future(Generic[T]):
    """The result of a task, which the executor holds and may still have to compute."""


class Executor(ABC):
    """Run tasks. A task may take the futures of other tasks as arguments.

    Attributes:
        reads_ahead: number of file slices to submit for reading before the first of them is used.
    """

    reads_ahead: int

    def __init__(self) -> None:
        self.submitted = 0
        self.bar = progress(0, unit="tasks", what="evaluate")

    def submit(self, function: Callable[..., T], *arguments: Any) -> Future[T]:
        """Return the future of a function's result; futures among the arguments reach the function as values."""
        self.submitted += 1
        self.bar.total = self.submitted
        return self._submit(function, arguments)

    @abstractmethod
    def put(self, value: T) -> Future[T]:
        """Send a value that several tasks need to the place where they run, once."""

    @abstractmethod
    def get(self, future: Future[T]) -> T:
        """Return the value of a future; wait for it or compute it first."""

    @abstractmethod
    def _submit(self, function: Callable[..., T], arguments: tuple[Any, ...]) -> Future[T]: ...


def run(function: Callable[..., T], *arguments: Any) -> T:
    """Run one task on one thread.

    A tree fit on several threads has thousands of small parallel loops, and each waits for the slowest thread. On a
    busy machine (2 cores, load 5) such a fit took 100 s instead of 3 s.
    """
    with _thread_pools(len(sys.modules)).limit(limits=1):
        return function(*arguments)


@lru_cache(maxsize=1)
def _thread_pools(num_modules: int) -> ThreadpoolController:
    """Return the thread pools of this process, which take 7 ms to find; a further module may bring another one."""
    del num_modules
    return ThreadpoolController()


@contextmanager
def in_process() -> Iterator[Executor]:
    """Yield an executor that runs each task in this process when its value is asked for."""
    executor = _LocalExecutor()
    with executor.bar:
        yield executor


class _LocalExecutor(Executor):
    reads_ahead = 1

    def put(self, value: T) -> Future[T]:
        return _LocalFuture(value)

    def get(self, future: Future[T]) -> T:
        assert isinstance(future, _LocalFuture)
        if future.work is not None:
            function, arguments = future.work
            values = (self.get(argument) if isinstance(argument, Future) else argument for argument in arguments)
            future.value = run(function, *values)
            future.work = None  # Frees the arguments.
            self.bar.total = max(self.submitted, self.bar.n + 1)  # A task may be from an earlier executor.
            self.bar.update()
        value: T = future.value
        return value

    def _submit(self, function: Callable[..., T], arguments: tuple[Any, ...]) -> Future[T]:
        return _LocalFuture(None, (function, arguments))


class _LocalFuture(Future[T]):
    def __init__(self, value: Any, work: tuple[Callable[..., T], tuple[Any, ...]] | None = None) -> None:
        self.value, self.work = value, work
