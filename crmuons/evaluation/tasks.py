"""The pieces that an evaluation is made of, and where they run: here, one after the other, or on a cluster (ray_evaluate).

A piece is a function of its arguments, its seed among them, and runs on one thread: the last bit of a sum depends on the number of
threads. So an evaluation gives the same numbers wherever its pieces run.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Generic, TypeVar

from threadpoolctl import threadpool_limits

from crmuons.progress import progress

T = TypeVar("T")


class Future(Generic[T]):
    """A value that is still to be made, or lies where the pieces run."""


class Executor(ABC):
    """Runs pieces. What `later` gives may be an argument of other pieces; whoever wants the value here asks with `get`.

    Attributes:
        ahead: how many pieces it is worth asking for before their results are looked at.
    """

    ahead: int

    def __init__(self) -> None:
        self.asked = 0
        self.bar = progress(0, unit="pieces", what="evaluate")

    def later(self, function: Callable[..., T], *arguments: Any) -> Future[T]:
        """The result of a function; later values among the arguments reach it as values."""
        self.asked += 1
        self.bar.total = self.asked
        return self._start(function, arguments)

    @abstractmethod
    def given(self, value: T) -> Future[T]:
        """A value that several pieces need, brought to where they run once."""

    @abstractmethod
    def get(self, later: Future[T]) -> T:
        """The value; waits for it, or makes it."""

    @abstractmethod
    def _start(self, function: Callable[..., T], arguments: tuple[Any, ...]) -> Future[T]: ...


def run(function: Callable[..., T], *arguments: Any) -> T:
    """Run one piece on one thread.

    With more, each of a tree's thousands of small parallel loops waits for the slowest thread, and on a machine that is busy
    otherwise (2 cores, load 5) a fit of 3 s took 100 s.
    """
    with threadpool_limits(limits=1):
        return function(*arguments)


@contextmanager
def in_process() -> Iterator[Executor]:
    """Pieces that run in this process, each when its value is asked for."""
    pieces = _InProcess()
    with pieces.bar:
        yield pieces


class _InProcess(Executor):
    ahead = 1

    def given(self, value: T) -> Future[T]:
        return _Here(value)

    def get(self, later: Future[T]) -> T:
        assert isinstance(later, _Here)
        if later.work is not None:
            function, arguments = later.work
            later.value = run(function, *(self.get(each) if isinstance(each, Future) else each for each in arguments))
            later.work = None  # What it was made from can go.
            self.bar.update()
        value: T = later.value
        return value

    def _start(self, function: Callable[..., T], arguments: tuple[Any, ...]) -> Future[T]:
        return _Here(None, (function, arguments))


class _Here(Future[T]):
    def __init__(self, value: Any, work: tuple[Callable[..., T], tuple[Any, ...]] | None = None) -> None:
        self.value, self.work = value, work
