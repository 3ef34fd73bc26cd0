"""How many: ratios of rates with their statistical errors, tails, and whether a model's multiplicities are calibrated."""

import math

import numpy as np
from jaxtyping import Float64, Int64

from crmuons.evaluation.metrics.distances import Estimate, Missing, Number
from crmuons.evaluation.metrics.quantities import Sample, event_of_muon

MIN_TAIL_EVENTS = 10  # A ratio to ten events is uncertain by a third.


def multiplicity(truth: Sample, other: Sample) -> dict[str, Number]:
    """Mean ratio, variance ratio and difference of the share of empty events (other - true), with standard errors.

    The variance is that of log10(N + 1): that of N is the few largest events' alone.
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


# What is counted in each event, by name: muons or (0 or 1) events beyond a threshold.
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
    """Ratio (other to true) of how many events, or muons per event, lie beyond a threshold.

    The errors are Poisson's where an event contributes one; muons of one shower come together, and count as one.
    """
    numbers: dict[str, Number] = {}
    for name, muons in EVENT_TAILS.items():
        numbers[name] = tail_ratio(truth, other, *(s.counts > muons for s in (truth, other)))
    for name, (quantity, threshold) in MUON_TAILS.items():
        numbers[name] = tail_ratio(truth, other, *(muons_beyond(s, quantity, threshold) for s in (truth, other)))
    return numbers


def muons_beyond(sample: Sample, quantity: str, threshold: float) -> Int64[np.ndarray, " events"]:
    """How many muons of each event have the quantity above the threshold."""
    event = event_of_muon(sample.counts)
    beyond: np.ndarray = np.bincount(event[sample.muons[quantity] > threshold], minlength=len(sample))
    return beyond


def ratio(truth: Sample, other: Sample, true_values: np.ndarray, values: np.ndarray) -> Number:
    """Ratio of the means over events (other to true), with its standard error."""
    mean, error = mean_and_error(values, other.showers)
    # Where nothing was seen, one event might have been: no spread does not mean no error.
    return quotient(mean_and_error(true_values, truth.showers), (mean, error if mean > 0 else 1 / len(values)))


def tail_ratio(truth: Sample, other: Sample, true_values: np.ndarray, values: np.ndarray) -> Number:
    """`ratio`, absent where fewer than MIN_TAIL_EVENTS true events have any."""
    events = int(np.count_nonzero(true_values))
    if events < MIN_TAIL_EVENTS:
        return Missing(f"{events} true events in the tail, {MIN_TAIL_EVENTS} needed")
    return ratio(truth, other, true_values, values)


def quotient(truth: tuple[float, float], other: tuple[float, float]) -> Number:
    """The second value over the first, each with its standard error; absent where the first is zero."""
    (true_value, true_error), (value, error) = truth, other
    if true_value == 0:
        return Missing("the true value is zero")
    return Estimate(value / true_value, math.hypot(error, true_error * value / true_value) / true_value)


def paired_ratio(true_values: np.ndarray, values: np.ndarray, showers: Int64[np.ndarray, " events"]) -> Number:
    """Ratio of the means over events with the same primaries in the same order; what the primaries do cancels."""
    true_mean, mean = float(true_values.mean()), float(values.mean())
    if true_mean == 0:
        return Missing("the true mean is zero")
    # Below one, the error is that of a perfect generator: where it drew nothing at all, its own spread says nothing.
    _, error = mean_and_error(values - max(mean / true_mean, 1.0) * true_values, showers)
    return Estimate(mean / true_mean, error / true_mean)


def mean_and_error(values: np.ndarray, showers: Int64[np.ndarray, " events"]) -> tuple[float, float]:
    """The mean over events and its standard error, in which the events of one shower count as one fluctuation."""
    mean = float(np.mean(values))
    of_shower = np.bincount(np.unique(showers, return_inverse=True)[1].ravel(), values - mean)
    return mean, math.sqrt(float(of_shower @ of_shower)) / len(values)


def _variance_error(values: Float64[np.ndarray, " events"], showers: Int64[np.ndarray, " events"]) -> float:
    return mean_and_error((values - values.mean()) ** 2, showers)[1]
