"""Whatever is done to a batch of events, every muon stays with its primary."""

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from crmuons.batch import EventBatch
from crmuons.data import arrow
from crmuons.data.events import EventArrays

COUNTS = st.lists(st.integers(0, 4), max_size=8)


def numbered(counts, first=0):
    """Events whose primaries carry the event's number and whose muons carry (event, muon of the event)."""
    number = np.arange(first, first + len(counts))
    primaries = np.stack([1.0 + number, 0 * number, 1.0 + 0 * number, 1950.0 + 0 * number], axis=1)
    muons = [[1.0, event, muon] for event, count in zip(number, counts, strict=True) for muon in range(count)]
    return EventBatch.from_arrays(
        EventArrays(
            ids=np.stack([number.astype(np.uint64), ~number.astype(np.uint64)], axis=1),
            primaries=primaries.astype(np.float32),
            counts=np.asarray(counts, np.int64),
            muons=np.asarray(muons, np.float32).reshape(-1, 3),
        )
    )


def events_of(batch):
    """What each event is: its number by the primary, its ids, and the (event, muon) of its muons."""
    arrays = batch.to_arrays()
    pieces = np.split(arrays.muons[:, 1:].astype(int), np.cumsum(arrays.counts)[:-1]) if len(batch) else []
    assert int(arrays.counts.sum()) == len(arrays.muons)
    return [
        (int(primary[0]) - 1, tuple(ids.tolist()), [tuple(muon) for muon in piece.tolist()])
        for primary, ids, piece in zip(arrays.primaries, arrays.ids, pieces, strict=True)
    ]


def expected(number, count):
    return number, (number, 2**64 - 1 - number), [(number, muon) for muon in range(count)]


@settings(max_examples=40)
@given(COUNTS, st.data())
def test_take_gives_the_chosen_events_in_order_each_with_its_muons(counts, data):
    chosen = data.draw(st.lists(st.integers(0, len(counts) - 1), max_size=10)) if counts else []
    taken = numbered(counts).take(torch.tensor(chosen, dtype=torch.int64))
    assert events_of(taken) == [expected(event, counts[event]) for event in chosen]


@settings(max_examples=40)
@given(COUNTS, st.data())
def test_slices_put_together_are_the_batch(counts, data):
    cut = data.draw(st.integers(0, len(counts)))
    batch = numbered(counts)
    whole = EventBatch.concat([batch.slice(0, cut), batch.slice(cut, len(batch))])
    assert events_of(whole) == events_of(batch) == [expected(i, count) for i, count in enumerate(counts)]
    assert events_of(batch.slice(cut, len(batch))) == [expected(i, counts[i]) for i in range(cut, len(counts))]


@settings(max_examples=40)
@given(COUNTS)
def test_with_muons_leaves_out_the_empty_events_alone(counts):
    batch = numbered(counts)
    kept = batch.with_muons()
    assert events_of(kept) == [expected(i, count) for i, count in enumerate(counts) if count]
    assert kept.num_muons == batch.num_muons


@settings(max_examples=40)
@given(COUNTS)
def test_offsets_and_event_of_muon_say_whose_a_muon_is(counts):
    batch = numbered(counts)
    assert batch.event_of_muon.tolist() == batch.muons[:, 1].long().tolist()
    assert batch.offsets.tolist() == [0, *np.cumsum(counts, dtype=int).tolist()]
    assert len(batch) == len(counts)


@settings(max_examples=20)
@given(COUNTS)
def test_a_batch_survives_arrow(counts):
    batch = numbered(counts, first=3)
    again = EventBatch.from_arrays(arrow.to_arrays(arrow.to_table(batch.to_arrays())))
    assert events_of(again) == events_of(batch)  # Ids above 2^63 among them.
    for name in ("ids", "primaries", "counts", "muons"):
        assert torch.equal(getattr(again, name), getattr(batch, name))


def test_a_batch_does_not_write_into_the_arrays_it_came_from(toy_events):
    # Arrow's buffers are read-only and shared: torch may not alias them.
    table = arrow.to_table(toy_events(5))
    before = table.slice(0)
    batch = EventBatch.from_arrays(arrow.to_arrays(table))
    batch.muons.mul_(2)
    batch.primaries.zero_()
    assert table.equals(before)
    assert not np.array_equal(arrow.to_arrays(table).muons, batch.to_arrays().muons)


@settings(max_examples=20)
@given(COUNTS, st.integers(1, 5))
def test_at_most_keeps_the_first_muons_of_every_event(counts, muons):
    kept = numbered(counts).at_most(muons)
    assert events_of(kept) == [expected(i, min(count, muons)) for i, count in enumerate(counts)]
