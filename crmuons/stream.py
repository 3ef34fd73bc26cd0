"""The endless stream of batches that one rank trains on, and its position, from which it can be continued exactly."""

import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from crmuons import config, reader
from crmuons.batch import EventBatch
from crmuons.plan import Item, Plan
from crmuons.reader import Piece, Selection, Tally

Read = Callable[[Iterator[Item], Selection], Iterator[Piece]]
MAX_EMPTY_ITEMS = 1000  # So many segments without an event: the data hold none of this split.


def read_here(items: Iterator[Item], selection: Selection) -> Iterator[Piece]:
    """Read items in this process; ray_data.read_with_ray does the same in Ray tasks."""
    for item in items:
        tally, pieces = reader.read_item(item, selection)
        yield tally
        yield from pieces


def training_selection(data: config.Data, run_directory: str | None) -> Selection:
    """The events to train on."""
    caps = [cap for cap in (data.max_muons_per_event, data.max_muons_per_batch) if cap is not None]
    return Selection(
        split="train",
        # Where validation data are given, every shower of the training files may be trained on.
        validation_share=0.0 if data.validation else data.validation_share,
        test_share=data.test_share,
        vertical_depth=data.depth == "vertical",
        max_muons=min(caps, default=None),
        quarantine=None if run_directory is None else f"{run_directory}/quarantine",
        outliers=None if run_directory is None else f"{run_directory}/outliers",
    )


class Stream:
    """Batches without end, made ready in a thread.

    Attributes:
        position: number of the plan's item being read, and the events taken from it, up to the batch given last.
        tally: what became of the rows read up to there.
        num_events, num_muons: given so far by this object.
        seconds_waited: time that `next` spent waiting for a batch.
    """

    def __init__(
        self,
        plan: Plan,
        rank: int,
        *,
        position: tuple[int, int] = (0, 0),
        tally: Tally | None = None,
        selection: Selection,
        data: config.Data,
        events_per_batch: int,
        read: Read = read_here,
    ) -> None:
        self.plan, self.rank, self.position = plan, rank, position
        self.tally = Tally() if tally is None else tally
        self.num_events = self.num_muons = 0
        self.seconds_waited = 0.0
        self._limit = data.max_quarantined_share
        self._quarantine = selection.quarantine
        self._ready: queue.Queue[tuple[EventBatch, tuple[int, int], Tally] | BaseException] = queue.Queue(
            data.prefetch_batches
        )
        self._closed = threading.Event()
        pieces = read(self._items(position), selection)
        batches = self._batches(pieces, events_per_batch, data.max_muons_per_batch)
        self._thread = threading.Thread(target=self._fill, args=(batches,), name="stream", daemon=True)
        self._thread.start()

    def __iter__(self) -> "Stream":
        return self

    def __next__(self) -> EventBatch:
        """The next batch; raises what went wrong in reading it."""
        begin = time.perf_counter()
        ready = self._ready.get()
        self.seconds_waited += time.perf_counter() - begin
        if isinstance(ready, BaseException):
            raise ready
        batch, self.position, self.tally = ready
        self.num_events += len(batch)
        self.num_muons += batch.num_muons
        return batch

    def close(self) -> None:
        """Stop reading ahead."""
        self._closed.set()
        while not self._ready.empty():
            self._ready.get_nowait()
        self._thread.join(timeout=10)

    def _items(self, position: tuple[int, int]) -> Iterator[Item]:
        number, taken = position
        for i, item in enumerate(self.plan.items(self.rank)):
            if i == number:
                yield Item(item.epoch, item.segment, item.start + taken, item.seed, item.units)
            elif i > number:
                yield item

    def _batches(
        self, pieces: Iterator[Piece], events: int, muons: int | None
    ) -> Iterator[tuple[EventBatch, tuple[int, int], Tally]]:
        """Cut pieces into batches of `events` events, fewer where these have more than `muons` muons."""
        number, taken = self.position[0] - 1, self.position[1]
        tally, empty_items = self.tally, 0
        pool: EventBatch | None = None
        marks: deque[tuple[int, int, int, Tally]] = deque()  # Events in the pool: how many, item, taken before, tally.
        for piece in pieces:
            if isinstance(piece, Tally):
                tally += piece
                number, taken = number + 1, taken if number + 1 == self.position[0] else 0
                empty_items += 1
                self._check(tally, empty_items)
                continue
            empty_items = 0
            batch = EventBatch.from_arrays(piece)
            marks.append((len(batch), number, taken, tally))
            taken += len(batch)
            pool = batch if pool is None else EventBatch.concat([pool, batch])
            start = 0
            while (stop := _cut(pool, start, events, muons)) is not None:
                position, at = _advance(marks, stop - start)
                yield pool.slice(start, stop), position, at
                start = stop
            pool = pool.slice(start, len(pool))

    def _check(self, tally: Tally, empty_items: int) -> None:
        if tally.quarantined > self._limit * tally.rows:
            msg = (
                f"{tally.quarantined} of {tally.rows} rows cannot be used, more than data.max_quarantined_share = "
                f"{self._limit:g}; the rows and the reasons are in {self._quarantine}"
            )
            raise ValueError(msg)
        if empty_items > MAX_EMPTY_ITEMS:
            msg = f"no event to train on in {empty_items} segments of the data ({tally.rows} rows read)"
            raise ValueError(msg)

    def _fill(self, batches: Iterable[Any]) -> None:
        try:
            for entry in batches:
                if not self._put(entry):
                    return
        except Exception as error:  # noqa: BLE001 - handed to the training thread, which raises it
            self._put(error)

    def _put(self, entry: Any) -> bool:
        while not self._closed.is_set():
            try:
                self._ready.put(entry, timeout=0.5)
            except queue.Full:
                continue
            return True
        return False


def _cut(pool: EventBatch, start: int, events: int, muons: int | None) -> int | None:
    """Where the batch that begins at `start` ends; None if the pool does not reach that far."""
    stop = start + events
    if muons is not None:
        fits = int(
            (pool.offsets[1:] <= pool.offsets[start] + muons).sum()
        )  # Each event fits alone: the reader saw to it.
        if fits < len(pool):
            stop = min(stop, fits)
    return stop if stop <= len(pool) else None


def _advance(marks: deque[tuple[int, int, int, Tally]], events: int) -> tuple[tuple[int, int], Tally]:
    """Take events off the marks; returns the position after them."""
    while True:
        length, number, taken, tally = marks.popleft()
        if length >= events:
            if length > events:
                marks.appendleft((length - events, number, taken + events, tally))
            return (number, taken + events), tally
        events -= length
