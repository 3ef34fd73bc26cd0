"""A check for memorising: whether generated bundles are nearer to training bundles than to held-out ones."""

import numpy as np
from jaxtyping import Float64
from scipy.spatial import KDTree

from crmuons.evaluation.metrics.distances import Estimate, Missing, Number
from crmuons.evaluation.metrics.quantities import BUNDLE_QUANTITIES, Sample

MIN_BUNDLES = 200  # With 200 bundles, the standard error of a share near one half is 0.035.
MAX_BUNDLES = 20_000  # A search among more takes minutes in ten dimensions.


def nearer_to_training(truth: Sample, other: Sample, training: Sample | None, seed: int) -> Number:
    """Return the share of other bundles whose nearest bundle is a training bundle, and not a held-out true one.

    Equal numbers of both are searched, as whole showers. A generator that has learned the distribution therefore gives
    one half, like true bundles, and a generator that copies its training bundles gives 1. The distance is Euclidean in
    the bundle quantities without the primary, each divided by its standard deviation. Bundles of three or more muons
    have all quantities. The error counts a shower as one fluctuation, and treats the searched bundles as fixed.

    Args:
        truth: held-out true events.
        other: the events to judge.
        training: training events; None if there are none.
        seed: seed of the choice of showers.
    """
    if training is None:
        return Missing("there are no training events of showers that are not in the truth")
    rng = np.random.default_rng(seed)
    (trained, _), (held_out, _), (judged, showers) = (_complete(part, rng) for part in (training, truth, other))
    fewest = min(len(trained), len(held_out), len(judged))
    if fewest < MIN_BUNDLES:
        return Missing(f"{fewest} bundles of three or more muons in one sample, {MIN_BUNDLES} needed")
    size = min(len(trained), len(held_out))
    scale = np.concatenate([trained[:size], held_out[:size]]).std(0)
    scale[scale == 0] = 1.0
    to_training, to_truth = (KDTree(part[:size] / scale).query(judged / scale)[0] for part in (trained, held_out))
    nearer = (to_training < to_truth) + (to_training == to_truth) / 2
    share = float(nearer.mean())
    of_shower = np.bincount(np.unique(showers, return_inverse=True)[1].ravel(), nearer - share)
    return Estimate(share, float(np.sqrt((of_shower**2).sum()) / len(nearer)))


def _complete(sample: Sample, rng: np.random.Generator) -> tuple[Float64[np.ndarray, "bundles quantities"], np.ndarray]:
    """Return the quantities and showers of at most MAX_BUNDLES bundles that have all quantities, shower after shower."""
    values = np.column_stack([sample.bundles[name] for name in BUNDLE_QUANTITIES])
    numbers, shower = np.unique(sample.showers, return_inverse=True)
    order = np.argsort(rng.permutation(len(numbers))[shower.ravel()], kind="stable")
    order = order[np.isfinite(values[order]).all(1)][:MAX_BUNDLES]
    return values[order], sample.showers[order]
