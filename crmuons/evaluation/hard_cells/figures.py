"""The figures of a hard cell, with the weights 1/p that undo the choice of events in every average."""

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Self

import numpy as np
from jaxtyping import Bool, Float32, Float64, Int64, UInt64
from sklearn.ensemble import HistGradientBoostingClassifier

from crmuons.data.events import EventArrays, slice_events
from crmuons.evaluation.hard_cells.kinds import HardCell
from crmuons.evaluation.metrics.classifiers import BOOTSTRAPS, FOLDS, PATIENCE, TREES
from crmuons.evaluation.metrics.distances import Estimate, Missing, Number
from crmuons.evaluation.metrics.quantities import BUNDLE_QUANTITIES, Sample, primary_features
from crmuons.evaluation.metrics.ratios import MIN_TAIL_EVENTS, quotient

MUONS_AT_ONCE = 2**20  # Summaries take ten numbers of double precision for each muon.
# Effective events that each sample needs. A classifier learns little from fewer, and a low AUC would mean nothing.
MIN_EFFECTIVE = 1_000
MIN_SHOWERS = 100  # Showers that each sample needs for W1/sigma.

Numbers = dict[str, Number]
IN_CELLS = ("rate", "auc_bundles", "w1")  # The figures of a cell, without the distances of single quantities.


@dataclass(frozen=True)
class CellEvents:
    """The quantities of events that the figures need, without the muons.

    Attributes:
        ids, primaries, counts: as in `EventArrays`.
        weights: weight 1/p of each event.
        bundles: the quantities BUNDLE_QUANTITIES of each event.
        members: how often each event belongs to each cell.
    """

    ids: UInt64[np.ndarray, "events 2"]
    primaries: Float32[np.ndarray, "events 4"]
    counts: Int64[np.ndarray, " events"]
    weights: Float64[np.ndarray, " events"]
    bundles: Float64[np.ndarray, "events quantities"]
    members: Int64[np.ndarray, "events cells"]

    def __len__(self) -> int:
        return len(self.counts)

    @classmethod
    def of(cls, events: EventArrays, weights: Float64[np.ndarray, " events"], cells: list[HardCell]) -> Self:
        """Compute the quantities of events, some at once."""
        part = np.cumsum(events.counts) // MUONS_AT_ONCE
        edges = [0, *(np.flatnonzero(np.diff(part)) + 1).tolist(), len(events.counts)]
        bundles, members = [np.empty((0, len(BUNDLE_QUANTITIES)))], [np.empty((0, len(cells)), np.int64)]
        for start, stop in pairwise(edges):
            if start == stop:
                continue
            sample = Sample.of(slice_events(events, start, stop))
            bundles.append(np.column_stack([sample.bundles[name] for name in BUNDLE_QUANTITIES]))
            members.append(np.column_stack([cell.members(sample) for cell in cells]))
        return cls(
            events.ids, events.primaries, events.counts, weights, np.concatenate(bundles), np.concatenate(members)
        )

    @classmethod
    def concat(cls, parts: list["CellEvents"]) -> Self:
        """Join the events of several parts, in order."""
        names = ("ids", "primaries", "counts", "weights", "bundles", "members")
        return cls(*(np.concatenate([getattr(part, name) for part in parts]) for name in names))

    def where(self, kept: Bool[np.ndarray, " events"]) -> "CellEvents":
        """Return some of the events."""
        return CellEvents(
            self.ids[kept],
            self.primaries[kept],
            self.counts[kept],
            self.weights[kept],
            self.bundles[kept],
            self.members[kept],
        )


def effective(weights: Float64[np.ndarray, " events"]) -> float:
    """Return the effective number of weighted events, (sum w)^2 / sum w^2 (Kish 1965)."""
    return float(weights.sum() ** 2 / (weights**2).sum()) if len(weights) else 0.0


def rate(truth: CellEvents, other: CellEvents, cell: int, *, paired: bool) -> Number:
    """Return the ratio of a cell's rates per event, other/true, with its standard error.

    The events of a shower count as one fluctuation.

    Args:
        truth: true events.
        other: the events to judge.
        cell: number of the cell.
        paired: whether both have the same primaries in the same order; the primaries' fluctuations then cancel.
    """
    true_events = int(np.count_nonzero(truth.members[:, cell]))
    if true_events < MIN_TAIL_EVENTS:
        return Missing(f"{true_events} true events, {MIN_TAIL_EVENTS} needed")
    true_hits, hits = (part.weights * part.members[:, cell] for part in (truth, other))
    if not paired:
        of_truth, of_other = (_mean_and_error(part, h) for part, h in ((truth, true_hits), (other, hits)))
        none = 1 / other.weights.sum() if of_other[0] == 0 and len(other) else of_other[1]
        return quotient(of_truth, (of_other[0], none))
    ratio = float(hits.sum() / true_hits.sum())
    # Below 1, take the error of a perfect generator, because a generator that makes no such event has no spread.
    off = _by_shower(truth.ids, hits - max(ratio, 1.0) * true_hits)
    return Estimate(ratio, math.sqrt(float(off @ off)) / float(true_hits.sum()))


