"""Cut the events of segments into batches. Events stay whole and in order, and each is copied at most once."""

from collections import deque

import numpy as np

from crmuons.data.events import EventArrays, concat, view


class Batcher:
    """A queue: events enter in blocks of any size and leave in batches.

    Attributes:
        num_events: number of events in the queue.
    """

    def __init__(self) -> None:
        self.num_events = 0
        self._blocks: deque[tuple[EventArrays, np.ndarray]] = deque()  # Events, and the row of `muons` where each ends.
        self._start = 0  # Events already taken from the first block.

    def add(self, events: EventArrays) -> None:
        """Append a block of events."""
        self._blocks.append((events, np.cumsum(events.counts)))
        self.num_events += len(events.counts)

    def next_batch(self, num_events: int, max_muons: int | None) -> EventArrays | None:
        """Take the next batch: `num_events` events, or fewer if these would have more than `max_muons` muons together.

        Args:
            num_events: events in a full batch; the queue gives nothing until it holds this many.
            max_muons: limit on the batch's muons; no single event may have more.

        Returns:
            The events, as views if they come from one block; None if the queue holds too few.
        """
        if num_events > self.num_events:
            return None
        taken: list[EventArrays] = []
        muons_left = max_muons
        while num_events > 0:
            block, ends = self._blocks[0]
            first_muon = int(ends[self._start - 1]) if self._start else 0
            stop = min(self._start + num_events, len(ends))
            if muons_left is not None:
                stop = min(stop, int(np.searchsorted(ends, first_muon + muons_left, side="right")))
            if stop > self._start:
                last_muon = int(ends[stop - 1])
                taken.append(view(block, self._start, stop, first_muon, last_muon))
                num_events -= stop - self._start
                if muons_left is not None:
                    muons_left -= last_muon - first_muon
                self.num_events -= stop - self._start
            self._start = stop
            if stop < len(ends):
                break
            self._blocks.popleft()
            self._start = 0
        return taken[0] if len(taken) == 1 else concat(taken)
