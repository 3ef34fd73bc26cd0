"""Calibration of a model's multiplicity: the probability integral transform (PIT) of the true N under the model."""

import math
from dataclasses import dataclass
from itertools import product
from typing import assert_never

import numpy as np
import torch
from jaxtyping import Bool, Float32, Float64, Int64
from scipy.special import betainc
from scipy.stats import kstwobign

from crmuons.evaluation.metrics import regions
from crmuons.evaluation.metrics.distances import MIN_SHOWERS, Estimate, Missing, Number
from crmuons.models.bundle_model import BundleModel
from crmuons.models.multiplicity import MixtureMultiplicity, RegressorMultiplicity

GROUPS = 2  # Groups of cos zenith and of depth, for each mass and energy decade. 100 such cells need 10,000 showers.

Cumulative = tuple[Float64[np.ndarray, " events"], Float64[np.ndarray, " events"]]


@dataclass(frozen=True)
class Calibration:
    """Randomised PIT of the true N of one event per shower, and the features of the primaries."""

    pit: Float64[np.ndarray, " events"]
    conditions: Float64[np.ndarray, "events 4"]

    def where(self, kept: Bool[np.ndarray, " events"]) -> "Calibration":
        """Return some of the events."""
        return Calibration(self.pit[kept], self.conditions[kept])


@dataclass(frozen=True)
class PitCell:
    """Kolmogorov distance of the PIT from uniform in one cell of (log E, mass, cos zenith, depth).

    Attributes:
        mass, energy, zenith, depth: labels of the cell.
        showers: the number of showers.
        distance: the distance times the square root of the number of showers. In calibrated cells its mean is 0.87, and
            1 % are above 1.63.
    """

    mass: str
    energy: str
    zenith: str
    depth: str
    showers: int
    distance: Number


def cumulative(
    model: BundleModel, primaries: Float32[np.ndarray, "events 4"], counts: Int64[np.ndarray, " events"]
) -> Cumulative:
    """Return P(N < n) and P(N <= n) under the model's distribution of N, exactly.

    Args:
        model: a trained model.
        primaries: primaries of the events.
        counts: n of the events.
    """
    with torch.inference_mode():
        condition = model.features.condition(torch.from_numpy(np.array(primaries)))
        match model.multiplicity:
            case MixtureMultiplicity() as mixture:
                log_weights, log_means, shapes = (tensor.numpy() for tensor in mixture.parameters_of(condition))
                return (
                    mixture_cdf(log_weights, log_means, shapes, counts - 1),
                    mixture_cdf(log_weights, log_means, shapes, counts),
                )
            case RegressorMultiplicity() as regressor:
                value = regressor.sample(condition).numpy()
                return (value < counts).astype(np.float64), (value <= counts).astype(np.float64)
            case other:
                assert_never(other)


def mixture_cdf(
    log_weights: Float64[np.ndarray, "events k"],
    log_means: Float64[np.ndarray, "events k"],
    shapes: Float64[np.ndarray, "events k"],
    counts: Int64[np.ndarray, " events"],
) -> Float64[np.ndarray, " events"]:
    """Return P(N <= n) of mixtures of negative binomials; 0 for n = -1.

    A negative binomial of mean m and shape r has P(N <= n) = I_p(r, n + 1) with p = r / (r + m), where I is the
    regularised incomplete beta function (DLMF 8.17(i)).
    """
    success = 1 / (1 + np.exp(log_means) / shapes)
    of_components = betainc(shapes, np.maximum(counts, 0)[:, None] + 1.0, success)
    total: np.ndarray = (np.exp(log_weights) * of_components).sum(1)
    return np.where(counts >= 0, np.minimum(total, 1.0), 0.0)


def randomised_pit(
    below: Float64[np.ndarray, " events"], up_to: Float64[np.ndarray, " events"], seed: int
) -> Float64[np.ndarray, " events"]:
    """Return the randomised PIT of counts, which is uniform on [0, 1] if and only if the model is calibrated.

    It is a uniform draw between P(N < n) and P(N <= n): Czado, Gneiting, Held 2009 (Biometrics 65, 1254), section 2.
    """
    pit: np.ndarray = below + np.random.default_rng(seed).random(len(below)) * (up_to - below)
    return pit


def uniformity(pit: Float64[np.ndarray, " events"]) -> Number:
    """Return the Kolmogorov distance of values from uniform on [0, 1]; 0.87 / sqrt(n) on average for uniform values."""
    if len(pit) < MIN_SHOWERS:
        return Missing(f"{len(pit)} showers, {MIN_SHOWERS} needed")
    ordered, steps = np.sort(pit), np.arange(len(pit) + 1) / len(pit)
    return Estimate(float(max((steps[1:] - ordered).max(), (ordered - steps[:-1]).max())))


def null_uniformity(events: int) -> Estimate:
    """Return mean and standard deviation of `uniformity` for independent uniform values (Kolmogorov's law)."""
    # Closed forms; scipy's `kstwobign.mean` and `std` integrate numerically at each call, which takes 0.1 s.
    mean = math.sqrt(math.pi / 2) * math.log(2)
    deviation = math.sqrt(math.pi**2 / 12 - mean**2)
    return Estimate(mean / math.sqrt(events), deviation / math.sqrt(events))


def pit_numbers(calibration: Calibration | None, region: regions.Region | None = None) -> tuple[Number, Number]:
    """Return the Kolmogorov distance of the PIT from uniform, for all events or in a region, and what chance gives."""
    if calibration is None:
        missing = Missing("the PIT needs a model, whose distribution is known; a data set has one draw per primary")
        return missing, missing
    part = calibration if region is None else calibration.where(region.holds(calibration.conditions))
    distance = uniformity(part.pit)
    return distance, distance if isinstance(distance, Missing) else null_uniformity(len(part.pit))


def pit_cells(calibration: Calibration) -> list[PitCell]:
    """Return the PIT's distance from uniform by mass, energy decade, and halves of cos zenith and of depth."""
    halves = [list(regions.quantiles(name, calibration.conditions, GROUPS)) for name in ("cos zenith", "depth")]
    groups = (list(regions.masses(calibration.conditions)), list(regions.decades(calibration.conditions)), *halves)
    cells = []
    for mass, energy, zenith, depth in product(*groups):
        parts = (mass, energy, zenith, depth)
        inside = np.logical_and.reduce([part.holds(calibration.conditions) for part in parts])
        if inside.any():
            showers, distance = int(inside.sum()), uniformity(calibration.pit[inside])
            if isinstance(distance, Estimate):
                distance = Estimate(distance.value * float(np.sqrt(showers)))
            cells.append(PitCell(mass.label, energy.label, zenith.label, depth.label, showers, distance))
    return cells


def worst_pit_cell(cells: list[PitCell], seed: int) -> tuple[Number, Number]:
    """Return the largest scaled distance of a cell, and its mean and spread by chance for this number of cells."""
    distances = [cell.distance.value for cell in cells if isinstance(cell.distance, Estimate)]
    if not distances:
        missing = Missing(f"no cell of (log E, mass, cos zenith, depth) has the PIT of {MIN_SHOWERS} showers")
        return missing, missing
    # The largest of m uniform values has the distribution of one uniform value to the power 1/m.
    chance = kstwobign.ppf(np.random.default_rng(seed).random(2000) ** (1 / len(distances)))
    return Estimate(max(distances)), Estimate(float(chance.mean()), float(chance.std()))
