"""Numbers that say how far one set of events is from another. Definitions and readings: docs/metrics.md."""

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Float64, Int64

from crmuons.data.events import EventArrays
from crmuons.evaluation.metrics.quantities import BUNDLE_QUANTITIES, MUON_QUANTITIES, Sample

# The list over which the score is a mean: two quantities of the muons, eight of the bundles.
SCORED = (
    "log_energy",
    "log_radius",
    "log_num_muons",
    "log_total_energy",
    "log_leading_energy",
    "log_mean_radius",
    "log_weighted_radius",
    "spread_log_energy",
    "spread_log_radius",
    "correlation",
)
QUANTITIES = (*MUON_QUANTITIES, *BUNDLE_QUANTITIES)
MIN_SHOWERS = 100  # Two samples of 100 from one normal are 0.18 sigma apart: below, W1 measures the sample alone.


@dataclass(frozen=True)
class Estimate:
    """A number and its standard error, where it has one."""

    value: float
    error: float | None = None


@dataclass(frozen=True)
class Missing:
    """Why there is no number."""

    reason: str


Number = Estimate | Missing


def fidelity(truth: EventArrays, generated: EventArrays) -> dict[str, float]:
    """Distances of generated events from true ones, cheap enough for the training loop.

    Args:
        truth: events, best with the primaries of `generated`: the spread of the primaries then cancels.
        generated: as many events.

    Returns:
        `w1_<quantity>`: W1/sigma of each quantity in SCORED, infinite where the truth has it and the generated events do
        not; `score`: their mean; `mean_muons_ratio` and `empty_share_difference` (generated - true). A quantity that
        fewer than MIN_SHOWERS true events have, or in which they do not differ, is left out; `score` too, where all are.
    """
    true_sample, generated_sample = Sample.of(truth), Sample.of(generated)
    distances = {
        f"w1_{name}": scaled_wasserstein(true_sample.values(name), generated_sample.values(name))
        for name in SCORED
        if lacking(true_sample, name) is None
    }
    mean = {"score": float(np.mean(list(distances.values())))} if distances else {}
    return (
        distances
        | mean
        | {
            "mean_muons_ratio": float(generated.counts.mean() / truth.counts.mean())
            if truth.counts.any()
            else math.inf,
            "empty_share_difference": float((generated.counts == 0).mean() - (truth.counts == 0).mean()),
        }
    )


def scaled_wasserstein(truth: Float[np.ndarray, " n"], other: Float[np.ndarray, " m"]) -> float:
    """W1/sigma: the Wasserstein-1 distance in units of the truth's standard deviation.

    A shift by s sigma gives s. Two samples of n values from one normal give 1.8 / sqrt(n) on average: it is biased
    upwards, and means something only beside truth against truth of the same size.

    Returns:
        Infinity if `other` has no values.
    """
    if not len(other):
        return math.inf
    return wasserstein(truth, other) / float(truth.std(dtype=np.float64))


def wasserstein(a: Float[np.ndarray, " n"], b: Float[np.ndarray, " m"]) -> float:
    """The Wasserstein-1 distance of two samples: the integral of |F_a - F_b| over the values.

    Ramdas, Garcia, Cuturi 2015 (arXiv:1509.02237), eq. 5, in one sort. In the unit of the values.
    """
    values = np.concatenate([a, b])
    order = np.argsort(values)
    return _area_between(order < len(a), np.diff(values[order]))


def distances(truth: Sample, other: Sample) -> dict[str, Number]:
    """W1/sigma of every quantity, and `score`, the mean over the list SCORED.

    Absent where fewer than MIN_SHOWERS showers of either side have the quantity, or all have the same value.
    """
    numbers: dict[str, Number] = {}
    for name in QUANTITIES:
        absent = lacking(truth, name) or lacking(other, name)
        numbers[f"w1_{name}"] = absent or Estimate(scaled_wasserstein(truth.values(name), other.values(name)))
    return numbers | {"score": score(numbers)}


def lacking(sample: Sample, name: str, needed: int = MIN_SHOWERS) -> Missing | None:
    """Why a quantity cannot be compared by W1/sigma; None where it can."""
    showers = sample.num_showers(name)
    if showers < needed:
        return Missing(f"{showers} showers have it, {needed} needed")
    return None if np.ptp(sample.values(name)) > 0 else Missing("all values are the same")


def score(numbers: dict[str, Number]) -> Number:
    """The mean W1/sigma over SCORED; absent if one of the list is, since a shorter list is another figure."""
    values = []
    for name in SCORED:
        number = numbers[f"w1_{name}"]
        if isinstance(number, Missing):
            return Missing(f"w1_{name}: {number.reason}")
        values.append(number.value)
    return Estimate(float(np.mean(values)))


def null_distances(pool: Sample, splits: Bool[np.ndarray, "splits showers"]) -> dict[str, Number]:
    """The floor: `distances` of true events from true events, mean and standard deviation over splits of a pool in two.

    The standard deviation is that of a single comparison, the spread to expect of a perfect generator.

    Args:
        pool: true events, whose showers are numbered from 0.
        splits: for each split, which showers make its first half. Whole showers: the depths of one shower are alike.
    """
    by_split: dict[str, Float64[np.ndarray, " splits"]] = {}
    numbers: dict[str, Number] = {}
    for name in QUANTITIES:
        absent = lacking(pool, name, needed=2 * MIN_SHOWERS)
        if absent is None:
            values, showers = pool.values_and_showers(name)
            by_split[name] = np.array(_split_distances(values, showers, splits)) / values.std(dtype=np.float64)
        numbers[f"w1_{name}"] = absent or _mean_and_spread(by_split[name])
    complete = all(name in by_split for name in SCORED)
    numbers["score"] = _mean_and_spread(np.mean([by_split[n] for n in SCORED], axis=0)) if complete else score(numbers)
    return numbers


def random_splits(showers: int, splits: int, seed: int) -> Bool[np.ndarray, "splits showers"]:
    """Random halves of a number of showers."""
    rng = np.random.default_rng(seed)
    halves: np.ndarray = rng.permuted(np.tile(np.arange(showers) < showers // 2, (splits, 1)), axis=1)
    return halves


def _area_between(first: Bool[np.ndarray, " values"], gaps: Float[np.ndarray, " gaps"]) -> float:
    """The area between the distribution functions of two samples, merged in ascending order."""
    num_first = int(first.sum())
    steps = np.where(first, 1 / num_first, -1 / (len(first) - num_first))
    return float(np.abs(np.cumsum(steps)[:-1]) @ gaps)


def _split_distances(
    values: Float[np.ndarray, " values"],
    showers: Int64[np.ndarray, " values"],
    splits: Bool[np.ndarray, "splits showers"],
) -> list[float]:
    """W1 between the two halves of each split; one sort serves all."""
    order = np.argsort(values)
    gaps, showers = np.diff(values[order]), showers[order]
    return [_area_between(half[showers], gaps) for half in splits]


def _mean_and_spread(values: Float64[np.ndarray, " splits"]) -> Estimate:
    return Estimate(float(values.mean()), float(values.std(ddof=1)))
