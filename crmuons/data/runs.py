"""Hold events that lie in several places in memory, and copy them once.

A segment of prepared shards consists of some hundred runs of neighbouring events in mapped files, and a batch of parts of
segments. `EventRuns.copied` brings a segment into the memory of this process. Batches then are views of it until they are
packed.
"""

from bisect import bisect_right
from collections.abc import Sequence
from functools import cached_property
from itertools import accumulate, pairwise

import numpy as np
from jaxtyping import Float32, Int64, UInt64

from crmuons.data.events import NO_EVENTS, EventArrays, concat

# Size of a run of neighbouring events in a prepared shard. A run costs 10 us, and copying its bytes costs 20 us.
BYTES_PER_RUN = 96 * 2**10
NO_NUMBERS = np.empty(0, np.int64)


class EventRuns(EventArrays):
    """Events as runs, in order. `ids`, `primaries`, `counts` and `muons` join the runs at the first access.

    Args:
        runs: the events. Empty ones are left out.
        turned: numbers of the events that are rotated, in order.
        shifts: number of the muon that comes first in each of these events.
    """

    def __init__(
        self,
        runs: Sequence[EventArrays],
        turned: Int64[np.ndarray, " turned"] = NO_NUMBERS,
        shifts: Int64[np.ndarray, " turned"] = NO_NUMBERS,
    ) -> None:
        # Set without the dataclass's __init__: its fields are properties here.
        vars(self).update(runs=[run for run in runs if len(run.counts)] or [concat(runs)], turned=turned, shifts=shifts)

    runs: list[EventArrays]
    turned: Int64[np.ndarray, " turned"]
    shifts: Int64[np.ndarray, " turned"]

    @cached_property
    def ids(self) -> UInt64[np.ndarray, "events 2"]:
        return _joined([run.ids for run in self.runs])

    @cached_property
    def primaries(self) -> Float32[np.ndarray, "events 4"]:
        return _joined([run.primaries for run in self.runs])

    @cached_property
    def counts(self) -> Int64[np.ndarray, " events"]:
        return _joined([run.counts for run in self.runs])

    @cached_property
    def muons(self) -> Float32[np.ndarray, "muons features"]:
        return self.first_muons(None)

    def copied(self) -> EventArrays:
        """Return the events in memory of this process, which no change of a mapped file reaches."""
        return EventArrays(
            ids=np.concatenate([run.ids for run in self.runs]),
            primaries=np.concatenate([run.primaries for run in self.runs]),
            counts=np.concatenate([run.counts for run in self.runs]),
            muons=np.concatenate(self.views_of_muons(None)),
        )

    @property
    def num_events(self) -> int:
        return self._bounds[-1]

    @cached_property
    def muon_ends(self) -> Int64[np.ndarray, " events"]:
        """The row of `muons` with which each event ends."""
        return np.cumsum(self.counts)

    def first_muons(self, most: int | None) -> Float32[np.ndarray, "muons features"]:
        """Return the first `most` muons of each event, or all: a view if they are neighbours in memory."""
        return _joined(self.views_of_muons(most))

    def views_of_muons(self, most: int | None) -> list[np.ndarray]:
        """Return views that hold the first `most` muons of each event, or all, in order."""
        special, shifts = self._special(most)
        if not len(special):
            return [run.muons for run in self.runs]
        counts = self.counts[special]
        begins = self.muon_ends[special] - counts
        # From the muon that comes first to the event's end, or to the last one that is kept; then from the event's begin.
        firsts, ends = begins + shifts, begins + counts
        stops = ends if most is None else np.minimum(firsts + most, ends)
        rest = shifts if most is None else np.minimum(shifts, most - (stops - firsts))
        # Each event needs two or three views. Python takes 1 us for them with plain numbers; copying 128 muons takes 0.1 us.
        events = zip(*(numbers.tolist() for numbers in (begins, firsts, stops, begins + rest, ends)), strict=True)
        views: list[np.ndarray] = []
        event = next(events)
        first = 0
        for run in self.runs:
            muons, done = run.muons, 0
            end = first + len(muons)
            while event and event[0] < end:
                begin, middle, stop, rest_stop, event_end = event
                views += (muons[done : begin - first], muons[middle - first : stop - first])
                if rest_stop > begin:
                    views.append(muons[begin - first : rest_stop - first])
                done = event_end - first
                event = next(events, ())
            views.append(muons[done:])
            first = end
        return views

    def _special(self, most: int | None) -> tuple[np.ndarray, np.ndarray]:
        """Return the numbers of the events that are rotated or have more than `most` muons, and their shifts."""
        large = self.turned if most is None else (self.counts > most).nonzero()[0]
        # Both are mostly the same: the reader rotates the events whose muons the training does not all take.
        if len(large) == len(self.turned) and (large == self.turned).all():
            return self.turned, self.shifts
        special = np.union1d(large, self.turned)
        shifts = np.zeros(len(special), np.int64)
        shifts[np.searchsorted(special, self.turned)] = self.shifts
        return special, shifts

    def view(self, start: int, stop: int) -> "EventRuns":
        bounds, runs = self._bounds, []
        at = bisect_right(bounds, start) - 1
        while at < len(self.runs) and bounds[at] < stop:
            run, low, high = self.runs[at], max(start - bounds[at], 0), min(stop, bounds[at + 1]) - bounds[at]
            runs.append(run if high - low == len(run.counts) else self._part(at, low, high))
            at += 1
        first, last = np.searchsorted(self.turned, (start, stop)).tolist()
        return EventRuns(runs or [self._part(0, 0, 0)], self.turned[first:last] - start, self.shifts[first:last])

    def _part(self, at: int, low: int, high: int) -> EventArrays:
        """Return a part of a run."""
        run = self.runs[at]
        # Kept, because all events of raw files are one run, and many batches take a part of it.
        if at not in self._ends_of_run:
            self._ends_of_run[at] = np.cumsum(run.counts)
        ends = self._ends_of_run[at]
        return run.part(low, high, int(ends[low - 1]) if low else 0, int(ends[high - 1]) if high else 0)

    @cached_property
    def _ends_of_run(self) -> dict[int, np.ndarray]:
        return {}

    @cached_property
    def _bounds(self) -> list[int]:
        """The event with which each run begins, and the number of events."""
        return list(accumulate((len(run.counts) for run in self.runs), initial=0))


