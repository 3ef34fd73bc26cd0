"""Two-sample tests by classifier: how well a trained classifier tells other events from true ones.

Lopez-Paz, Oquab 2017 (arXiv:1610.06545), with the area under the ROC curve (AUC) in place of the accuracy. Each event is
scored by a classifier that was trained on other showers: rows of one shower have one primary, and would be recognised.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float64, Int64
from sklearn.ensemble import HistGradientBoostingClassifier
from threadpoolctl import threadpool_limits

from crmuons.evaluation.metrics import Absent, Estimate, Number
from crmuons.evaluation.summaries import BUNDLE_QUANTITIES, Sample

MIN_EVENTS = 1_000  # On each side: with fewer, the classifier learns little, and a low AUC means nothing.
MIN_EVENTS_SCORED = 200  # On each side: the standard error of an AUC near 0.5 is then 0.029.
FOLDS = 3
BOOTSTRAPS = 40


@dataclass(frozen=True)
class Scores:
    """Scores of the events of two sets by classifiers that have not seen their showers.

    Attributes:
        score: higher where the event looks less like the truth.
        is_other: whether the event is of the other set.
        fold: which classifier gave the score; only scores of one classifier compare.
        showers: the shower of each event.
    """

    score: Float64[np.ndarray, " events"]
    is_other: Bool[np.ndarray, " events"]
    fold: Int64[np.ndarray, " events"]
    showers: Int64[np.ndarray, " events"]

    def where(self, kept: Bool[np.ndarray, " events"]) -> "Scores":
        """The scores of some of the events."""
        return Scores(self.score[kept], self.is_other[kept], self.fold[kept], self.showers[kept])


# Fits on the events that are marked, and scores all.
Fit = Callable[[Bool[np.ndarray, " events"], Bool[np.ndarray, " events"]], Float64[np.ndarray, " events"]]


def out_of_fold(
    fit: Fit, is_other: Bool[np.ndarray, " events"], showers: Int64[np.ndarray, " events"], *, folds: int, seed: int
) -> Scores:
    """Cross-validate by showers.

    Args:
        fit: called as fit(is_other, training), returns the scores of all events.
        is_other: the label to learn.
        showers: events of one shower are in one fold, whichever set they are of.
        folds: how many classifiers are trained, each on all folds but one.
        seed: of the assignment to folds.
    """
    _, shower = np.unique(showers, return_inverse=True)
    fold_of_shower = np.random.default_rng(seed).permutation(np.arange(shower.max() + 1) % folds)
    fold = fold_of_shower[shower.ravel()]
    score = np.empty(len(fold))
    # One thread: with more, each of a tree's thousands of small parallel loops waits for the slowest thread, and on a
    # machine that is busy otherwise (2 cores, load 5) a fit of 3 s took 100 s.
    with threadpool_limits(limits=1):
        for number in range(folds):
            score[fold == number] = fit(is_other, fold != number)[fold == number]
    return Scores(score, is_other, fold, showers)


def area_under_curve(scores: Scores, *, seed: int = 0) -> Number:
    """AUC: the probability that an event of the other set scores above a true one, ties counting half.

    The mean over folds, since scores of different classifiers do not compare. The error is the standard deviation when
    showers are drawn anew (Poisson weights, BOOTSTRAPS times), times the square root of 2: where there is nothing to find,
    what a classifier finds by chance in one fold it is charged for in another, so folds err together (measured over 150
    repetitions: 1.49 with two folds, 1.32 with three).
    """
    others = int(scores.is_other.sum())
    fewest = min(others, len(scores.is_other) - others)
    if fewest < MIN_EVENTS_SCORED:
        return Absent(f"{fewest} events on one side, {MIN_EVENTS_SCORED} needed")
    rng = np.random.default_rng(seed)
    _, shower = np.unique(scores.showers, return_inverse=True)
    shower = shower.ravel()
    folds = [_Fold.of(scores, shower, fold) for fold in np.unique(scores.fold)]
    value = np.mean([fold.auc(np.ones(shower.max() + 1)) for fold in folds])
    redrawn = [
        np.mean([fold.auc(weights) for fold in folds]) for weights in rng.poisson(1.0, (BOOTSTRAPS, shower.max() + 1))
    ]
    return Estimate(float(value), float(np.sqrt(2) * np.std(redrawn, ddof=1)))


def too_few(truth: Sample, other: Sample) -> Absent | None:
    """Why no classifier can be trained; None where one can."""
    fewest = min(len(truth), len(other))
    return Absent(f"{fewest} events on one side, {MIN_EVENTS} needed") if fewest < MIN_EVENTS else None


def bundle_scores(truth: Sample, other: Sample, *, seed: int) -> Scores:
    """Gradient boosting on all that `summaries` says of a bundle, with the primary and N."""
    names = BUNDLE_QUANTITIES
    features = [np.column_stack([s.conditions, *(s.bundles[name] for name in names)]) for s in (truth, other)]
    return _boosting_scores(features, truth, other, seed)


def multiplicity_scores(truth: Sample, other: Sample, *, seed: int) -> Scores:
    """Gradient boosting on the primary and N alone."""
    features = [np.column_stack([sample.conditions, sample.counts]) for sample in (truth, other)]
    return _boosting_scores(features, truth, other, seed)


def labels_and_showers(
    truth: Sample, other: Sample
) -> tuple[Bool[np.ndarray, " events"], Int64[np.ndarray, " events"]]:
    """Which of the events, true ones first, are of the other set; and their showers."""
    is_other = np.repeat([False, True], [len(truth), len(other)])
    return is_other, np.concatenate([truth.showers, other.showers])


def _boosting_scores(
    parts: list[Float64[np.ndarray, "events features"]], truth: Sample, other: Sample, seed: int
) -> Scores:
    features = np.concatenate(parts)

    def fit(is_other: Bool[np.ndarray, " events"], training: Bool[np.ndarray, " events"]) -> np.ndarray:
        model = HistGradientBoostingClassifier(
            max_iter=300, learning_rate=0.1, early_stopping=True, n_iter_no_change=15, random_state=seed
        )
        model.fit(features[training], is_other[training])
        scores: np.ndarray = model.decision_function(features)
        return scores

    is_other, showers = labels_and_showers(truth, other)
    return out_of_fold(fit, is_other, showers, folds=FOLDS, seed=seed)


@dataclass(frozen=True)
class _Fold:
    """One classifier's scores as ranks, so that a weighted AUC takes two bincounts."""

    rank: Int64[np.ndarray, " events"]
    is_other: Bool[np.ndarray, " events"]
    shower: Int64[np.ndarray, " events"]

    @classmethod
    def of(cls, scores: Scores, shower: Int64[np.ndarray, " events"], fold: int) -> "_Fold":
        inside = scores.fold == fold
        _, rank = np.unique(scores.score[inside], return_inverse=True)
        return cls(rank.ravel(), scores.is_other[inside], shower[inside])

    def auc(self, weight_of_shower: Float64[np.ndarray, " showers"]) -> float:
        weights = weight_of_shower[self.shower]
        others = np.bincount(self.rank, weights * self.is_other)
        truths = np.bincount(self.rank, weights * ~self.is_other)
        truths_below = np.cumsum(truths) - truths / 2
        return float(others @ truths_below / (others.sum() * truths.sum()))
