"""Which events are compared with which: independent halves of the truth, and generated events of one half's primaries.

Generated events that have the primaries of the true events they are compared with are too alike: a classifier that has
seen a primary with one label finds it again with the other, and its AUC falls below one half. So the truth is cut in two by
showers, generated events have the primaries of the second half, and both are compared with the first half.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64, Int64

from crmuons.data.schema import PRIMARY_FEATURES
from crmuons.evaluation.headers import EventHeaders
from crmuons.evaluation.metrics.quantities import primary_features, shower_numbers

SHARED_SHARE = 0.5  # Two data sets that have half of their events' primaries in common were not drawn independently.

Rows = Int64[np.ndarray, " rows"]


@dataclass(frozen=True)
class Pairing:
    """Rows of two data sets: equal numbers of events to compare.

    Attributes:
        truth, control: of the true events; they share no shower.
        generated: of the generated events, those of the control's primaries where the sets share primaries.
        paired: of true and of generated events with the same primaries in the same order; None where there are none.
    """

    truth: Rows
    control: Rows
    generated: Rows
    paired: tuple[Rows, Rows] | None


def halve(truth: EventHeaders, max_events: int, seed: int) -> tuple[Rows, Rows]:
    """Two sets of at most so many events each, that share no shower.

    Raises:
        ValueError: if there are fewer than two showers.
    """
    (showers,) = shower_numbers(truth.ids)
    number = int(showers.max()) + 1 if len(showers) else 0
    if number < 2:
        msg = (
            f"{len(truth)} true events of {number} shower are too few to hold truth against truth: give events of two showers "
            "or more, better of 20,000, and ask for them (--events)"
        )
        raise ValueError(msg)
    order = np.argsort(np.random.default_rng(seed).permutation(number)[showers], kind="stable")
    first_of_second = _next_shower(showers[order], min(max_events, len(order) // 2))
    size = min(max_events, first_of_second, len(order) - first_of_second)
    return np.sort(order[:size]), np.sort(order[first_of_second : first_of_second + size])


def pair_data(truth: EventHeaders, generated: EventHeaders, max_events: int, seed: int) -> Pairing:
    """What to compare of two data sets, which may or may not hold the same primaries.

    Raises:
        ValueError: if there are no generated events, or fewer than two showers of true ones.
    """
    if not len(generated):
        msg = "there are no generated events"
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
    """Whether generated events have the ids and primaries of true ones, as those have that were generated for them."""
    fewest = min(len(truth), len(generated))
    return fewest > 0 and len(_same_primaries(truth, generated)[0]) >= SHARED_SHARE * fewest


def one_per_shower(events: EventHeaders, seed: int = 0) -> Rows:
    """One event of each shower, at random (the first may always be the shallowest): independent of each other."""
    order = np.random.default_rng(seed).permutation(len(events))
    (showers,) = shower_numbers(events.ids[order])
    rows: np.ndarray = order[np.unique(showers, return_index=True)[1]]
    return rows


def range_warnings(truth: EventHeaders, generated: EventHeaders) -> list[str]:
    """What is to be said where generated events have other primaries than true ones, quantity by quantity.

    Said where more than 1 % of either side lie outside the other's range, or where Kolmogorov's distance of one event per
    shower is beyond 2.5 times its scale sqrt(2 / n): equal distributions get there once in 140,000 cases.
    """
    one, other = (primary_features(events.primaries[one_per_shower(events)]).T for events in (truth, generated))
    warnings = []
    for name, a, b in zip(PRIMARY_FEATURES, one, other, strict=True):
        outside = max(_share_outside(a, b), _share_outside(b, a))
        distance = _kolmogorov(a, b) / np.sqrt(1 / len(a) + 1 / len(b))
        if outside > 0.01 or distance > 2.5:
            warnings.append(
                f"the generated primaries differ from the true ones in {name}: {100 * outside:.1f} % lie outside the other's "
                f"range, and their distributions are {distance:.1f} times apart what chance explains. "
                "Every figure below measures that too; generate for the true events' primaries instead"
            )
    return warnings


def _next_shower(showers: Int64[np.ndarray, " events"], start: int) -> int:
    """Where, at or after a place, a new shower begins (at the last shower at the latest)."""
    begins = np.flatnonzero(np.diff(showers)) + 1
    return int(begins[min(int(np.searchsorted(begins, start)), len(begins) - 1)])


def _same_primaries(one: EventHeaders, other: EventHeaders) -> tuple[Rows, Rows]:
    """Where events of the same ids and primary are in each set, in the first set's order."""
    _, at_one, at_other = np.intersect1d(_keys(one), _keys(other), return_indices=True)
    order = np.argsort(at_one)
    return at_one[order], at_other[order]


def _keys(events: EventHeaders) -> np.ndarray:
    parts = [np.ascontiguousarray(part).view(np.uint8) for part in (events.ids, events.primaries)]
    rows = np.concatenate(parts, axis=1)
    return np.ascontiguousarray(rows).view(f"V{rows.shape[1]}").ravel()


def _some_showers(events: EventHeaders, size: int, seed: int) -> Rows:
    (showers,) = shower_numbers(events.ids)
    order = np.argsort(np.random.default_rng(seed).permutation(int(showers.max()) + 1)[showers], kind="stable")
    return np.sort(order[:size])


def _share_outside(values: Float64[np.ndarray, " n"], bounds: Float64[np.ndarray, " m"]) -> float:
    slack = 1e-6 * max(abs(bounds.min()), abs(bounds.max()))
    return float(((values < bounds.min() - slack) | (values > bounds.max() + slack)).mean())


def _kolmogorov(a: Float64[np.ndarray, " n"], b: Float64[np.ndarray, " m"]) -> float:
    values = np.unique(np.concatenate([a, b]))
    below = [np.searchsorted(np.sort(part), values, side="right") / len(part) for part in (a, b)]
    return float(np.abs(below[0] - below[1]).max())
