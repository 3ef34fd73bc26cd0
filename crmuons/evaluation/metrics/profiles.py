"""How the further features of a muon depend on its distance from the axis and on its energy: means in bins."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from jaxtyping import Bool, Float64

from crmuons.evaluation.metrics.distances import MIN_SHOWERS, Estimate, Missing, Number
from crmuons.evaluation.metrics.further import ACROSS, ALONG, TURNED, Column
from crmuons.evaluation.metrics.quantities import EXTRA, Sample

BAR = 0.05  # A mean may differ by this share of the true mean, or of the true spread.
PER_MILLE = 1e3  # Directions differ from the axis by mrad.
CERTAIN = 2.0  # A bar is missed if the deviation is more than this many standard errors above it.
# Logarithms of the edges of the bins, with their labels: half decades of the radius, decades of the energy.
AXES = {
    "log_radius": ("distance from the axis", "m", (-np.inf, 0.5, 1.0, 1.5, 2.0, 2.5, np.inf)),
    "log_energy": ("energy", "GeV", (-np.inf, 1.0, 2.0, 3.0, 4.0, np.inf)),
}


@dataclass(frozen=True)
class ProfileBin:
    """The mean of one quantity in one bin.

    Attributes:
        quantity: label of the quantity.
        axis, interval: what is divided into bins, and the bin.
        true, other: the means of the true and of the other muons.
        deviation: other / true - 1 if `relative`, otherwise (other - true) / the true standard deviation.
        relative: whether the quantity has one sign, so that a ratio of means has a meaning.
    """

    quantity: str
    axis: str
    interval: str
    true: Number
    other: Number
    deviation: Number
    relative: bool

    @property
    def verdict(self) -> str:
        """Return whether the deviation is within BAR, or undecided because its error is too large; empty if it is absent."""
        if isinstance(self.deviation, Missing):
            return ""
        beyond = abs(self.deviation.value) - BAR
        if beyond <= 0:
            return "within 5 %"
        return "undecided" if beyond <= CERTAIN * (self.deviation.error or 0) else "beyond 5 %"


Quantity = tuple[str, bool, Float64[np.ndarray, " muons"]]


def profiles(truth: Sample, other: Sample, further: Sequence[Column]) -> list[ProfileBin]:
    """Return the bins of all quantities against radius and energy; none if a sample lacks the features."""
    if any(f"{EXTRA}{column.name}" not in sample.muons for column in further for sample in (truth, other)):
        return []
    pairs = zip(_quantities(truth, further), _quantities(other, further), strict=True)
    return [part for true, made in pairs for axis in AXES for part in _bins(truth, other, axis, true, made)]


def _quantities(sample: Sample, further: Sequence[Column]) -> Iterator[Quantity]:
    """Yield the label, whether the sign is always the same, and the values of each quantity."""
    muons = {column.name: sample.muons[f"{EXTRA}{column.name}"].astype(np.float64) for column in further}
    if ALONG in muons:
        across_axis = np.minimum(np.hypot(muons[ALONG], muons[ACROSS]), 1.0)
        yield "angle to the axis [mrad]", True, PER_MILLE * np.arcsin(across_axis)
    for column in further:
        values = muons[column.name]
        if column.name == "charge":
            yield "share of mu+", True, (values + 1) / 2
        elif column.name in TURNED:
            yield f"{column.label} [mrad]", False, PER_MILLE * values
        elif column.kind == "positive":
            yield column.label.removeprefix("log10 "), True, 10.0**values
        else:
            yield column.label, column.name == "t_ns", values


def _bins(truth: Sample, other: Sample, axis: str, true: Quantity, made: Quantity) -> Iterator[ProfileBin]:
    label, unit, edges = AXES[axis]
    for low, high in pairwise(edges):
        (true_mean, spread), (mean, _) = (
            _mean_and_spread(sample, (sample.muons[axis] >= low) & (sample.muons[axis] < high), quantity[2])
            for sample, quantity in ((truth, true), (other, made))
        )
        deviation = _deviation(true_mean, mean, None if true[1] else spread)
        yield ProfileBin(true[0], label, _interval(low, high, unit), true_mean, mean, deviation, true[1])


def _mean_and_spread(
    sample: Sample, inside: Bool[np.ndarray, " muons"], values: Float64[np.ndarray, " muons"]
) -> tuple[Number, float]:
    """Return the mean of the muons inside, with its error, and their standard deviation.

    The mean is a ratio of two sums over showers; the muons of a shower count as one fluctuation.
    """
    showers = np.repeat(sample.showers, sample.counts)[inside]
    numbers, shower = np.unique(showers, return_inverse=True)
    if len(numbers) < MIN_SHOWERS:
        return Missing(f"{len(numbers)} showers have such muons, {MIN_SHOWERS} needed"), 0.0
    chosen = values[inside]
    mean = float(chosen.mean())
    of_shower = np.bincount(shower.ravel(), chosen - mean)
    return Estimate(mean, float(np.sqrt(of_shower @ of_shower)) / len(chosen)), float(chosen.std())


def _deviation(true: Number, other: Number, spread: float | None) -> Number:
    """Return other / true - 1, or the difference in units of a spread."""
    if isinstance(true, Missing) or isinstance(other, Missing):
        return true if isinstance(true, Missing) else other
    scale = abs(true.value) if spread is None else spread
    if scale == 0:
        return Missing("the true mean is zero" if spread is None else "all true values are the same")
    # The error of a ratio includes the error of its denominator: d(b / a) = (db - (b / a) da) / a.
    share = other.value / true.value if spread is None else 1.0
    error = float(np.hypot(other.error or 0, share * (true.error or 0)) / scale)
    return Estimate((other.value - true.value) / scale, error)


def _interval(low: float, high: float, unit: str) -> str:
    first, last = ("" if np.isinf(edge) else f"{float(f'{10**edge:.3g}'):,g}" for edge in (low, high))
    return f"{first} to {last} {unit}" if first and last else f"{'above' if first else 'below'} {first or last} {unit}"
