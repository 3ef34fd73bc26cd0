"""Give one rank its endless sequence of training batches, with a position from which it continues exactly.

Each training process has one Loader. Its background thread reads the rank's Segments (`read`: in the thread itself or
through Ray Data), cuts them into batches with a Batcher, and prepares `data.prefetch_batches` of them ahead. The
training thread only calls `next`. A checkpoint stores `position` and `read_counts`; a Loader made with these gives the
same further batches, bit by bit.
"""

import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cached_property
from typing import Generic, NamedTuple, TypeVar

from crmuons import config
from crmuons.data import reader
from crmuons.data.batcher import Batcher
from crmuons.data.events import EventArrays
from crmuons.data.prefetch import Prefetcher
from crmuons.data.quarantine import QuarantineLimit, ReadCounts
from crmuons.data.reader import ReadResult
from crmuons.data.sampler import ReadPlan, Segment
from crmuons.data.selection import Selection
from crmuons.storage.files import is_remote
from crmuons.storage.identity import Digests

Batch = TypeVar("Batch")
ReadSegments = Callable[[Iterator[Segment], Selection], Iterator[ReadResult]]
Position = tuple[int, int]  # Index in the rank's list of segments, and events taken from this segment.
MAX_EMPTY_SEGMENTS = 1000  # If this many segments in a row have no event of the split, the data have none at all.


class _Waiting(NamedTuple):
    """Events of one segment that wait in the batcher.

    Attributes:
        num_events: number of waiting events.
        segment: index of their segment in the rank's list.
        taken: number of events of the segment that were taken before them.
        read_counts: counts of the rows read so far, including their segment.
    """

    num_events: int
    segment: int
    taken: int
    read_counts: ReadCounts