def distances(truth: CellEvents, other: CellEvents) -> Numbers:
    """Return the weighted W1/sigma of each quantity of the bundles, and their mean as `w1`; see docs/metrics.md.

    A quantity that fewer than MIN_SHOWERS showers of either sample have, or that is the same in all true events, is left
    out of the mean.
    """
    numbers: Numbers = {}
    for column, name in enumerate(BUNDLE_QUANTITIES):
        parts = [part.where(np.isfinite(part.bundles[:, column])) for part in (truth, other)]
        fewest = min(len(np.unique(part.ids, axis=0)) for part in parts)
        if fewest < MIN_SHOWERS:
            numbers[f"w1_{name}"] = Missing(f"{fewest} showers have it, {MIN_SHOWERS} needed")
            continue
        values = [part.bundles[:, column] for part in parts]
        sigma = math.sqrt(max(_variance(values[0], parts[0].weights), 0.0))
        if sigma < 1e-5:
            numbers[f"w1_{name}"] = Missing("all values are the same")
            continue
        numbers[f"w1_{name}"] = Estimate(wasserstein(values[0], values[1], parts[0].weights, parts[1].weights) / sigma)
    found = [number.value for number in numbers.values() if isinstance(number, Estimate)]
    mean: Number = Estimate(float(np.mean(found))) if found else Missing("no quantity can be compared")
    return {"w1": mean} | numbers


def wasserstein(
    a: Float64[np.ndarray, " n"],
    b: Float64[np.ndarray, " m"],
    a_weights: Float64[np.ndarray, " n"],
    b_weights: Float64[np.ndarray, " m"],
) -> float:
    """Return the Wasserstein-1 distance of two weighted samples: the integral of |F_a - F_b|."""
    values = np.concatenate([a, b])
    order = np.argsort(values)
    steps = np.concatenate([a_weights / a_weights.sum(), -b_weights / b_weights.sum()])[order]
    return float(np.abs(np.cumsum(steps)[:-1]) @ np.diff(values[order]))


def auc_bundles(truth: CellEvents, other: CellEvents, most: int, seed: int) -> Number:
    """Return the weighted AUC of boosting on primary and bundle quantities, trained on the cell's events alone.

    Args:
        truth, other: events of the cell; they share no shower.
        most: largest number of events of each sample that are used; they are drawn at random.
        seed: seed of the draw, the folds and the classifier.
    """
    rng = np.random.default_rng(seed)
    parts = [part.where(_some(len(part), most, rng)) for part in (truth, other)]
    fewest = min(effective(part.weights) for part in parts)
    if fewest < MIN_EFFECTIVE:
        return Missing(f"{fewest:,.0f} effective events in one sample, {MIN_EFFECTIVE:,} needed")
    values = np.concatenate([np.column_stack([primary_features(p.primaries), p.counts, p.bundles]) for p in parts])
    is_other = np.repeat([False, True], [len(part) for part in parts])
    # The mean weight becomes 1 in each sample. Otherwise the classifier would mostly learn which sample weighs more.
    weights = np.concatenate([part.weights / part.weights.mean() for part in parts])
    shower = np.unique(np.concatenate([part.ids for part in parts]), axis=0, return_inverse=True)[1].ravel()
    fold = rng.permutation(np.arange(shower.max() + 1) % FOLDS)[shower]
    scored = []
    for number in range(FOLDS):
        inside = fold == number
        model = HistGradientBoostingClassifier(
            max_iter=TREES, learning_rate=0.1, early_stopping=True, n_iter_no_change=PATIENCE, random_state=seed
        )
        # A column with one value or without values (such as the spread in bundles of one muon) has no bins.
        finite = np.where(np.isfinite(values), values, np.nan)[~inside]
        used = np.isfinite(finite).any(0)
        used[used] = np.nanmax(finite[:, used], axis=0) > np.nanmin(finite[:, used], axis=0)
        model.fit(values[~inside][:, used], is_other[~inside], sample_weight=weights[~inside])
        rank = np.unique(model.decision_function(values[inside][:, used]), return_inverse=True)[1].ravel()
        scored.append((rank, is_other[inside], weights[inside], shower[inside]))
    ones = np.ones(shower.max() + 1)
    area = np.mean([_area(*part, ones) for part in scored])
    redrawn = [np.mean([_area(*part, of) for part in scored]) for of in rng.poisson(1.0, (BOOTSTRAPS, len(ones)))]
    # The square root of 2 is needed because the folds are correlated: see metrics/classifiers.py.
    return Estimate(float(area), float(np.sqrt(2) * np.std(redrawn, ddof=1)))


def _area(
    rank: Int64[np.ndarray, " events"],
    is_other: Bool[np.ndarray, " events"],
    weights: Float64[np.ndarray, " events"],
    shower: Int64[np.ndarray, " events"],
    of_shower: Float64[np.ndarray, " showers"],
) -> float:
    """Return the weighted AUC; ties count half."""
    weights = weights * of_shower[shower]
    others, truths = np.bincount(rank, weights * is_other), np.bincount(rank, weights * ~is_other)
    truths_below = np.cumsum(truths) - truths / 2
    return float(others @ truths_below / (others.sum() * truths.sum()))


def _some(number: int, most: int, rng: np.random.Generator) -> Bool[np.ndarray, " events"]:
    chosen = np.zeros(number, bool)
    chosen[rng.permutation(number)[:most]] = True
    return chosen


def _mean_and_error(events: CellEvents, hits: Float64[np.ndarray, " events"]) -> tuple[float, float]:
    """Return the weighted mean number of hits of an event, and its standard error."""
    total = float(events.weights.sum())
    mean = float(hits.sum()) / total if total else 0.0
    off = _by_shower(events.ids, hits - mean * events.weights)
    return mean, math.sqrt(float(off @ off)) / total if total else 0.0


def _by_shower(
    ids: UInt64[np.ndarray, "events 2"], values: Float64[np.ndarray, " events"]
) -> Float64[np.ndarray, " s"]:
    shower = np.unique(ids, axis=0, return_inverse=True)[1].ravel()
    return np.bincount(shower, values)


def _variance(values: Float64[np.ndarray, " n"], weights: Float64[np.ndarray, " n"]) -> float:
    mean = np.average(values, weights=weights)
    return float(np.average((values - mean) ** 2, weights=weights))
