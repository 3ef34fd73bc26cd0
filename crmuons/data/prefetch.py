"""Iterators that threads run ahead of, so that what they wait for is ready when it is asked for."""

import queue
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from itertools import islice
from typing import Generic, TypeVar

T = TypeVar("T")
Given = TypeVar("Given")


class _Ended:
    """The last entry: the source is exhausted, or failed with an error."""

    def __init__(self, error: Exception | None) -> None:
        self.error = error


class Prefetcher(Iterator[T], Generic[T]):
    """The entries of a source, which a thread asks for up to `depth` of them before they are wanted.

    An error of the source is raised where the entry was due that it took the place of.
    """

    def __init__(self, source: Iterable[T], depth: int, name: str) -> None:
        self._ready: queue.Queue[T | _Ended] = queue.Queue(depth)
        self._closed = threading.Event()
        self._ended: _Ended | None = None
        self._thread = threading.Thread(target=self._run, args=(source,), name=name, daemon=True)
        self._thread.start()

    def __next__(self) -> T:
        """The next entry."""
        entry = self._ready.get() if self._ended is None else self._ended
        if not isinstance(entry, _Ended):
            return entry
        self._ended = entry
        if entry.error is not None:
            raise entry.error
        raise StopIteration

    def close(self) -> None:
        """End the thread, which leaves the source where it is."""
        self._closed.set()
        while not self._ready.empty():
            self._ready.get_nowait()
        self._thread.join(timeout=10)

    def _run(self, source: Iterable[T]) -> None:
        end = _Ended(None)
        try:
            for entry in source:
                if not self._put(entry):
                    return
        except Exception as error:  # noqa: BLE001 - handed to whoever asks next, which raises it
            end = _Ended(error)
        self._put(end)

    def _put(self, entry: T | _Ended) -> bool:
        """Wait for room; whether there was any before the end."""
        while not self._closed.is_set():
            try:
                self._ready.put(entry, timeout=0.5)
            except queue.Full:
                continue
            return True
        return False


def ordered_map(work: Callable[[Given], T], entries: Iterable[Given], at_once: int, name: str) -> Iterator[T]:
    """What work makes of each entry, in the entries' order, with so many of them in hand at once.

    An error of the work is raised where its result was due. The threads do not keep the process from ending, as those of a
    ThreadPoolExecutor would.
    """
    source, due = iter(entries), deque[Future[T]]()
    waiting: queue.SimpleQueue[tuple[Future[T], Given] | None] = queue.SimpleQueue()

    def begin(number: int) -> None:
        for entry in islice(source, number):
            due.append(Future())
            waiting.put((due[-1], entry))

    def run() -> None:
        while (task := waiting.get()) is not None:
            future, entry = task
            try:
                future.set_result(work(entry))
            except Exception as error:  # noqa: BLE001 - raised where the result is due
                future.set_exception(error)

    for _ in range(at_once):
        threading.Thread(target=run, name=name, daemon=True).start()
    try:
        begin(at_once)
        while due:
            result = due.popleft().result()
            begin(1)
            yield result
    finally:
        for _ in range(at_once):
            waiting.put(None)