class Loader(Generic[Batch]):
    """Iterate over batches without end; a thread prepares them ahead.

    Args:
        plan: what all ranks read, and when.
        rank: the rank of these batches.
        position: where to continue: index in the rank's list of segments, and events taken from this segment.
        read_counts: counts of the rows read up to `position`.
        selection: which events to use.
        data: caps, limits and how far to read ahead.
        events_per_batch: number of events in a batch.
        prepare: makes a batch from its events, in the thread; `next` returns the batch.
        read: reads segments, in order.

    Attributes:
        position: where the reading stands after the batch that `next` returned last.
        read_counts: counts of the rows read up to `position`.
        epochs: passes over the data up to the segment of `position`.
        digests: digests of the remote files opened so far.
        num_events, num_muons: numbers of events and muons that this object has returned.
        seconds_waited: time that `next` spent waiting for a batch.
    """

    def __init__(
        self,
        plan: ReadPlan,
        rank: int,
        *,
        position: Position = (0, 0),
        read_counts: ReadCounts | None = None,
        selection: Selection,
        data: config.Data,
        events_per_batch: int,
        prepare: Callable[[EventArrays], Batch],
        read: ReadSegments = reader.read_in_process,
    ) -> None:
        self.plan, self.rank, self.position = plan, rank, position
        self.read_counts = ReadCounts() if read_counts is None else read_counts
        self.num_events = self.num_muons = 0
        self.seconds_waited = 0.0
        self._limit = QuarantineLimit(data.max_quarantined_share, sum(part.size for part in plan.slices))
        self._epochs: dict[int, float] = {}  # Passes at the beginning of each segment that is being read, by its index.
        self._sizes: deque[int] = deque()  # Bytes of each segment being read; 0 if its rows were counted before.
        self._quarantine = selection.quarantine
        self._segments_per_epoch = len(plan.segments(0))
        self.digests = Digests() if selection.digests is None else selection.digests
        batches = self._batches(read(self._segments(position), selection), events_per_batch, data.max_muons_per_batch)
        # Position and counts travel with their batch: the thread is several batches ahead of what was trained on.
        ready = (
            (prepare(batch), (batch.num_events, int(batch.counts.sum())), position, counts)
            for batch, position, counts in batches
        )
        self._ready = Prefetcher(ready, data.prefetch_batches, "loader")

    def __iter__(self) -> "Loader[Batch]":
        return self

    def __next__(self) -> Batch:
        """Return the next batch, or raise the error that reading it met."""
        begin = time.perf_counter()
        # All four change together: a checkpoint between two batches has the position after the last returned batch.
        batch, (events, muons), self.position, self.read_counts = next(self._ready)
        self.seconds_waited += time.perf_counter() - begin
        self.num_events += events
        self.num_muons += muons
        return batch

    def wait(self, seconds: float) -> bool:
        """Wait at most this time for the next batch; return whether the batch, or the error of reading it, is ready."""
        begin = time.perf_counter()
        ready = self._ready.wait(seconds)
        self.seconds_waited += time.perf_counter() - begin
        return ready

    def close(self) -> None:
        """Stop the thread."""
        self._ready.close()

    def check(self, read_counts: ReadCounts) -> None:
        """Raise if too many rows cannot be used.

        Args:
            read_counts: counts of this rank, or the sum over all ranks.

        Raises:
            ValueError: if more than data.max_quarantined_share of all rows cannot be used, even if every row that is
                not read yet is good.
        """
        if self._limit.is_exceeded(read_counts):
            msg = (
                f"{read_counts.quarantined} of {read_counts.rows} rows cannot be used, more than "
                f"data.max_quarantined_share = {self._limit.share:g} of all rows; the rows and the reasons are in "
                f"{self._quarantine}"
            )
            raise ValueError(msg)

    @property
    def epochs(self) -> float:
        for index in [index for index in list(self._epochs) if index < self.position[0]]:
            del self._epochs[index]
        return self._epochs.get(self.position[0], 0.0)

    @cached_property
    def without_digest(self) -> list[str]:
        """Return the URLs of files whose digest is known only after they are opened, in the same order on all ranks."""
        files = {part.file for part in self.plan.slices}
        return sorted(file.first_url or file.url for file in files if file.digest is None and is_remote(file.url))

    def _segments(self, position: Position) -> Iterator[Segment]:
        """Yield the rank's segments from a position, and note their sizes."""
        index, taken = position
        for i, segment in enumerate(self.plan.segments_of_rank(self.rank)):
            # These segments are skipped without reading, because the plan alone gives them.
            if i < index:
                continue
            self._epochs[i] = segment.epoch + segment.number / self._segments_per_epoch
            start = segment.start + (taken if i == index else 0)
            # A segment that is continued was counted before the checkpoint.
            self._sizes.append(0 if start else sum(part.size for part in segment.slices))
            yield replace(segment, start=start)

    def _batches(
        self, results: Iterator[ReadResult], num_events: int, max_muons: int | None
    ) -> Iterator[tuple[EventArrays, Position, ReadCounts]]:
        """Cut the events of segments into batches; yield each with the position and the read counts after it."""
        # The counts of a segment come before its events, and increase the index by 1.
        index, taken = self.position[0] - 1, self.position[1]
        read_counts, empty_segments = self.read_counts, 0
        batcher = Batcher()
        # The reader is ahead of the batches, so each batch needs the position and the counts of its own last event.
        waiting: deque[_Waiting] = deque()
        for result in results:
            if isinstance(result, ReadCounts):  # A new segment begins.
                read_counts += result
                index, taken = index + 1, taken if index + 1 == self.position[0] else 0
                # The segment's first events, if it has any, set this back to 0.
                empty_segments += 1
                self._limit.count(result.rows, self._sizes.popleft())
                self._check_segment(read_counts, empty_segments)
                continue
            empty_segments = 0
            waiting.append(_Waiting(result.num_events, index, taken, read_counts))
            taken += result.num_events
            batcher.add(result)
            while (batch := batcher.next_batch(num_events, max_muons)) is not None:
                yield batch, *_advance(waiting, batch.num_events)

    def _check_segment(self, read_counts: ReadCounts, empty_segments: int) -> None:
        self.check(read_counts)
        if empty_segments > MAX_EMPTY_SEGMENTS:
            msg = f"no event to train on in {empty_segments} segments of the data ({read_counts.rows} rows read)"
            raise ValueError(msg)


def _advance(waiting: deque[_Waiting], num_events: int) -> tuple[Position, ReadCounts]:
    """Remove a batch's events from the front of `waiting`; return the position and the read counts after them."""
    while True:
        length, index, taken, read_counts = waiting.popleft()
        if length >= num_events:
            # The batch ends within these events; the others wait for the next one.
            if length > num_events:
                waiting.appendleft(_Waiting(length - num_events, index, taken + num_events, read_counts))
            return (index, taken + num_events), read_counts
        num_events -= length
