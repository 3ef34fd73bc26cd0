"""Choose which events to compare: two independent halves of the truth, and generated events.

Generated events must not have the primaries of the true events that they are compared with. Otherwise a classifier
learns a primary with one label and meets it again with the other label, and its AUC falls below one half. So the truth
is split in two by showers, the generated events have the primaries of the second half, and both are compared with the
first half.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64, Int64

from crmuons.data.schema import PRIMARY_FEATURES
from crmuons.evaluation.headers import EventHeaders
from crmuons.evaluation.metrics.quantities import primary_features, shower_numbers

SHARED_SHARE = 0.5  # Data sets that share half of their primaries were not drawn independently.

Rows = Int64[np.ndarray, " rows"]


@dataclass(frozen=True)
class Pairing:
    """The rows of two data sets that are compared.

    Attributes:
        truth, control: rows of the true events; the two share no shower.
        generated: rows of the generated events; they have the control's primaries if the data sets share primaries.
        paired: rows of true and of generated events with the same primaries in the same order; None if there are none.
    """

    truth: Rows
    control: Rows
    generated: Rows
    paired: tuple[Rows, Rows] | None


def halve(truth: EventHeaders, max_events: int, seed: int) -> tuple[Rows, Rows]:
    """Return the rows of two halves of the truth, which share no shower and have at most `max_events` events each.

    Raises:
        ValueError: if there are fewer than two showers.
    """
    (showers,) = shower_numbers(truth.ids)
    number = int(showers.max()) + 1 if len(showers) else 0
    if number < 2:
        msg = (
            f"{len(truth)} true events of {number} shower are too few to compare truth with truth: give events of two "
            "or more showers, better of 20,000, and set --events to match"
        )
        raise ValueError(msg)
    order = _shuffle_showers(showers, seed)
    first_of_second = _next_shower(showers[order], min(max_events, len(order) // 2))
    size = min(max_events, first_of_second, len(order) - first_of_second)
    return np.sort(order[:size]), np.sort(order[first_of_second : first_of_second + size])


def pair_data(truth: EventHeaders, generated: EventHeaders, max_events: int, seed: int) -> Pairing:
    """Choose the events to compare in two data sets, which may or may not have the same primaries.

    Raises:
        ValueError: if there are no generated events, or fewer than two showers of true events.
    """
    if not len(generated):
        msg = "the generated data set has no events"
        raise ValueError(msg)
    if not share_primaries(truth, generated):
        first, second = halve(truth, min(max_events, len(generated)), seed)
        return Pairing(first, second, _some_showers(generated, len(second), seed), paired=None)
    in_truth, in_generated = _same_primaries(truth, generated)
    first, second = halve(truth.take(in_truth), max_events, seed)
    both = np.sort(np.concatenate([first, second]))
    paired = in_truth[both], in_generated[both]
    return Pairing(in_truth[first], in_truth[second], np.sort(in_generated[second]), paired)


def share_primaries(truth: EventHeaders, generated: EventHeaders) -> bool:
    """Return whether generated events have the ids and primaries of true events, for which they were generated."""
    fewest = min(len(truth), len(generated))
    return fewest > 0 and len(_same_primaries(truth, generated)[0]) >= SHARED_SHARE * fewest


def one_per_shower(events: EventHeaders, seed: int = 0) -> Rows:
    """Return the rows of one random event per shower, which are independent; the first may always be the shallowest."""
    order = np.random.default_rng(seed).permutation(len(events))
    (showers,) = shower_numbers(events.ids[order])
    rows: np.ndarray = order[np.unique(showers, return_index=True)[1]]
    return rows


def range_warnings(truth: EventHeaders, generated: EventHeaders) -> list[str]:
    """Return a warning for each quantity of the primary whose distribution differs between true and generated events.

    A quantity differs if more than 1 % of either set lie outside the range of the other, or if the Kolmogorov distance
    (with one event per shower) is above 2.5 sqrt(2 / n). Equal distributions exceed that once in 140,000 cases.
    """
    true_features, generated_features = (
        primary_features(events.primaries[one_per_shower(events)]).T for events in (truth, generated)
    )
    warnings = []
    for name, a, b in zip(PRIMARY_FEATURES, true_features, generated_features, strict=True):
        outside = max(_share_outside(a, b), _share_outside(b, a))
        distance = _kolmogorov(a, b) / np.sqrt(1 / len(a) + 1 / len(b))
        if outside > 0.01 or distance > 2.5:
            warnings.append(
                f"the generated primaries differ from the true ones in {name}: {100 * outside:.1f} % lie outside the "
                f"range of the other set, and the distance of the distributions is {distance:.1f} times the scale of "
                "chance. Every figure below includes this difference; generate for the true primaries instead"
            )
    return warnings


def _next_shower(showers: Int64[np.ndarray, " events"], start: int) -> int:
    """Return the first index >= start where a new shower begins, or where the last shower begins if there is none."""
    begins = np.flatnonzero(np.diff(showers)) + 1
    return int(begins[min(int(np.searchsorted(begins, start)), len(begins) - 1)])


def _same_primaries(one: EventHeaders, other: EventHeaders) -> tuple[Rows, Rows]:
    """Return the rows in each set of the events that both have (same ids and primary), in the first set's order."""
    _, one_rows, other_rows = np.intersect1d(_keys(one), _keys(other), return_indices=True)
    order = np.argsort(one_rows)
    return one_rows[order], other_rows[order]


def _keys(events: EventHeaders) -> np.ndarray:
    """Return the bytes of ids and primary of each event as one value."""
    parts = [np.ascontiguousarray(part).view(np.uint8) for part in (events.ids, events.primaries)]
    rows = np.concatenate(parts, axis=1)
    return np.ascontiguousarray(rows).view(f"V{rows.shape[1]}").ravel()


def _some_showers(events: EventHeaders, size: int, seed: int) -> Rows:
    """Draw whole showers, up to `size` events; the last shower may be cut."""
    (showers,) = shower_numbers(events.ids)
    return np.sort(_shuffle_showers(showers, seed)[:size])


def _shuffle_showers(showers: Int64[np.ndarray, " events"], seed: int) -> Rows:
    """Return the rows with the showers in random order; the events of a shower stay together."""
    order = np.random.default_rng(seed).permutation(int(showers.max()) + 1)
    return np.argsort(order[showers], kind="stable")


def _share_outside(values: Float64[np.ndarray, " n"], bounds: Float64[np.ndarray, " m"]) -> float:
    slack = 1e-6 * max(abs(bounds.min()), abs(bounds.max()))
    return float(((values < bounds.min() - slack) | (values > bounds.max() + slack)).mean())


def _kolmogorov(a: Float64[np.ndarray, " n"], b: Float64[np.ndarray, " m"]) -> float:
    values = np.unique(np.concatenate([a, b]))
    below = [np.searchsorted(np.sort(part), values, side="right") / len(part) for part in (a, b)]
    return float(np.abs(below[0] - below[1]).max())
