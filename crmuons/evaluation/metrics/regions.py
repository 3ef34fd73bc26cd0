"""Parts of the events: bins and cells of the primary's quantities, and hard cases."""

import functools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from jaxtyping import Bool, Float64, Int64

from crmuons.evaluation.metrics import ratios
from crmuons.evaluation.metrics.distances import Missing, Number
from crmuons.evaluation.metrics.quantities import Counted, Sample, event_of_muon

MAX_MASSES = 12  # Above this number, the masses are put into MASS_GROUPS groups.
MASS_GROUPS = ANGLE_GROUPS = DEPTH_GROUPS = 4
MIN_CELL_SHOWERS = 30  # With fewer, the standard error of a mean is itself uncertain by more than an eighth.

Mask = Bool[np.ndarray, " events"]


@dataclass(frozen=True)
class Region:
    """A range of one quantity of the primary: low <= value < high, in the units of `primary_features`."""

    quantity: str
    label: str
    low: float
    high: float

    def holds(self, conditions: Float64[np.ndarray, "events 4"]) -> Mask:
        """Return which events lie in the region."""
        values = conditions[:, COLUMNS[self.quantity]]
        inside: np.ndarray = (values >= self.low) & (values < self.high)
        return inside


COLUMNS = {"energy": 0, "cos zenith": 1, "mass": 2, "depth": 3}


def regions(conditions: Float64[np.ndarray, "events 4"]) -> list[Region]:
    """Return the bins: decades of the energy; masses, or groups of them; quarters of cos zenith and of depth."""
    return [
        *decades(conditions),
        *masses(conditions),
        *quantiles("cos zenith", conditions, ANGLE_GROUPS),
        *quantiles("depth", conditions, DEPTH_GROUPS),
    ]


def decades(conditions: Float64[np.ndarray, "events 4"]) -> Iterator[Region]:
    """Yield the decades of the energy that have events."""
    for decade in np.unique(np.floor(conditions[:, 0])).astype(int):
        yield Region("energy", f"{_power(decade)}–{_power(decade + 1)} GeV", float(decade), float(decade + 1))


def masses(conditions: Float64[np.ndarray, "events 4"]) -> Iterator[Region]:
    """Yield each mass, or MASS_GROUPS groups if there are more than MAX_MASSES masses."""
    values = np.unique(conditions[:, COLUMNS["mass"]])
    if len(values) > MAX_MASSES:
        yield from quantiles("mass", conditions, MASS_GROUPS)
        return
    for value in values:
        yield Region("mass", f"{10**value:.3g} GeV", value - 1e-6, value + 1e-6)


@dataclass(frozen=True)
class Cell:
    """One mass group and one decade of the energy; `ratio` is the mean N of generated events over the true mean N."""

    mass: str
    energy: str
    showers: int
    true_mean: float
    ratio: Number


def cells(truth: Counted, generated: Counted, *, paired: bool) -> list[Cell]:
    """Return the cells that have true events.

    Args:
        truth: true events.
        generated: generated events.
        paired: whether the generated events have the primaries of the true events in the same order.
    """
    result = []
    for mass in masses(truth.conditions):
        for decade in decades(truth.conditions):
            masks = [(mass.holds(s.conditions) & decade.holds(s.conditions)) for s in (truth, generated)]
            true_counts, counts = truth.counts[masks[0]], generated.counts[masks[1]]
            showers = truth.showers[masks[0]], generated.showers[masks[1]]
            if len(true_counts):
                ratio = _cell_ratio(true_counts, counts, *showers, paired=paired)
                num_showers = len(np.unique(showers[0]))
                result.append(Cell(mass.label, decade.label, num_showers, float(true_counts.mean()), ratio))
    return result


