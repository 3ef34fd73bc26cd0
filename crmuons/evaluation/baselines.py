"""Two cheap generators, fitted on training events, which a trained generator must beat."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
from jaxtyping import Float32, Float64, Int64, UInt64
from scipy.spatial import KDTree
from sklearn.linear_model import PoissonRegressor

from crmuons.data.events import EventArrays, take
from crmuons.evaluation.metrics.quantities import muon_quantities, primary_features

MIN_TRAINING_EVENTS = 1_000
MAX_MUONS_FITTED = 500_000  # Each of the 15 coefficients is then known to about a thousandth of the spread.


class NearestPrimary:
    """A generator that copies the bundle of the training event with the nearest primary.

    The distance is Euclidean in `primary_features`, each divided by its standard deviation. The copied bundles are
    correct in themselves, but they repeat, and they belong to slightly different primaries.
    """

    def __init__(self, training: EventArrays) -> None:
        features = primary_features(training.primaries)
        spread = features.std(0)
        self.training = training
        self.scale = np.where(spread > 0, spread, 1.0)
        self.tree = KDTree(features / self.scale)

    def generate(self, primaries: Float32[np.ndarray, "events 4"], ids: UInt64[np.ndarray, "events 2"]) -> EventArrays:
        """Return one event for each primary."""
        _, nearest = self.tree.query(primary_features(primaries) / self.scale)
        copied = take(self.training, nearest)
        return EventArrays(ids, primaries, copied.counts, copied.muons)


@dataclass(frozen=True)
class ParametricSampler:
    """A generator with negative binomial N and log-normal energies and radii, all independent given the primary.

    log <N>, <log10 E> and <log10 r> are polynomials of second degree in `primary_features`. The negative binomial has
    one shape per mass, from the moments of N. The standard deviations of log10 E and log10 r are constants.
    """

    centre: Float64[np.ndarray, " 4"]
    scale: Float64[np.ndarray, " 4"]
    log_mean: PoissonRegressor
    masses: Float64[np.ndarray, " masses"]
    inverse_shapes: Float64[np.ndarray, " masses"]
    coefficients: Float64[np.ndarray, "terms 2"]
    spreads: Float64[np.ndarray, " 2"]

    @classmethod
    def fit(cls, training: EventArrays, seed: int) -> Self:
        """Fit to training events, which must have muons."""
        features = primary_features(training.primaries)
        spread = features.std(0)
        centre, scale = features.mean(0), np.where(spread > 0, spread, 1.0)
        terms = _polynomial((features - centre) / scale)
        log_mean = PoissonRegressor(alpha=1e-6, max_iter=1000).fit(terms, training.counts)
        masses, inverse_shapes = _inverse_shapes(features[:, 2], training.counts, log_mean.predict(terms))
        coefficients, spreads = _fit_muons(training, terms, np.random.default_rng(seed))
        return cls(centre, scale, log_mean, masses, inverse_shapes, coefficients, spreads)

    def generate(
        self, primaries: Float32[np.ndarray, "events 4"], ids: UInt64[np.ndarray, "events 2"], seed: Sequence[int]
    ) -> EventArrays:
        """Draw one event for each primary."""
        rng = np.random.default_rng(seed)
        features = primary_features(primaries)
        terms = _polynomial((features - self.centre) / self.scale)
        nearest_mass = np.abs(features[:, 2, None] - self.masses).argmin(1)
        counts = _negative_binomial(self.log_mean.predict(terms), self.inverse_shapes[nearest_mass], rng)
        means = np.repeat(terms @ self.coefficients, counts, axis=0)
        energy, radius = 10.0 ** rng.normal(means, self.spreads).T
        azimuth = rng.uniform(0, 2 * np.pi, len(energy))
        muons = np.stack([energy, radius * np.cos(azimuth), radius * np.sin(azimuth)], axis=1).astype(np.float32)
        return EventArrays(ids, primaries, counts, muons)


def _polynomial(x: Float64[np.ndarray, "events 4"]) -> Float64[np.ndarray, "events terms"]:
    """Return the terms 1, x_i and x_i x_j (i <= j)."""
    first, second = np.triu_indices(x.shape[1])
    return np.column_stack([np.ones(len(x)), x, x[:, first] * x[:, second]])


def _inverse_shapes(
    log_mass: Float64[np.ndarray, " events"], counts: Int64[np.ndarray, " events"], mean: Float64[np.ndarray, " events"]
) -> tuple[Float64[np.ndarray, " masses"], Float64[np.ndarray, " masses"]]:
    """Return the masses and 1/k for each, from Var N = mean + mean^2 / k; 0 if N varies less than a Poisson count."""
    masses, index = np.unique(log_mass, return_inverse=True)
    excess = np.bincount(index.ravel(), (counts - mean) ** 2 - counts)
    return masses, np.maximum(excess / np.bincount(index.ravel(), mean**2), 0)


def _negative_binomial(
    mean: Float64[np.ndarray, " events"], inverse_shape: Float64[np.ndarray, " events"], rng: np.random.Generator
) -> Int64[np.ndarray, " events"]:
    """Draw Poisson counts with means that follow a gamma distribution of relative variance 1/k."""
    shape = 1 / np.maximum(inverse_shape, 1e-9)
    counts: np.ndarray = rng.poisson(mean * rng.gamma(shape) / shape)
    return counts


def _fit_muons(
    training: EventArrays, terms: Float64[np.ndarray, "events terms"], rng: np.random.Generator
) -> tuple[Float64[np.ndarray, "terms 2"], Float64[np.ndarray, " 2"]]:
    """Fit log10 E and log10 r of the muons by least squares; return coefficients and residual standard deviations."""
    event = np.repeat(np.arange(len(training.counts)), training.counts)
    chosen = rng.choice(len(event), min(len(event), MAX_MUONS_FITTED), replace=False)
    quantities = muon_quantities(training)
    values = np.stack([quantities["log_energy"], quantities["log_radius"]], axis=1)[chosen]
    coefficients, *_ = np.linalg.lstsq(terms[event[chosen]], values)
    return coefficients, (values - terms[event[chosen]] @ coefficients).std(0)
