"""Where the events are: cells and bins of the primary's quantities, and the cases that are hard."""

import functools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from jaxtyping import Bool, Float64, Int64

from crmuons.data.events import EventArrays
from crmuons.evaluation.metrics import ratios
from crmuons.evaluation.metrics.distances import Missing, Number
from crmuons.evaluation.metrics.quantities import Counted, Sample, event_of_muon, shower_numbers

MAX_MASSES = 12  # More different masses than this are cut into MASS_GROUPS groups.
MASS_GROUPS = ANGLE_GROUPS = DEPTH_GROUPS = 4
MIN_CELL_SHOWERS = 30

Mask = Bool[np.ndarray, " events"]


@dataclass(frozen=True)
class Region:
    """A range of one quantity of the primary: low <= value < high, in the units of `primary_features`."""

    quantity: str
    label: str
    low: float
    high: float

    def holds(self, conditions: Float64[np.ndarray, "events 4"]) -> Mask:
        """Which events lie in it."""
        values = conditions[:, COLUMNS[self.quantity]]
        inside: np.ndarray = (values >= self.low) & (values < self.high)
        return inside


COLUMNS = {"energy": 0, "cos zenith": 1, "mass": 2, "depth": 3}


def regions(conditions: Float64[np.ndarray, "events 4"]) -> list[Region]:
    """Decades of the energy; the masses, or groups of them; quarters of cos zenith and of depth."""
    return [
        *decades(conditions),
        *masses(conditions),
        *quantiles("cos zenith", conditions, ANGLE_GROUPS),
        *quantiles("depth", conditions, DEPTH_GROUPS),
    ]


def decades(conditions: Float64[np.ndarray, "events 4"]) -> Iterator[Region]:
    """Decades of the energy that have events."""
    for decade in np.unique(np.floor(conditions[:, 0])).astype(int):
        yield Region("energy", f"{_power(decade)}–{_power(decade + 1)} GeV", float(decade), float(decade + 1))


def masses(conditions: Float64[np.ndarray, "events 4"]) -> Iterator[Region]:
    """Each mass, or groups of masses where there are more than MAX_MASSES."""
    values = np.unique(conditions[:, COLUMNS["mass"]])
    if len(values) > MAX_MASSES:
        yield from quantiles("mass", conditions, MASS_GROUPS)
        return
    for value in values:
        yield Region("mass", f"{10**value:.3g} GeV", value - 1e-6, value + 1e-6)


@dataclass(frozen=True)
class Cell:
    """Mean N of generated events over that of true ones, in one mass group and one decade of the energy."""

    mass: str
    energy: str
    showers: int
    true_mean: float
    ratio: Number


def cells(truth: Counted, generated: Counted, *, paired: bool) -> list[Cell]:
    """The cells that have true events.

    Args:
        truth: true events.
        generated: generated events; the same primaries in the same order where `paired`.
        paired: whether they are.
    """
    found = []
    for mass in masses(truth.conditions):
        for decade in decades(truth.conditions):
            here, there = ((mass.holds(s.conditions) & decade.holds(s.conditions)) for s in (truth, generated))
            showers = len(np.unique(truth.showers[here]))
            if showers:
                ratio = _cell_ratio(truth, generated, here, there, paired=paired)
                found.append(Cell(mass.label, decade.label, showers, float(truth.counts[here].mean()), ratio))
    return found


def _cell_ratio(truth: Counted, generated: Counted, here: Mask, there: Mask, *, paired: bool) -> Number:
    showers = [len(np.unique(s.showers[mask])) for s, mask in ((truth, here), (generated, there))]
    if min(showers) < MIN_CELL_SHOWERS:
        return Missing(f"{min(showers)} showers, {MIN_CELL_SHOWERS} needed")
    if paired:
        return ratios.paired_ratio(truth.counts[here], generated.counts[there], truth.showers[here])
    return ratios.quotient(
        ratios.mean_and_error(truth.counts[here], truth.showers[here]),
        ratios.mean_and_error(generated.counts[there], generated.showers[there]),
    )


@dataclass(frozen=True)
class HardCase:
    """Events, or muons, that are rare and asked for.

    Attributes:
        name: what they are.
        of_events: whether it is a case of events, or one of muons.
        holds: which events, or which muons, of a sample.
    """

    name: str
    of_events: bool
    holds: Callable[[Sample], np.ndarray]

    def weight(self, sample: Sample) -> Int64[np.ndarray, " events"]:
        """How much each event has of them: 0 or 1, or a number of muons."""
        held = self.holds(sample)
        if self.of_events:
            return held.astype(np.int64)
        weight: np.ndarray = np.bincount(event_of_muon(sample.counts)[held], minlength=len(sample))
        return weight

    def part(self, sample: Sample) -> Sample:
        """The events that have some; with these muons alone, where the case is one of muons."""
        held = self.holds(sample)
        return sample.where(held) if self.of_events else sample.of_muons(held)


def hard_cases(training_masses_gev: Float64[np.ndarray, " masses"] | None) -> list[HardCase]:
    """The cases; the last needs the masses that were trained on."""
    cases = [
        HardCase("N from 1,000 to 10,000", True, lambda s: (s.counts >= 1000) & (s.counts <= 10_000)),
        HardCase("N = 1", True, lambda s: s.counts == 1),
        HardCase("zenith beyond 70°", True, lambda s: s.conditions[:, 1] < math.cos(math.radians(70))),
        HardCase("muons beyond 100 m", False, lambda s: s.muons["log_radius"] > 2),
        HardCase("muons above 10 TeV", False, lambda s: s.muons["log_energy"] > 4),
    ]
    if training_masses_gev is not None:
        between = functools.partial(_between, trained=np.log10(training_masses_gev))
        cases.append(HardCase("primaries between the training masses", True, between))
    return cases


def _between(sample: Sample, trained: Float64[np.ndarray, " masses"]) -> Mask:
    """Masses inside the trained range, and more than 1 % away from every trained mass."""
    log_mass = sample.conditions[:, COLUMNS["mass"]]
    distance = np.abs(log_mass[:, None] - trained).min(1)
    between: np.ndarray = (distance > math.log10(1.01)) & (log_mass > trained.min()) & (log_mass < trained.max())
    return between


def _power(exponent: int) -> str:
    return "10" + str(exponent).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))


def quantiles(quantity: str, conditions: Float64[np.ndarray, "events 4"], groups: int) -> Iterator[Region]:
    """Groups of a quantity with equal numbers of events."""
    label = {"cos zenith": "{:.2f}–{:.2f}", "depth": "{:.1f}–{:.1f} km", "mass": "log10 m {:.2f}–{:.2f}"}[quantity]
    values = conditions[:, COLUMNS[quantity]]
    edges = np.unique(np.quantile(values, np.linspace(0, 1, groups + 1)))
    if len(edges) == 1:  # One value alone.
        edges = np.append(edges, edges[0])
    for low, high in pairwise(edges):
        last = high == edges[-1]
        yield Region(quantity, label.format(low, high), float(low), float(np.nextafter(high, np.inf) if last else high))


def numbered(*parts: EventArrays) -> list[Sample]:
    """Samples of several sets of events, whose showers are numbered together from 0."""
    showers = shower_numbers(*(part.ids for part in parts))
    return [Sample.of(part, number) for part, number in zip(parts, showers, strict=True)]
