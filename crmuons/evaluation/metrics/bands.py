"""The band of an ensemble's members in bins of the distributions, and the share of bins in which it contains the truth.

docs/metrics.md has the formula. True and generated events have the same primaries, so the primaries' spread cancels.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float64, Int64
from scipy.stats import norm, t

from crmuons.evaluation.metrics.quantities import MUON_QUANTITIES, Sample
from crmuons.evaluation.metrics.regions import HardCase

QUANTITIES = (*MUON_QUANTITIES, "log_num_muons", "log_total_energy", "log_leading_energy", "log_mean_radius")
BINS = 20  # Bins between the quantiles TAILS. One more bin is on either side.
TAILS = (0.005, 0.995)
# Showers with an entry in a bin, averaged over true and generated events. With fewer, the bin's error is not Gaussian.
MIN_SHOWERS = 25
ONE_SIGMA = float(norm.cdf(1.0))


@dataclass(frozen=True)
class BandBin:
    """One bin of one distribution. All numbers but the edges are entries per event.

    Attributes:
        where: all events, a hard case, or primaries outside the trained range.
        quantity: quantity of the distribution.
        low, high: edges of the bin.
        true: entries of the true events.
        predicted: mean over the members.
        statistical: standard error of `true` - `predicted` that comes from the finite numbers of events.
        spread: standard deviation over the members, without the part that comes from the finite numbers of events.
        half_width: half the width of the 68 % band around `predicted`.
    """

    where: str
    quantity: str
    low: float
    high: float
    true: float
    predicted: float
    statistical: float
    spread: float
    half_width: float

    @property
    def is_covered(self) -> bool:
        """Whether the truth is inside the band."""
        return abs(self.true - self.predicted) <= self.half_width


def bands(
    truth: Sample, cases: Sequence[HardCase], outside: np.ndarray, factor: float, *members: Sample
) -> list[BandBin]:
    """Return the bands in all bins that have enough showers.

    Args:
        truth: true events.
        cases: hard cases.
        outside: which primaries lie outside the trained range of the ensemble.
        factor: factor of the members' variance in the band, see `half_width`.
        members: events of each member for the same primaries in the same order.
    """
    beyond = HardCase("primaries outside the trained range", True, lambda _: outside)
    found = []
    for case in (None, *cases, beyond):
        # A bundle's quantities summarise all its muons, but a case of muons selects only some of them.
        for quantity in QUANTITIES if case is None or case.of_events else MUON_QUANTITIES:
            found += _bands_of(truth, members, quantity, case, factor)
    return found


def coverage(bins: Sequence[BandBin]) -> tuple[int, int]:
    """Return how many of the bins the band covers, and how many bins there are."""
    return sum(one.is_covered for one in bins), len(bins)


def variance_factor(members: int, *, folds: bool) -> float:
    """Return the variance of the truth's difference from the mean of K members, in units of their variance s^2.

    Members that each leave out one of K parts of the same showers share most showers, so they differ less than models
    of different showers. Their factor is (K - 1)^2 / K, the delete-a-group jackknife (Kott 2001, J. Official Statistics
    17, 521). For other members, the truth is taken as one more member, and the factor is 1 + 1/K.
    """
    return (members - 1) ** 2 / members if folds else 1 + 1 / members


def half_width(
    statistical: Float64[np.ndarray, " bins"], spread: Float64[np.ndarray, " bins"], members: int, factor: float
) -> Float64[np.ndarray, " bins"]:
    """Return half the width of the 68 % band around the mean of the members.

    s is known from only K values, so the quantile is Student's. Its degrees of freedom belong to the sum of an exact
    variance and a variance with K - 1 degrees (Satterthwaite 1946, Biometrics Bull. 2, 110; JCGM 100:2008, G.4.2). For
    K = 5 and no statistical error, the quantile is 1.14.

    Args:
        statistical: standard error of the difference between truth and mean.
        spread: standard deviation over the members.
        members: K.
        factor: factor of s^2 (`variance_factor`).
    """
    of_members = spread**2 * factor
    total = statistical**2 + of_members
    share = np.divide(of_members, total, out=np.zeros_like(total), where=total > 0)
    freedom = (members - 1) / np.maximum(share, 1e-6) ** 2
    width: np.ndarray = t.ppf(ONE_SIGMA, freedom) * np.sqrt(total)
    return width


def _bands_of(
    truth: Sample, members: Sequence[Sample], quantity: str, case: HardCase | None, factor: float
) -> list[BandBin]:
    true_values, true_showers = _entries(truth, quantity, case)
    if not len(true_values):
        return []
    low, high = np.quantile(true_values, TAILS)
    edges = np.unique([-math.inf, *np.linspace(low, high, BINS + 1), math.inf])
    events_of_shower = np.bincount(np.unique(truth.showers, return_inverse=True)[1])
    order = np.unique(truth.showers)
    true = _by_shower(true_values, np.searchsorted(order, true_showers), edges, len(order))
    made = np.stack(
        [
            _by_shower(values, np.searchsorted(order, showers), edges, len(order))
            for values, showers in (_entries(member, quantity, case) for member in members)
        ]
    )
    enough = ((true > 0).sum(0) + (made > 0).sum(1).mean(0)) / 2 >= MIN_SHOWERS
    rate, statistical, spread = _estimates(true, made, events_of_shower)
    widths = half_width(statistical, spread, len(members), factor)
    where = "all events" if case is None else case.name
    true_rate = true.sum(0) / events_of_shower.sum()
    rows = zip(edges[:-1], edges[1:], true_rate, rate, statistical, spread, widths, strict=True)
    return [
        BandBin(where, quantity, *(float(value) for value in row))
        for row, kept in zip(rows, enough, strict=True)
        if kept
    ]


def _estimates(
    true: Float64[np.ndarray, "showers bins"],
    made: Float64[np.ndarray, "members showers bins"],
    events_of_shower: Int64[np.ndarray, " showers"],
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the members' mean rate, the standard error of its difference from the truth, and the members' spread.

    The events of a shower count as one fluctuation.
    """
    number, events = len(made), int(events_of_shower.sum())
    rates, mean = made.sum(1) / events, made.mean(0)
    statistical = _error(mean - true, events_of_shower)
    # The variance that equal members would have because of their finite numbers of events. Members share random
    # numbers, so it is smaller than the variance of one member alone.
    noise = sum(_error(one - mean, events_of_shower) ** 2 for one in made) / (number - 1)
    spread = np.sqrt(np.maximum(rates.var(0, ddof=1) - noise, 0))
    return rates.mean(0), statistical, spread


