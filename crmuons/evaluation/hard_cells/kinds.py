"""The hard cells: kinds of rare events or muons, and primaries at the edge of the trained range or beyond it."""

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float32, Float64, Int64

from crmuons.evaluation.metrics import ratios
from crmuons.evaluation.metrics.quantities import Sample, primary_features
from crmuons.evaluation.metrics.regions import COLUMNS

APART = math.log10(1.01)  # A mass or depth lies between or beyond the trained values if it is 1 % away from each.

Mask = Bool[np.ndarray, " events"]
Conditions = Float64[np.ndarray, "events 4"]


@dataclass(frozen=True)
class HardCell:
    """A kind of events with muons, or a kind of muons.

    Attributes:
        name: name for people.
        key: name in metrics.
        region: function that returns which primaries can belong to the cell, from `primary_features`.
        number: function that returns how often each event of a sample belongs to the cell: 0 or 1, or the number of its
            muons that belong to it.
    """

    name: str
    key: str
    region: Callable[[Conditions], Mask]
    number: Callable[[Sample], Int64[np.ndarray, " events"]]

    def members(self, sample: Sample) -> Int64[np.ndarray, " events"]:
        """Return how often each event of a sample belongs to the cell."""
        return np.where(self.region(sample.conditions), self.number(sample), 0)


def hard_cells(training_primaries: Float32[np.ndarray, "events 4"]) -> list[HardCell]:
    """Return the hard cells. Cells of masses and depths that were not trained exist only with training primaries."""
    cells = [
        HardCell("N = 1", "n_1", _anywhere, lambda s: (s.counts == 1).astype(np.int64)),
        HardCell("N from 1,000 to 10,000", "n_1000_to_10000", _anywhere, functools.partial(_of_size, low=1_000)),
        HardCell("N from 10,000 to 100,000", "n_10000_to_100000", _anywhere, functools.partial(_of_size, low=10_000)),
        HardCell(
            "muons beyond 100 m",
            "muons_beyond_100_m",
            _anywhere,
            functools.partial(_muons, what="log_radius", above=2.0),
        ),
        HardCell(
            "muons above 10 TeV",
            "muons_above_10_tev",
            _anywhere,
            functools.partial(_muons, what="log_energy", above=4.0),
        ),
        HardCell("bundles of primaries below 10 TeV", "primaries_below_10_tev", lambda c: c[:, 0] < 4, _some),
        HardCell("bundles from 70° to 80°", "zenith_70_to_80", functools.partial(_zenith, low=70, high=80), _some),
        HardCell("bundles beyond 80°", "zenith_beyond_80", functools.partial(_zenith, low=80, high=91), _some),
    ]
    if not len(training_primaries):
        return cells
    trained = primary_features(training_primaries)
    for quantity, plural in (("mass", "masses"), ("depth", "depths")):
        values = trained[:, COLUMNS[quantity]]
        values = np.unique(values if quantity == "mass" else np.log10(values))
        for where in ("between", "beyond"):
            region = functools.partial(_apart, quantity=quantity, trained=values, beyond=where == "beyond")
            cells.append(HardCell(f"{plural} {where} the trained ones", f"{plural}_{where}", region, _some))
    return cells


def _anywhere(conditions: Conditions) -> Mask:
    return np.ones(len(conditions), bool)


def _zenith(conditions: Conditions, low: float, high: float) -> Mask:
    cosine = conditions[:, COLUMNS["cos zenith"]]
    return np.asarray((cosine < math.cos(math.radians(low))) & (cosine >= math.cos(math.radians(high))))


def _apart(conditions: Conditions, quantity: str, trained: Float64[np.ndarray, " values"], *, beyond: bool) -> Mask:
    """Return which primaries lie beyond the trained values of a quantity, or between two, APART from each."""
    values = conditions[:, COLUMNS[quantity]]
    values = values if quantity == "mass" else np.log10(values)
    outside = (values < trained[0] - APART) | (values > trained[-1] + APART)
    if beyond:
        return np.asarray(outside)
    right = np.clip(np.searchsorted(trained, values), 1, max(len(trained) - 1, 1))
    near = np.minimum(
        np.abs(values - trained[right - 1]), np.abs(values - trained[np.minimum(right, len(trained) - 1)])
    )
    return np.asarray((near > APART) & (values > trained[0]) & (values < trained[-1]))


def _of_size(sample: Sample, low: int) -> Int64[np.ndarray, " events"]:
    return ((sample.counts >= low) & (sample.counts < 10 * low)).astype(np.int64)


def _muons(sample: Sample, what: str, above: float) -> Int64[np.ndarray, " events"]:
    return ratios.muons_beyond(sample, what, above)


def _some(sample: Sample) -> Int64[np.ndarray, " events"]:
    return (sample.counts > 0).astype(np.int64)
