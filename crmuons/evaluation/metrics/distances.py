"""Distances of single quantities between two sets of events, in standard deviations (W1/sigma); see docs/metrics.md."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Float64, Int64

from crmuons.data.events import EventArrays
from crmuons.data.features import MuonFeature
from crmuons.evaluation.metrics.quantities import BUNDLE_QUANTITIES, EXTRA, MUON_QUANTITIES, Sample

# The score is the mean over these: two quantities of the muons and eight of the bundles.
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
MIN_SHOWERS = 100  # W1 of two normal samples of 100 is 0.18 sigma. With fewer, W1 shows only the sample size.
# Values in single precision that are equal differ by 1e-7 after a logarithm; a sigma of that size gave scores of 1e11.
SAME = 1e-5
SPLITS = 24  # Splits of the truth into two halves. Their standard deviation is then known to a seventh.


@dataclass(frozen=True)
class Estimate:
    """A number and its standard error, if it has one."""

    value: float
    error: float | None = None


@dataclass(frozen=True)
class Missing:
    """The reason why there is no number."""

    reason: str


Number = Estimate | Missing


def fidelity(truth: EventArrays, generated: EventArrays, further: Sequence[MuonFeature] = ()) -> dict[str, float]:
    """Compute distances of generated from true events that are cheap enough for the training loop.

    Args:
        truth: true events, best with the primaries of `generated`, so that the spread of the primaries cancels.
        generated: generated events, best of the same number.
        further: features of their muons beyond the first three.

    Returns:
        `w1_<quantity>`: W1/sigma of each quantity in SCORED, and of the further features. It is infinite if the true
        events have the quantity and the generated events do not. `score`: the mean over SCORED. `mean_muons_ratio` and
        `empty_share_difference` (generated - true).

        A quantity is left out if fewer than MIN_SHOWERS true events have it, or if it is the same in all of them. The
        score is left out if one quantity of SCORED is, because a mean over another list cannot be compared.
    """
    true_sample, generated_sample = (Sample.of(events, further=further) for events in (truth, generated))
    distances = {
        f"w1_{name}": scaled_wasserstein(true_sample.values(name), generated_sample.values(name))
        for name in SCORED
        if lacking(true_sample, name) is None
    }
    mean = {"score": float(np.mean(list(distances.values())))} if len(distances) == len(SCORED) else {}
    for name in (name for name in true_sample.quantities if name.startswith(EXTRA)):
        if lacking(true_sample, name) is None:
            both = (sample.values(name) for sample in (true_sample, generated_sample))
            distances[figure_name(name)] = scaled_wasserstein(*both)
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


def figure_name(quantity: str) -> str:
    """Return the name of a quantity's W1/sigma; a feature of the user's own may have the name of another quantity."""
    name = quantity.removeprefix(EXTRA)
    return f"w1_muon_{name}" if quantity != name and name in QUANTITIES else f"w1_{name}"


def unscored(truth: EventArrays) -> dict[str, Missing]:
    """Return the quantities in SCORED that true events cannot give a score for, with the reasons."""
    sample = Sample.of(truth)
    return {name: reason for name in SCORED if (reason := lacking(sample, name)) is not None}


def events_for_score(truth: EventArrays) -> int | None:
    """Return how many events like these a score needs; None if these events suggest that no number is enough."""
    sample = Sample.of(truth)
    if any(np.ptp(sample.values(name)) <= SAME for name in SCORED if sample.num_showers(name)):
        return None
    fewest = min(sample.num_showers(name) for name in SCORED)
    return math.ceil(len(truth.counts) * MIN_SHOWERS / fewest) if fewest else None


def scaled_wasserstein(truth: Float[np.ndarray, " n"], other: Float[np.ndarray, " m"]) -> float:
    """Return W1/sigma: the Wasserstein-1 distance in units of the truth's standard deviation.

    A shift by s sigma gives s. Two samples of n values from one normal give 1.8 / sqrt(n) on average. This bias means
    that the value must be compared with truth against truth of the same size.

    Returns:
        W1/sigma; infinity if `other` has no values.
    """
    if not len(other):
        return math.inf
    return wasserstein(truth, other) / float(truth.std(dtype=np.float64))


def wasserstein(a: Float[np.ndarray, " n"], b: Float[np.ndarray, " m"]) -> float:
    """Return the Wasserstein-1 distance of two samples, in the unit of the values: the integral of |F_a - F_b|.

    Ramdas, Garcia, Cuturi 2015 (arXiv:1509.02237), eq. 5, with one sort.
    """
    values = np.concatenate([a, b])
    order = np.argsort(values)
    return _area_between(order < len(a), np.diff(values[order]))


def distances(truth: Sample, other: Sample) -> dict[str, Number]:
    """Return W1/sigma of every quantity, and `score`, the mean over SCORED.

    A number is Missing if fewer than MIN_SHOWERS showers of either sample have the quantity, or all have the same
    value.
    """
    numbers: dict[str, Number] = {}
    for name in (name for name in truth.quantities if not name.startswith(EXTRA) or name in other.muons):
        missing = lacking(truth, name) or lacking(other, name)
        numbers[figure_name(name)] = missing or Estimate(scaled_wasserstein(truth.values(name), other.values(name)))
    return numbers | {"score": score(numbers)}


def lacking(sample: Sample, name: str, needed: int = MIN_SHOWERS) -> Missing | None:
    """Return why a quantity cannot be compared by W1/sigma; None if it can."""
    showers = sample.num_showers(name)
    if showers < needed:
        return Missing(f"{showers} showers have it, {needed} needed")
    return None if np.ptp(sample.values(name)) > SAME else Missing("all values are the same")


def score(numbers: dict[str, Number]) -> Number:
    """Return the mean W1/sigma over SCORED; Missing if one is missing, because a shorter list is a different figure."""
    scored = {name: numbers[f"w1_{name}"] for name in SCORED}
    missing = {name: number for name, number in scored.items() if isinstance(number, Missing)}
    if missing:
        return Missing(describe_missing(missing))
    return Estimate(float(np.mean([number.value for number in scored.values() if isinstance(number, Estimate)])))


def describe_missing(missing: dict[str, Missing]) -> str:
    """Return the names of missing quantities, grouped by the reason, with each reason."""
    by_reason: dict[str, list[str]] = {}
    for name, number in missing.items():
        by_reason.setdefault(number.reason, []).append(name)
    return "; ".join(f"{', '.join(names)}: {reason}" for reason, names in by_reason.items())


def null_distances(pool: Sample, splits: Bool[np.ndarray, "splits showers"]) -> dict[str, Number]:
    """Return the null distribution of `distances` (the floor): truth against truth.

    The values are mean and standard deviation over splits of a pool into two halves. The standard deviation is the
    uncertainty of one comparison with a perfect generator.

    Args:
        pool: true events, with showers numbered from 0.
        splits: for each split, the showers in its first half. Showers stay whole, because events of one shower at
            several depths are alike.
    """
    by_split: dict[str, Float64[np.ndarray, " splits"]] = {}
    numbers: dict[str, Number] = {}
    for name in pool.quantities:
        missing = lacking(pool, name, needed=2 * MIN_SHOWERS)
        if missing is None:
            values, showers = pool.values_and_showers(name)
            by_split[name] = np.array(_split_distances(values, showers, splits)) / values.std(dtype=np.float64)
        numbers[figure_name(name)] = missing or _mean_and_spread(by_split[name])
    complete = all(name in by_split for name in SCORED)
    numbers["score"] = _mean_and_spread(np.mean([by_split[n] for n in SCORED], axis=0)) if complete else score(numbers)
    return numbers


def random_splits(pool: Sample, seed: int) -> Bool[np.ndarray, "splits showers"]:
    """Draw SPLITS random splits of the pool's showers into two halves; return the first half of each."""
    rng, showers = np.random.default_rng(seed), int(pool.showers.max()) + 1
    halves: np.ndarray = rng.permuted(np.tile(np.arange(showers) < showers // 2, (SPLITS, 1)), axis=1)
    return halves


def _area_between(first: Bool[np.ndarray, " values"], gaps: Float[np.ndarray, " gaps"]) -> float:
    """Return the area between two distribution functions; `first` marks the sorted values of the first sample."""
    num_first = int(first.sum())
    steps = np.where(first, 1 / num_first, -1 / (len(first) - num_first))
    return float(np.abs(np.cumsum(steps)[:-1]) @ gaps)


def _split_distances(
    values: Float[np.ndarray, " values"],
    showers: Int64[np.ndarray, " values"],
    splits: Bool[np.ndarray, "splits showers"],
) -> list[float]:
    """Return W1 between the two halves of each split, with one sort for all."""
    order = np.argsort(values)
    gaps, showers = np.diff(values[order]), showers[order]
    return [_area_between(half[showers], gaps) for half in splits]


def _mean_and_spread(values: Float64[np.ndarray, " splits"]) -> Estimate:
    return Estimate(float(values.mean()), float(values.std(ddof=1)))