def _cell_ratio(
    true_counts: Int64[np.ndarray, " true"],
    counts: Int64[np.ndarray, " generated"],
    true_showers: Int64[np.ndarray, " true"],
    showers: Int64[np.ndarray, " generated"],
    *,
    paired: bool,
) -> Number:
    fewest = min(len(np.unique(true_showers)), len(np.unique(showers)))
    if fewest < MIN_CELL_SHOWERS:
        return Missing(f"{fewest} showers, {MIN_CELL_SHOWERS} needed")
    if paired:
        return ratios.paired_ratio(true_counts, counts, true_showers)
    return ratios.quotient(ratios.mean_and_error(true_counts, true_showers), ratios.mean_and_error(counts, showers))


@dataclass(frozen=True)
class HardCase:
    """A kind of events, or of muons, that are rare or at the edge of the primaries' range.

    Attributes:
        name: name for people.
        of_events: true for a kind of events, false for a kind of muons.
        holds: returns which events, or which muons, of a sample belong to the case.
    """

    name: str
    of_events: bool
    holds: Callable[[Sample], np.ndarray]

    def weight(self, sample: Sample) -> Int64[np.ndarray, " events"]:
        """Return 0 or 1 for each event, or its number of muons that belong to a case of muons."""
        held = self.holds(sample)
        if self.of_events:
            return held.astype(np.int64)
        weight: np.ndarray = np.bincount(event_of_muon(sample.counts)[held], minlength=len(sample))
        return weight

    def part(self, sample: Sample) -> Sample:
        """Return the events that belong to the case; in a case of muons, with these muons only."""
        held = self.holds(sample)
        return sample.where(held) if self.of_events else sample.of_muons(held)


def hard_cases(training_masses_gev: Float64[np.ndarray, " masses"] | None) -> list[HardCase]:
    """Return the hard cases; the last one only if the training masses are known."""
    cases = [
        HardCase("N above 10,000", True, lambda s: s.counts > 10_000),
        HardCase("N from 1,000 to 10,000", True, lambda s: (s.counts >= 1000) & (s.counts <= 10_000)),
        HardCase("N = 1", True, lambda s: s.counts == 1),
        HardCase("muons from primaries below 10 TeV", True, lambda s: (s.counts > 0) & (s.conditions[:, 0] < 4)),
        HardCase("zenith beyond 70°", True, lambda s: s.conditions[:, 1] < math.cos(math.radians(70))),
        HardCase("muons beyond 100 m", False, lambda s: s.muons["log_radius"] > 2),
        HardCase("muons above 10 TeV", False, lambda s: s.muons["log_energy"] > 4),
    ]
    if training_masses_gev is not None:
        between = functools.partial(_between, trained=np.log10(training_masses_gev))
        cases.append(HardCase("primaries between the training masses", True, between))
    return cases


def _between(sample: Sample, trained: Float64[np.ndarray, " masses"]) -> Mask:
    """Return which masses lie inside the trained range and more than 1 % away from every trained mass."""
    log_mass = sample.conditions[:, COLUMNS["mass"]]
    distance = np.abs(log_mass[:, None] - trained).min(1)
    between: np.ndarray = (distance > math.log10(1.01)) & (log_mass > trained.min()) & (log_mass < trained.max())
    return between


def _power(exponent: int) -> str:
    return "10" + str(exponent).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))


def quantiles(quantity: str, conditions: Float64[np.ndarray, "events 4"], groups: int) -> Iterator[Region]:
    """Yield groups of a quantity with equal numbers of events."""
    label = {"cos zenith": "{:.2f}–{:.2f}", "depth": "{:.1f}–{:.1f} km", "mass": "log10 m {:.2f}–{:.2f}"}[quantity]
    values = conditions[:, COLUMNS[quantity]]
    edges = np.unique(np.quantile(values, np.linspace(0, 1, groups + 1)))
    if len(edges) == 1:  # All events have the same value.
        edges = np.append(edges, edges[0])
    for low, high in pairwise(edges):
        last = high == edges[-1]
        yield Region(quantity, label.format(low, high), float(low), float(np.nextafter(high, np.inf) if last else high))
