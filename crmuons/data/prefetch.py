"""Run iterators ahead in threads, so that an entry is ready when it is needed."""

import queue
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from itertools import islice
from typing import Generic, TypeVar

CLOSE_S = 1.0  # `close` then abandons a thread whose source hangs. It is a daemon, so the process can end.

T = TypeVar("T")
Entry = TypeVar("Entry")


class _Ended:
    """The last entry in the queue: the source is exhausted, or failed with an error."""

    def __init__(self, error: Exception | None) -> None:
        self.error = error


class Prefetcher(Iterator[T], Generic[T]):
    """Iterate over a source that a thread reads up to `depth` entries ahead.

    An error of the source is re-raised by the `next()` that would have returned the failed entry, and by all
    later ones.
    """

    def __init__(self, source: Iterable[T], depth: int, name: str) -> None:
        self._ready: queue.Queue[T | _Ended] = queue.Queue(depth)
        self._closed = threading.Event()
        self._ended: _Ended | None = None
        self._held: list[T | _Ended] = []  # The entry that `wait` took out of the queue, for __next__.
        self._thread = threading.Thread(target=self._run, args=(source,), name=name, daemon=True)
        self._thread.start()

    def __next__(self) -> T:
        """Return the next entry."""
        # If the thread has ended, the queue would stay empty for ever.
        if self._ended is not None:
            entry: T | _Ended = self._ended
        else:
            entry = self._held.pop() if self._held else self._ready.get()
        if not isinstance(entry, _Ended):
            return entry
        self._ended = entry
        if entry.error is not None:
            raise entry.error
        raise StopIteration

    def wait(self, seconds: float) -> bool:
        """Wait at most this time for the next entry; return whether `next` then returns, or raises, at once."""
        if self._ended is None and not self._held:
            try:
                self._held.append(self._ready.get(timeout=seconds))
            except queue.Empty:
                return False
        return True

    def close(self) -> None:
        """End the thread. The source is not read to its end."""
        self._closed.set()
        # This makes room for a thread that waits in `_put`; it then sees at once that it must end.
        while not self._ready.empty():
            self._ready.get_nowait()
        self._thread.join(timeout=CLOSE_S)

    def _run(self, source: Iterable[T]) -> None:
        # The queue carries the end too: the reader cannot see whether the thread lives.
        end = _Ended(None)
        try:
            for entry in source:
                if not self._put(entry):
                    return
        except Exception as error:  # noqa: BLE001 - __next__ re-raises it
            end = _Ended(error)
        self._put(end)

    def _put(self, entry: T | _Ended) -> bool:
        """Wait until the queue has room, and add an entry; return False if the prefetcher was closed first."""
        while not self._closed.is_set():
            try:
                # With a time limit, because an endless put would never see that the prefetcher was closed.
                self._ready.put(entry, timeout=0.5)
            except queue.Full:
                continue
            return True
        return False


def ordered_map(work: Callable[[Entry], T], entries: Iterable[Entry], at_once: int, name: str) -> Iterator[T]:
    """Apply `work` to entries in `at_once` threads, and yield the results in the order of the entries.

    An error is raised in place of the result of its entry. The threads are daemons: unlike those of a
    ThreadPoolExecutor they do not keep the process alive when it wants to end.
    """
    source, pending = iter(entries), deque[Future[T]]()
    tasks: queue.SimpleQueue[tuple[Future[T], Entry] | None] = queue.SimpleQueue()

    def begin(number: int) -> None:
        for entry in islice(source, number):
            pending.append(Future())
            tasks.put((pending[-1], entry))

    def run() -> None:
        while (task := tasks.get()) is not None:
            future, entry = task
            try:
                future.set_result(work(entry))
            except Exception as error:  # noqa: BLE001 - Future.result re-raises it
                future.set_exception(error)

    for _ in range(at_once):
        threading.Thread(target=run, name=name, daemon=True).start()
    try:
        begin(at_once)
        while pending:
            result = pending.popleft().result()
            # Before the yield, so that the threads work while the caller uses the result.
            begin(1)
            yield result
    finally:
        for _ in range(at_once):
            tasks.put(None)