def chain(parts: Sequence[EventArrays]) -> EventRuns:
    """Return the events of several parts, in order, without copying them."""
    each = [part if isinstance(part, EventRuns) else EventRuns([part]) for part in parts or [NO_EVENTS]]
    if len(each) == 1:
        return each[0]
    starts = accumulate((part.num_events for part in each), initial=0)
    turned = [start + part.turned for start, part in zip(starts, each, strict=False)]
    return EventRuns(
        [run for part in each for run in part.runs], _joined(turned), _joined([part.shifts for part in each])
    )


def shuffle_runs(parts: Sequence[EventArrays], muons_per_event: int | None, random: np.random.Generator) -> EventRuns:
    """Cut events into short runs of neighbours, and return the runs in random order.

    This is enough for events that are in random order already. The cuts are at other places each time.

    Args:
        parts: the events. Their muons are in random order.
        muons_per_event: rotate each event that has more muons by a random amount, so that other muons come first. This reads
            memory in order, and takes a fifth of the time of `events.partial_shuffle`.
        random: the random generator.
    """
    length = _events_per_run(parts)
    first = int(random.integers(1, length, endpoint=True))
    runs = [run for part in parts for run in _cut_into_runs(part, length, first)]
    runs = [runs[index] for index in random.permutation(len(runs))]
    if muons_per_event is None or not runs:
        return EventRuns(runs)
    large = [(run.counts > muons_per_event).nonzero()[0] for run in runs]
    counts = np.concatenate([run.counts[events] for run, events in zip(runs, large, strict=True)])
    shifts = (random.random(len(counts)) * counts).astype(np.int64)
    starts = accumulate((len(run.counts) for run in runs), initial=0)
    turned = np.concatenate([start + events for start, events in zip(starts, large, strict=False)])
    return EventRuns(runs, turned, shifts)


def _events_per_run(parts: Sequence[EventArrays]) -> int:
    size = sum(array.nbytes for part in parts for array in vars(part).values())
    number = sum(len(part.counts) for part in parts)
    return max(1, number * BYTES_PER_RUN // max(size, 1))


def _cut_into_runs(events: EventArrays, length: int, first: int) -> list[EventArrays]:
    """Cut events into runs of `length` events; the first run has `first` events."""
    number = len(events.counts)
    bounds = [0, *range(min(first, number), number, length), number]
    muons = np.add.reduceat(events.counts, bounds[:-1]).tolist() if number else [0]
    spans = zip(pairwise(bounds), pairwise(accumulate(muons, initial=0)), strict=True)
    return [events.part(*event_span, *muon_span) for event_span, muon_span in spans]


def _joined(arrays: Sequence[np.ndarray]) -> np.ndarray:
    return arrays[0] if len(arrays) == 1 else np.concatenate(arrays)
