"""Events that wait to be cut into batches: whole events, in order, each copied once."""

from collections import deque

import numpy as np

from crmuons.data.events import EventArrays, concat, view


class Batcher:
    """A queue of events that come in pieces and leave in batches.

    Attributes:
        num_events: in it.
    """

    def __init__(self) -> None:
        self.num_events = 0
        self._pieces: deque[tuple[EventArrays, np.ndarray]] = deque()  # Events, and the row of `muons` where each ends.
        self._start = 0  # Events taken from the first piece.

    def add(self, events: EventArrays) -> None:
        """Put events behind the others."""
        self._pieces.append((events, np.cumsum(events.counts)))
        self.num_events += len(events.counts)

    def next_batch(self, events: int, max_muons: int | None) -> EventArrays | None:
        """Take the next batch: `events` events, or as many as have no more than `max_muons` muons together.

        Args:
            events: while fewer are there, nothing is taken.
            max_muons: no event alone has more.

        Returns:
            The events, as views where they come from one piece; None while there are too few.
        """
        if events > self.num_events:
            return None
        taken: list[EventArrays] = []
        room = np.inf if max_muons is None else max_muons
        while events > 0:
            piece, ends = self._pieces[0]
            first_muon = int(ends[self._start - 1]) if self._start else 0
            stop = min(self._start + events, int(np.searchsorted(ends, first_muon + room, side="right")))
            if stop > self._start:
                last_muon = int(ends[stop - 1])
                taken.append(view(piece, self._start, stop, first_muon, last_muon))
                events, room = events - (stop - self._start), room - (last_muon - first_muon)
                self.num_events -= stop - self._start
            self._start = stop
            if stop < len(ends):
                break
            self._pieces.popleft()
            self._start = 0
        return taken[0] if len(taken) == 1 else concat(taken)
