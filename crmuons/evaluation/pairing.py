"""Which events are compared with which: independent halves of the truth, and generated events of one half's primaries.

Generated events that have the primaries of the true events they are compared with are too alike: a classifier that has
seen a primary with one label finds it again with the other, and its AUC falls below one half. So the truth is cut in two by
showers, generated events have the primaries of the second half, and both are compared with the first half.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64, Int64

from crmuons.evaluation.summaries import primary_features, shower_numbers
from crmuons.reader import concat, take
from crmuons.schema import PRIMARY_FEATURES, EventArrays

SHARED_SHARE = 0.5  # Two data sets that have half of their events' primaries in common were not drawn independently.


@dataclass(frozen=True)
class Sides:
    """Equal numbers of events to compare.

    Attributes:
        truth: the reference.
        control: true events of other showers: `control` against `truth` is the floor.
        generated: generated events, of the control's primaries where that is possible.
        paired: true and generated events of the same primaries in the same order, for ratios; None where there are none.
    """

    truth: EventArrays
    control: EventArrays
    generated: EventArrays
    paired: tuple[EventArrays, EventArrays] | None

    def showers(self) -> tuple[Int64[np.ndarray, " events"], ...]:
        """Shower numbers of truth, control and generated events, from 0 on for the first two."""
        truth, control, generated = shower_numbers(self.truth.ids, self.control.ids, self.generated.ids)
        return truth, control, generated


def halve(truth: EventArrays, max_events: int, seed: int) -> tuple[EventArrays, EventArrays]:
    """Two sets of at most so many events each, that share no shower.

    Raises:
        ValueError: if there are fewer than two showers.
    """
    (showers,) = shower_numbers(truth.ids)
    number = int(showers.max()) + 1 if len(showers) else 0
    if number < 2:
        msg = f"{number} showers are too few to hold truth against truth; at least two are needed, better 20,000"
        raise ValueError(msg)
    order = np.argsort(np.random.default_rng(seed).permutation(number)[showers], kind="stable")
    first_of_second = _next_shower(showers[order], min(max_events, len(order) // 2))
    size = min(max_events, first_of_second, len(order) - first_of_second)
    return take(truth, order[:size]), take(truth, order[first_of_second : first_of_second + size])


def pair_data(truth: EventArrays, generated: EventArrays, max_events: int, seed: int) -> Sides:
    """Sides for two data sets, which may or may not hold the same primaries."""
    if not len(generated.counts):
        msg = "there are no generated events"
        raise ValueError(msg)
    if not share_primaries(truth, generated):
        first, second = halve(truth, min(max_events, len(generated.counts)), seed)
        return Sides(first, second, _some_showers(generated, len(second.counts), seed), paired=None)
    in_truth, in_generated = _same_primaries(truth, generated)
    truth, generated = take(truth, in_truth), take(generated, in_generated)
    first, second = halve(truth, max_events, seed)
    _, of_second = _same_primaries(second, generated)
    both = concat([first, second])
    in_both, of_both = _same_primaries(both, generated)
    return Sides(first, second, take(generated, of_second), paired=(take(both, in_both), take(generated, of_both)))


def share_primaries(truth: EventArrays, generated: EventArrays) -> bool:
    """Whether generated events have the ids and primaries of true ones, as those have that were generated for them."""
    fewest = min(len(truth.counts), len(generated.counts))
    return fewest > 0 and len(_same_primaries(truth, generated)[0]) >= SHARED_SHARE * fewest


def one_per_shower(events: EventArrays, seed: int = 0) -> EventArrays:
    """One event of each shower, at random (the first may always be the shallowest): independent of each other."""
    events = take(events, np.random.default_rng(seed).permutation(len(events.counts)))
    (showers,) = shower_numbers(events.ids)
    return take(events, np.unique(showers, return_index=True)[1])


def range_warnings(truth: EventArrays, generated: EventArrays) -> list[str]:
    """What is to be said where generated events have other primaries than true ones, quantity by quantity.

    Said where more than 1 % of either side lie outside the other's range, or where Kolmogorov's distance of one event per
    shower is beyond 2.5 times its scale sqrt(2 / n): equal distributions get there once in 140,000 cases.
    """
    one, other = (primary_features(one_per_shower(events).primaries).T for events in (truth, generated))
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


def _same_primaries(
    one: EventArrays, other: EventArrays
) -> tuple[Int64[np.ndarray, " events"], Int64[np.ndarray, " events"]]:
    """Where events of the same ids and primary are in each set, in the first set's order."""
    _, at_one, at_other = np.intersect1d(_keys(one), _keys(other), return_indices=True)
    order = np.argsort(at_one)
    return at_one[order], at_other[order]


def _keys(events: EventArrays) -> np.ndarray:
    parts = [np.ascontiguousarray(part).view(np.uint8) for part in (events.ids, events.primaries)]
    rows = np.concatenate(parts, axis=1)
    return np.ascontiguousarray(rows).view(f"V{rows.shape[1]}").ravel()


def _some_showers(events: EventArrays, size: int, seed: int) -> EventArrays:
    (showers,) = shower_numbers(events.ids)
    return take(events, np.argsort(np.random.default_rng(seed).permutation(int(showers.max()) + 1)[showers])[:size])


def _share_outside(values: Float64[np.ndarray, " n"], bounds: Float64[np.ndarray, " m"]) -> float:
    slack = 1e-6 * max(abs(bounds.min()), abs(bounds.max()))
    return float(((values < bounds.min() - slack) | (values > bounds.max() + slack)).mean())


def _kolmogorov(a: Float64[np.ndarray, " n"], b: Float64[np.ndarray, " m"]) -> float:
    values = np.unique(np.concatenate([a, b]))
    below = [np.searchsorted(np.sort(part), values, side="right") / len(part) for part in (a, b)]
    return float(np.abs(below[0] - below[1]).max())
