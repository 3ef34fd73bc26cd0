"""Cut the events of segments into batches. Events stay whole and in order, and none is copied."""

from collections import deque

import numpy as np

from crmuons.data.events import EventArrays
from crmuons.data.runs import EventRuns, chain


class Batcher:
    """A queue: events enter in blocks of any size and leave in batches.

    Attributes:
        num_events: number of events in the queue.
    """

    def __init__(self) -> None:
        self.num_events = 0
        self._blocks: deque[EventRuns] = deque()
        self._start = 0  # Events already taken from the first block.

    def add(self, events: EventArrays) -> None:
        """Append a block of events."""
        self._blocks.append(chain([events]))
        self.num_events += events.num_events

    def next_batch(self, num_events: int, max_muons: int | None) -> EventRuns | None:
        """Take the next batch: `num_events` events, or fewer if these would have more than `max_muons` muons together.

        Args:
            num_events: events in a full batch; the queue gives nothing until it holds this many.
            max_muons: limit on the batch's muons; no single event may have more.

        Returns:
            The events, as views; None if the queue holds too few.
        """
        if num_events > self.num_events:
            return None
        taken: list[EventRuns] = []
        muons_left = max_muons
        while num_events > 0:
            block = self._blocks[0]
            stop = min(self._start + num_events, block.num_events)
            if muons_left is not None:
                ends = block.muon_ends
                first_muon = int(ends[self._start - 1]) if self._start else 0
                stop = min(stop, int(np.searchsorted(ends, first_muon + muons_left, side="right")))
                muons_left -= (int(ends[stop - 1]) if stop else 0) - first_muon
            if stop > self._start:
                taken.append(block.view(self._start, stop))
                num_events -= stop - self._start
                self.num_events -= stop - self._start
            self._start = stop
            if stop < block.num_events:
                break
            self._blocks.popleft()
            self._start = 0
        return chain(taken)
