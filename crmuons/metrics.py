"""Numbers that say how far one set of events is from another. Definitions and readings: docs/metrics.md."""

import math

import numpy as np
from jaxtyping import Float64

from crmuons.schema import EventArrays
from crmuons.summaries import bundle_summaries, muon_quantities

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
MIN_VALUES = 100  # Two samples of 100 from one normal are 0.18 sigma apart: below that, W1 measures the sample alone.


def fidelity(truth: EventArrays, generated: EventArrays) -> dict[str, float]:
    """Distances of generated events from true ones, cheap enough for the training loop.

    Args:
        truth: events, best with the primaries of `generated`: the spread of the primaries then cancels.
        generated: as many events.

    Returns:
        `w1_<quantity>`: W1/sigma of each quantity in SCORED, infinite where the truth has it and the generated events do
        not; `score`: their mean; `mean_muons_ratio` and `empty_share_difference` (generated - true). A quantity that
        fewer than MIN_VALUES true muons or bundles have, or in which they do not differ, is left out.

    Raises:
        ValueError: if the truth has too few values of every quantity.
    """
    true_values, generated_values = quantities(truth), quantities(generated)
    distances = {}
    for name in SCORED:
        if enough_spread(true_values[name]):
            distances[f"w1_{name}"] = scaled_wasserstein(true_values[name], generated_values[name])
    if not distances:
        msg = f"{len(truth.counts)} true events with {len(truth.muons)} muons are too few to compare anything with"
        raise ValueError(msg)
    return distances | {
        "score": float(np.mean(list(distances.values()))),
        "mean_muons_ratio": float(generated.counts.mean() / truth.counts.mean()) if truth.counts.any() else math.inf,
        "empty_share_difference": float((generated.counts == 0).mean() - (truth.counts == 0).mean()),
    }


def quantities(events: EventArrays) -> dict[str, Float64[np.ndarray, " values"]]:
    """Every quantity of the muons and of the bundles, without the events for which it is not defined."""
    muons = muon_quantities(events)
    bundles = bundle_summaries(events, muons)
    return muons | {name: values[np.isfinite(values)] for name, values in bundles.items()}


def enough_spread(values: Float64[np.ndarray, " values"], at_least: int = MIN_VALUES) -> bool:
    """Whether there are enough values, and not all the same, to scale a distance by their standard deviation."""
    return len(values) >= at_least and float(np.ptp(values)) > 0


def scaled_wasserstein(truth: Float64[np.ndarray, " n"], other: Float64[np.ndarray, " m"]) -> float:
    """W1/sigma: the Wasserstein-1 distance in units of the truth's standard deviation.

    A shift by s sigma gives s. Two samples of n values from one normal give 1.8 / sqrt(n) on average: it is biased
    upwards, and means something only beside truth against truth of the same size.

    Returns:
        Infinity if `other` has no values.
    """
    if not len(other):
        return math.inf
    return wasserstein(truth, other) / float(truth.std())


def wasserstein(a: Float64[np.ndarray, " n"], b: Float64[np.ndarray, " m"]) -> float:
    """The Wasserstein-1 distance of two samples: the integral of |F_a - F_b| over the values.

    Ramdas, Garcia, Cuturi 2015 (arXiv:1509.02237), eq. 5, in one sort. In the unit of the values.
    """
    values = np.concatenate([a, b])
    order = np.argsort(values)
    steps = np.where(order < len(a), 1 / len(a), -1 / len(b))
    return float(np.abs(np.cumsum(steps)[:-1]) @ np.diff(values[order]))
