"""The endless stream of batches that one rank trains on, and its position, from which it can be continued exactly."""

import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

from crmuons import config
from crmuons.data import reader
from crmuons.data.batcher import Batcher
from crmuons.data.events import EventArrays
from crmuons.data.prefetch import Prefetcher
from crmuons.data.quarantine import QuarantineLimit, ReadCounts
from crmuons.data.reader import ReadResult
from crmuons.data.sampler import ReadPlan, Segment
from crmuons.data.selection import Selection

Batch = TypeVar("Batch")
ReadSegments = Callable[[Iterator[Segment], Selection], Iterator[ReadResult]]
Entry = tuple[EventArrays, tuple[int, int], ReadCounts]
MAX_EMPTY_SEGMENTS = 1000  # So many segments without an event: the data hold none of this split.


class Loader(Generic[Batch]):
    """Batches without end, made ready in a thread.

    Args:
        plan: what all ranks read.
        rank: the one that this stream is for.
        position: from which to go on.
        tally: of what was read up to there.
        selection: the events.
        data: caps, limits and how far to run ahead.
        events_per_batch: events of a batch.
        prepare: makes of a batch what is given out; called in the thread.
        read: reads the items of the plan.

    Attributes:
        position: number of the plan's item being read, and the events taken from it, up to the batch given last.
        tally: what became of the rows read up to there.
        num_events, num_muons: given so far by this object.
        seconds_waited: time that `next` spent waiting for a batch.
    """

    def __init__(
        self,
        plan: ReadPlan,
        rank: int,
        *,
        position: tuple[int, int] = (0, 0),
        tally: ReadCounts | None = None,
        selection: Selection,
        data: config.Data,
        events_per_batch: int,
        prepare: Callable[[EventArrays], Batch],
        read: ReadSegments = reader.read_in_process,
    ) -> None:
        self.plan, self.rank, self.position = plan, rank, position
        self.tally = ReadCounts() if tally is None else tally
        self.num_events = self.num_muons = 0
        self.seconds_waited = 0.0
        self._limit = QuarantineLimit(data.max_quarantined_share, sum(unit.size for unit in plan.units))
        self._sizes: deque[int] = deque()  # Bytes of the items being read, as far as their rows are counted.
        self._quarantine = selection.quarantine
        batches = self._batches(read(self._items(position), selection), events_per_batch, data.max_muons_per_batch)
        ready = (
            (prepare(batch), (len(batch.counts), len(batch.muons)), position, at) for batch, position, at in batches
        )
        self._ready = Prefetcher(ready, data.prefetch_batches, "stream")

    def __iter__(self) -> "Loader[Batch]":
        return self

    def __next__(self) -> Batch:
        """The next batch; raises what went wrong in reading it."""
        begin = time.perf_counter()
        batch, (events, muons), self.position, self.tally = next(self._ready)
        self.seconds_waited += time.perf_counter() - begin
        self.num_events += events
        self.num_muons += muons
        return batch

    def close(self) -> None:
        """Stop reading ahead."""
        self._ready.close()

    def check(self, tally: ReadCounts) -> None:
        """Stop where too many rows cannot be used.

        Args:
            tally: of this rank, or of all together.

        Raises:
            ValueError: if more of all rows than data.max_quarantined_share cannot be used, however good the rest is.
        """
        if self._limit.is_exceeded(tally):
            msg = (
                f"{tally.quarantined} of {tally.rows} rows cannot be used, more than data.max_quarantined_share = "
                f"{self._limit.share:g} of all rows; the rows and the reasons are in {self._quarantine}"
            )
            raise ValueError(msg)

    def _items(self, position: tuple[int, int]) -> Iterator[Segment]:
        number, taken = position
        for i, item in enumerate(self.plan.items(self.rank)):
            if i < number:
                continue
            start = item.start + (taken if i == number else 0)
            self._sizes.append(0 if start else sum(unit.size for unit in item.units))
            yield Segment(item.epoch, item.segment, start, item.seed, item.units)

    def _batches(self, pieces: Iterator[ReadResult], events: int, muons: int | None) -> Iterator[Entry]:
        """Cut pieces into batches of `events` events, fewer where these have more than `muons` muons."""
        number, taken = self.position[0] - 1, self.position[1]
        tally, empty_items = self.tally, 0
        batcher = Batcher()
        marks: deque[tuple[int, int, int, ReadCounts]] = (
            deque()
        )  # Events in the pool: how many, item, taken before, tally.
        for piece in pieces:
            if isinstance(piece, ReadCounts):
                tally += piece
                number, taken = number + 1, taken if number + 1 == self.position[0] else 0
                empty_items += 1
                self._limit.count(piece.rows, self._sizes.popleft())
                self._check_item(tally, empty_items)
                continue
            empty_items = 0
            marks.append((len(piece.counts), number, taken, tally))
            taken += len(piece.counts)
            batcher.add(piece)
            while (cut := batcher.next_batch(events, muons)) is not None:
                yield cut, *_advance(marks, len(cut.counts))

    def _check_item(self, tally: ReadCounts, empty_items: int) -> None:
        self.check(tally)
        if empty_items > MAX_EMPTY_SEGMENTS:
            msg = f"no event to train on in {empty_items} segments of the data ({tally.rows} rows read)"
            raise ValueError(msg)


def _advance(marks: deque[tuple[int, int, int, ReadCounts]], events: int) -> tuple[tuple[int, int], ReadCounts]:
    """Take events off the marks; returns the position after them."""
    while True:
        length, number, taken, tally = marks.popleft()
        if length >= events:
            if length > events:
                marks.appendleft((length - events, number, taken + events, tally))
            return (number, taken + events), tally
        events -= length
