"""Whatever is done to a batch of events, every muon stays with its primary."""

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from crmuons import config
from crmuons.data import arrow
from crmuons.data.events import EventArrays, concat, slice_events, take
from crmuons.training.batch import TrainingBatch

COUNTS = st.lists(st.integers(0, 4), max_size=8)


def numbered(counts, first=0):
    """Events whose primaries carry the event's number and whose muons carry (event, muon of the event)."""
    number = np.arange(first, first + len(counts))
    primaries = np.stack([1.0 + number, 0 * number, 1.0 + 0 * number, 1950.0 + 0 * number], axis=1)
    muons = [[1.0, event, muon] for event, count in zip(number, counts, strict=True) for muon in range(count)]
    return EventArrays(
        ids=np.stack([number.astype(np.uint64), ~number.astype(np.uint64)], axis=1),
        primaries=primaries.astype(np.float32),
        counts=np.asarray(counts, np.int64),
        muons=np.asarray(muons, np.float32).reshape(-1, 3),
    )


def events_of(events):
    """What each event is: its number by the primary, its ids, and the (event, muon) of its muons."""
    parts = np.split(events.muons[:, 1:].astype(int), np.cumsum(events.counts)[:-1]) if len(events.counts) else []
    assert int(events.counts.sum()) == len(events.muons)
    return [
        (int(primary[0]) - 1, tuple(ids.tolist()), [tuple(muon) for muon in part.tolist()])
        for primary, ids, part in zip(events.primaries, events.ids, parts, strict=True)
    ]


def expected(number, count):
    return number, (number, 2**64 - 1 - number), [(number, muon) for muon in range(count)]


def batch_of(events, **train):
    return TrainingBatch.from_events(events, config.from_dict({"train": {"steps": 1, **train}}).train)


@settings(max_examples=40)
@given(COUNTS, st.data())
def test_take_gives_the_chosen_events_in_order_each_with_its_muons(counts, data):
    chosen = data.draw(st.lists(st.integers(0, len(counts) - 1), max_size=10)) if counts else []
    taken = take(numbered(counts), np.asarray(chosen, np.int64))
    assert events_of(taken) == [expected(event, counts[event]) for event in chosen]


@settings(max_examples=40)
@given(COUNTS, st.data())
def test_slices_put_together_are_the_events(counts, data):
    cut = data.draw(st.integers(0, len(counts)))
    events = numbered(counts)
    rest = slice_events(events, cut, len(counts))
    assert events_of(concat([slice_events(events, 0, cut), rest])) == events_of(events)
    assert events_of(events) == [expected(i, count) for i, count in enumerate(counts)]
    assert events_of(rest) == [expected(i, counts[i]) for i in range(cut, len(counts))]


@settings(max_examples=20)
@given(COUNTS)
def test_events_survive_arrow(counts):
    events = numbered(counts, first=3)  # Ids above 2^63 among them.
    again = arrow.to_arrays(arrow.to_table(events))
    for name in ("ids", "primaries", "counts", "muons"):
        np.testing.assert_array_equal(getattr(again, name), getattr(events, name))


def test_a_training_batch_does_not_write_into_the_arrays_it_came_from(toy_events):
    # Arrow's buffers are read-only and shared: torch may not alias them.
    table = arrow.to_table(toy_events(5))
    before = table.slice(0)
    batch = batch_of(arrow.to_arrays(table))
    batch.muons.mul_(2)
    batch.primaries.zero_()
    assert table.equals(before)
    assert not np.array_equal(arrow.to_arrays(table).muons, batch.muons.numpy())


@settings(max_examples=40)
@given(COUNTS, st.one_of(st.none(), st.integers(1, 5)))
def test_a_training_batch_keeps_the_first_muons_of_every_event_that_has_some(counts, cap):
    batch = batch_of(numbered(counts), muons_per_event=cap)
    assert batch.primaries[:, 0].tolist() == [1 + event for event in range(len(counts))]
    assert batch.counts.tolist() == counts
    assert batch.nonempty.tolist() == [event for event, count in enumerate(counts) if count]
    kept = [min(count, cap or count) for count in counts if count]
    muons = [(event, muon) for event, count in zip(batch.nonempty.tolist(), kept, strict=True) for muon in range(count)]
    assert [tuple(muon) for muon in batch.muons[:, 1:].int().tolist()] == muons
    assert batch.ragged.counts.tolist() == kept
    # Each muon belongs to the event that it carries.
    assert torch.equal(batch.nonempty[batch.ragged.event_of_muon], batch.muons[:, 1].long())
    assert batch.weights.tolist() == [np.float32(count) ** np.float32(0.25) for count in kept]
