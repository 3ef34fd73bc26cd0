"""Where the events are: cells and bins of the primary's quantities, and the cases that are hard."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from jaxtyping import Bool, Float64

from crmuons.evaluation import rates
from crmuons.evaluation.metrics import Absent, Number
from crmuons.evaluation.summaries import Sample, muon_quantities, shower_numbers
from crmuons.reader import take
from crmuons.schema import EventArrays

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
        *_quantiles("cos zenith", conditions, ANGLE_GROUPS, "{:.2f}–{:.2f}"),
        *_quantiles("depth", conditions, DEPTH_GROUPS, "{:.1f}–{:.1f} km"),
    ]


def decades(conditions: Float64[np.ndarray, "events 4"]) -> Iterator[Region]:
    """Decades of the energy that have events."""
    for decade in np.unique(np.floor(conditions[:, 0])).astype(int):
        yield Region("energy", f"{_power(decade)}–{_power(decade + 1)} GeV", float(decade), float(decade + 1))


def masses(conditions: Float64[np.ndarray, "events 4"]) -> Iterator[Region]:
    """Each mass, or groups of masses where there are more than MAX_MASSES."""
    values = np.unique(conditions[:, COLUMNS["mass"]])
    if len(values) > MAX_MASSES:
        yield from _quantiles("mass", conditions, MASS_GROUPS, "log10 m {:.2f}–{:.2f}")
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


def cells(truth: Sample, generated: Sample, *, paired: bool) -> list[Cell]:
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


def _cell_ratio(truth: Sample, generated: Sample, here: Mask, there: Mask, *, paired: bool) -> Number:
    showers = [len(np.unique(s.showers[mask])) for s, mask in ((truth, here), (generated, there))]
    if min(showers) < MIN_CELL_SHOWERS:
        return Absent(f"{min(showers)} showers, {MIN_CELL_SHOWERS} needed")
    if paired:
        return rates.paired_ratio(truth.counts[here], generated.counts[there], truth.showers[here])
    return rates.quotient(
        rates.mean_and_error(truth.counts[here], truth.showers[here]),
        rates.mean_and_error(generated.counts[there], generated.showers[there]),
    )


@dataclass(frozen=True)
class HardCase:
    """Events, or muons, that are rare and asked for.

    Attributes:
        name: what they are.
        weight: how much each event has of them: 0 or 1, or a number of muons.
        part: the events that have some; with these muons alone, where the case is one of muons.
    """

    name: str
    weight: Callable[[EventArrays], np.ndarray]
    part: Callable[[EventArrays], EventArrays]


def hard_cases(training_masses_gev: Float64[np.ndarray, " masses"] | None) -> list[HardCase]:
    """The cases; the last needs the masses that were trained on."""
    cases = [
        _of_events("N from 1,000 to 10,000", lambda e: (e.counts >= 1000) & (e.counts <= 10_000)),
        _of_events("N = 1", lambda e: e.counts == 1),
        _of_events("zenith beyond 70°", lambda e: e.primaries[:, 1] > math.radians(70)),
        _of_muons("muons beyond 100 m", lambda quantities: quantities["log_radius"] > 2),
        _of_muons("muons above 10 TeV", lambda quantities: quantities["log_energy"] > 4),
    ]
    if training_masses_gev is not None:
        trained = np.log10(training_masses_gev)
        cases.append(_of_events("primaries between the training masses", lambda e: _between(e, trained)))
    return cases


def _of_events(name: str, keep: Callable[[EventArrays], Mask]) -> HardCase:
    return HardCase(name, keep, lambda events: take(events, np.flatnonzero(keep(events))))


def _of_muons(name: str, keep: Callable[[dict[str, np.ndarray]], np.ndarray]) -> HardCase:
    def part(events: EventArrays) -> EventArrays:
        kept = keep(muon_quantities(events))
        event = np.repeat(np.arange(len(events.counts)), events.counts)
        counts = np.bincount(event[kept], minlength=len(events.counts))
        some = counts > 0
        return EventArrays(events.ids[some], events.primaries[some], counts[some], events.muons[kept])

    def weight(events: EventArrays) -> np.ndarray:
        event = np.repeat(np.arange(len(events.counts)), events.counts)
        return np.bincount(event[keep(muon_quantities(events))], minlength=len(events.counts))

    return HardCase(name, weight, part)


def _between(events: EventArrays, trained: Float64[np.ndarray, " masses"]) -> Mask:
    """Masses inside the trained range, and more than 1 % away from every trained mass."""
    log_mass = np.log10(events.primaries[:, 2].astype(np.float64))
    distance = np.abs(log_mass[:, None] - trained).min(1)
    between: np.ndarray = (distance > math.log10(1.01)) & (log_mass > trained.min()) & (log_mass < trained.max())
    return between


def _power(exponent: int) -> str:
    return "10" + str(exponent).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))


def _quantiles(quantity: str, conditions: Float64[np.ndarray, "events 4"], groups: int, label: str) -> Iterator[Region]:
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
