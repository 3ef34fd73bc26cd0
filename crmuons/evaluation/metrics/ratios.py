"""Ratios of rates to the truth, with statistical errors: multiplicity and tails."""

import math

import numpy as np
from jaxtyping import Float64, Int64

from crmuons.evaluation.metrics.distances import Estimate, Missing, Number
from crmuons.evaluation.metrics.quantities import Sample, event_of_muon

MIN_TAIL_EVENTS = 10  # Ten events have a relative error of a third.


def multiplicity(truth: Sample, other: Sample) -> dict[str, Number]:
    """Compare multiplicities: ratios of mean and variance, and difference of the share of empty events (other - true).

    The variance is computed for log10(N + 1), because a few of the largest events dominate the variance of N.
    """
    logs = [sample.bundles["log_num_muons"] for sample in (truth, other)]
    errors = [_variance_error(values, sample.showers) for values, sample in zip(logs, (truth, other), strict=True)]
    empty = [mean_and_error(sample.counts == 0, sample.showers) for sample in (truth, other)]
    return {
        "mean_muons_ratio": ratio(truth, other, truth.counts, other.counts),
        "log_multiplicity_variance_ratio": quotient(
            (float(logs[0].var()), errors[0]), (float(logs[1].var()), errors[1])
        ),
        "empty_share_difference": Estimate(empty[1][0] - empty[0][0], math.hypot(empty[0][1], empty[1][1])),
    }


# Events with N above a threshold, and muons beyond a threshold of a quantity.
EVENT_TAILS = {f"events_n_above_{n}": n for n in (10, 100, 1000, 10000)}
MUON_TAILS = {
    "muons_above_1_tev": ("log_energy", 3.0),
    "muons_above_10_tev": ("log_energy", 4.0),
    "muons_above_100_tev": ("log_energy", 5.0),
    "muons_beyond_50_m": ("log_radius", math.log10(50)),
    "muons_beyond_100_m": ("log_radius", 2.0),
    "muons_beyond_200_m": ("log_radius", math.log10(200)),
}


def tails(truth: Sample, other: Sample) -> dict[str, Number]:
    """Return the ratios (other/true) of how many events, or muons per event, lie beyond a threshold.

    The events and muons of one shower are not independent and count as one fluctuation.
    """
    numbers: dict[str, Number] = {}
    for name, muons in EVENT_TAILS.items():
        numbers[name] = tail_ratio(truth, other, *(s.counts > muons for s in (truth, other)))
    for name, (quantity, threshold) in MUON_TAILS.items():
        numbers[name] = tail_ratio(truth, other, *(muons_beyond(s, quantity, threshold) for s in (truth, other)))
    return numbers


def muons_beyond(sample: Sample, quantity: str, threshold: float) -> Int64[np.ndarray, " events"]:
    """Count the muons of each event that have the quantity above the threshold."""
    event = event_of_muon(sample.counts)
    beyond: np.ndarray = np.bincount(event[sample.muons[quantity] > threshold], minlength=len(sample))
    return beyond


def ratio(truth: Sample, other: Sample, true_values: np.ndarray, values: np.ndarray) -> Number:
    """Return the ratio of the means over events (other/true), with its standard error."""
    mean, error = mean_and_error(values, other.showers)
    # A mean of 0 has no spread, but it is not exact: one event could have been there.
    return quotient(mean_and_error(true_values, truth.showers), (mean, error if mean > 0 else 1 / len(values)))


def tail_ratio(truth: Sample, other: Sample, true_values: np.ndarray, values: np.ndarray) -> Number:
    """Return `ratio`, or Missing if fewer than MIN_TAIL_EVENTS true events have a value above 0."""
    events = int(np.count_nonzero(true_values))
    if events < MIN_TAIL_EVENTS:
        return Missing(f"{events} true events in the tail, {MIN_TAIL_EVENTS} needed")
    return ratio(truth, other, true_values, values)


def quotient(truth: tuple[float, float], other: tuple[float, float]) -> Number:
    """Divide the other value by the true value, both with standard errors; Missing if the true value is zero."""
    (true_value, true_error), (value, error) = truth, other
    if true_value == 0:
        return Missing("the true value is zero")
    return Estimate(value / true_value, math.hypot(error, true_error * value / true_value) / true_value)


def paired_ratio(true_values: np.ndarray, values: np.ndarray, showers: Int64[np.ndarray, " events"]) -> Number:
    """Return the ratio of means over events with the same primaries in the same order, so that their spread cancels."""
    true_mean, mean = float(true_values.mean()), float(values.mean())
    if true_mean == 0:
        return Missing("the true mean is zero")
    # Below 1, take the error of a perfect generator, because a generator that draws no muons has no spread.
    _, error = mean_and_error(values - max(mean / true_mean, 1.0) * true_values, showers)
    return Estimate(mean / true_mean, error / true_mean)


def mean_and_error(values: np.ndarray, showers: Int64[np.ndarray, " events"]) -> tuple[float, float]:
    """Return the mean over events and its standard error; the events of one shower count as one fluctuation."""
    mean = float(np.mean(values))
    of_shower = np.bincount(np.unique(showers, return_inverse=True)[1].ravel(), values - mean)
    return mean, math.sqrt(float(of_shower @ of_shower)) / len(values)


def _variance_error(values: Float64[np.ndarray, " events"], showers: Int64[np.ndarray, " events"]) -> float:
    return mean_and_error((values - values.mean()) ** 2, showers)[1]
