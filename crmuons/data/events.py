"""Whole events as flat arrays: taken, cut, joined and shuffled, so that muons cannot part from their primary."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pyarrow as pa
from jaxtyping import Float32, Int64, UInt64

BYTES_PER_RUN = 96 * 2**10  # Of prepared shards; a run costs 10 us beside its bytes, which take 20.


@dataclass(frozen=True)
class EventArrays:
    """Events as flat arrays: the muons of event i are the rows sum(counts[:i]) .. sum(counts[:i + 1])."""

    ids: UInt64[np.ndarray, "events 2"]
    primaries: Float32[np.ndarray, "events 4"]
    counts: Int64[np.ndarray, " events"]
    muons: Float32[np.ndarray, "muons 3"]


NO_EVENTS = EventArrays(
    np.empty((0, 2), np.uint64), np.empty((0, 4), np.float32), np.empty(0, np.int64), np.empty((0, 3), np.float32)
)


def take(events: EventArrays, chosen: np.ndarray) -> EventArrays:
    """The chosen events in the order given, each with its muons."""
    # np.take copies rows four times as fast as indexing does.
    counts = np.take(events.counts, chosen)
    return EventArrays(
        np.take(events.ids, chosen, axis=0),
        np.take(events.primaries, chosen, axis=0),
        counts,
        _muons_of(events, chosen[counts > 0]),
    )


def slice_events(events: EventArrays, start: int, stop: int) -> EventArrays:
    """Events start .. stop - 1, as views."""
    first = int(events.counts[:start].sum())
    return view(events, start, stop, first, first + int(events.counts[start:stop].sum()))


def view(events: EventArrays, start: int, stop: int, first_muon: int, last_muon: int) -> EventArrays:
    """Events start .. stop - 1, whose muons are the rows first_muon .. last_muon - 1."""
    return EventArrays(
        events.ids[start:stop],
        events.primaries[start:stop],
        events.counts[start:stop],
        events.muons[first_muon:last_muon],
    )


def concat(parts: Sequence[EventArrays]) -> EventArrays:
    """The events of several parts, in order."""
    parts = parts or [NO_EVENTS]
    return EventArrays(
        np.concatenate([part.ids for part in parts]),
        np.concatenate([part.primaries for part in parts]),
        np.concatenate([part.counts for part in parts]),
        np.concatenate([part.muons for part in parts]),
    )


def _muons_of(events: EventArrays, chosen: np.ndarray) -> Float32[np.ndarray, "muons 3"]:
    """The muons of the chosen events, in the order given."""
    # To Arrow an event's muons are one string of bytes, copied at once: 0.9 ms for 340,000 muons of 25,000 events, where row by
    # row it took 2.0.
    offsets = np.zeros(len(events.counts) + 1, np.int64)
    np.cumsum(events.counts, out=offsets[1:])
    offsets *= events.muons.itemsize * events.muons.shape[1]
    buffers = [None, pa.py_buffer(offsets), pa.py_buffer(np.ascontiguousarray(events.muons))]
    strings = pa.LargeBinaryArray.from_buffers(pa.large_binary(), len(events.counts), buffers)
    return np.frombuffer(strings.take(pa.array(chosen)).buffers()[2], np.float32).reshape(-1, events.muons.shape[1])


def partial_shuffle(events: EventArrays, number: int, random: np.random.Generator) -> None:
    """Bring `number` muons drawn at random to the front of each event that has more, in place.

    The shuffle of Fisher and Yates, ended early, of all these events side by side: a tenth of what sorting by random keys takes.
    """
    counts = events.counts
    muons = events.muons.view("V12").reshape(-1)  # Each muon as one value of 12 bytes: copied in a third of the time.
    large = np.flatnonzero(counts > number)
    starts, left = (np.cumsum(counts) - counts)[large], counts[large]
    for place in range(number if len(large) else 0):
        here = starts + place
        drawn = here + (random.random(len(large)) * (left - place)).astype(np.int64)
        muons[here], muons[drawn] = muons[drawn], muons[here]


def rotate_muons(events: EventArrays, number: int, random: np.random.Generator) -> None:
    """Bring other muons to the front of each event that has more than `number`, in place, where all are in random order.

    Each list is turned by a random amount: a fifth of the time of `draw_first`, since memory is read in order.
    """
    large = np.flatnonzero(events.counts > number)
    starts, counts = (np.cumsum(events.counts) - events.counts)[large], events.counts[large]
    shifts = (random.random(len(large)) * counts).astype(np.int64)
    for start, middle, stop in zip(
        starts.tolist(), (starts + shifts).tolist(), (starts + counts).tolist(), strict=True
    ):
        events.muons[start:stop] = np.concatenate((events.muons[middle:stop], events.muons[start:middle]))


def shuffle_muons(events: EventArrays, random: np.random.Generator) -> EventArrays:
    """Put the muons of each event in random order."""
    event = np.repeat(np.arange(len(events.counts)), events.counts)
    # One sort: whole numbers keep the events apart, and a double holds 20 bits of key beside 2^32 events.
    order = np.argsort(event + random.random(len(events.muons)))
    return EventArrays(events.ids, events.primaries, events.counts, np.take(events.muons, order, axis=0))


def shuffle(parts: Sequence[tuple[EventArrays, np.ndarray]], random: np.random.Generator) -> EventArrays:
    """Of each part the chosen events, all in random order."""
    order = random.permutation(sum(len(chosen) for _, chosen in parts))
    events = concat([events for events, _ in parts])
    if len(order) < len(events.counts):
        starts = np.cumsum([0, *(len(events.counts) for events, _ in parts)])
        chosen = np.concatenate([start + chosen for start, (_, chosen) in zip(starts[:-1], parts, strict=True)])
        order = np.take(chosen, order)
    return take(events, order)


def shuffle_runs(parts: Sequence[EventArrays], random: np.random.Generator) -> EventArrays:
    """Events that are in random order already, in short runs whose order is random.

    Whole runs are copied in a fifth of the time that single events take. They are cut at other places each time.
    """
    length = _events_per_run(parts)
    first = int(random.integers(1, length, endpoint=True))
    runs = [run for part in parts for run in _runs(part, length, first)]
    return concat([runs[index] for index in random.permutation(len(runs))])


def _events_per_run(parts: Sequence[EventArrays]) -> int:
    size = sum(array.nbytes for part in parts for array in vars(part).values())
    number = sum(len(part.counts) for part in parts)
    return max(1, number * BYTES_PER_RUN // max(size, 1))


def _runs(events: EventArrays, length: int, first: int) -> list[EventArrays]:
    """Events cut into runs of a length, the first of them shorter."""
    number = len(events.counts)
    bounds = [0, *range(min(first, number), number, length), number]
    muon_bounds = np.concatenate([[0], np.cumsum(events.counts)])[bounds].tolist()
    spans = zip(pairwise(bounds), pairwise(muon_bounds), strict=True)
    return [view(events, *of_events, *of_muons) for of_events, of_muons in spans]