def _error(
    values: Float64[np.ndarray, "showers bins"], events_of_shower: Int64[np.ndarray, " showers"]
) -> Float64[np.ndarray, " bins"]:
    """Return the standard error of the mean over events of sums by shower."""
    events = events_of_shower.sum()
    off = values - events_of_shower[:, None] * (values.sum(0) / events)
    error: np.ndarray = np.sqrt((off**2).sum(0)) / events
    return error


def _by_shower(
    values: np.ndarray, showers: Int64[np.ndarray, " values"], edges: Float64[np.ndarray, " edges"], number: int
) -> Float64[np.ndarray, "showers bins"]:
    """Count values by shower and bin."""
    bins = len(edges) - 1
    index = np.searchsorted(edges, values, side="right") - 1
    counts: np.ndarray = np.bincount(showers * bins + index, minlength=number * bins).reshape(number, bins)
    return counts.astype(np.float64)


def _entries(sample: Sample, quantity: str, case: HardCase | None) -> tuple[np.ndarray, Int64[np.ndarray, " values"]]:
    """Return the values of a quantity that belong to a case, and the shower of each."""
    held: Bool[np.ndarray, " any"] = np.ones(len(sample), bool) if case is None else case.holds(sample)
    if quantity in sample.muons:
        kept = np.repeat(held, sample.counts) if case is None or case.of_events else held
        return sample.muons[quantity][kept].astype(np.float64), np.repeat(sample.showers, sample.counts)[kept]
    values = sample.bundles[quantity]
    kept = held & np.isfinite(values)
    return values[kept], sample.showers[kept]
