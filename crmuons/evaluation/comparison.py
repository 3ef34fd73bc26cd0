"""One contender against the truth: all its figures, for all events, in bins of the primary's quantities and in hard cases."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool

from crmuons.evaluation.datasets import EventSet
from crmuons.evaluation.metrics import classifiers, distances, ratios, set_classifier
from crmuons.evaluation.metrics.classifiers import Scores, area_under_curve
from crmuons.evaluation.metrics.distances import Number
from crmuons.evaluation.metrics.multivariate import multivariate
from crmuons.evaluation.metrics.quantities import Sample
from crmuons.evaluation.metrics.regions import HardCase, Region
from crmuons.evaluation.tasks import Executor, Future

Numbers = dict[str, Number]
Splits = Bool[np.ndarray, "splits showers"]

SPLITS = 24  # Truth-against-truth splits: their spread is then known to a seventh.
BIN_KERNEL_BATCH = 2_000  # Of the kernel distance in a bin: a sixth of the work of a batch of 5,000.
AREAS = ("auc_bundles", "auc_multiplicity", "auc_muons")


@dataclass(frozen=True)
class EvaluationPlan:
    """What is asked for beside the figures for all events."""

    regions: list[Region]
    hard_cases: list[HardCase]
    seed: int


@dataclass(frozen=True)
class EventSample:
    """A set of events and, where the pieces run, its quantities."""

    side: EventSet
    sample: Future[Sample]


@dataclass(frozen=True)
class Comparison:
    """Figures that are still to be made.

    Attributes:
        numbers: parts of the figures for all events.
        bins: of each region of the frame.
        hard_cases: of each hard case of the frame: how many events, and the figures.
    """

    numbers: list[Future[Numbers]]
    bins: list[Future[Numbers]]
    hard_cases: list[Future[tuple[int, Numbers]]]


def compare(pieces: Executor, truth: EventSample, other: EventSample, frame: EvaluationPlan) -> Comparison:
    """All figures of the other events against the truth."""
    scores = classify(pieces, truth, other, frame.seed)
    names = tuple(scores)
    both = truth.sample, other.sample
    numbers = [
        pieces.later(_marginal_numbers, *both),
        pieces.later(multivariate, *both, frame.seed),
        pieces.later(_areas, len(truth.side), len(other.side), names, *scores.values()),
    ]
    bins = [pieces.later(_in_region, region, *both, frame.seed, names, *scores.values()) for region in frame.regions]
    cases = [pieces.later(_in_case, case, *both, names, *scores.values()) for case in frame.hard_cases]
    return Comparison(numbers, bins, cases)


def compare_truth(pieces: Executor, truth: EventSample, control: EventSample, frame: EvaluationPlan) -> Comparison:
    """The floor: `compare` of true events with true ones, whose W1/sigma are taken over many splits of both."""
    once = compare(pieces, truth, control, frame)
    both = truth.sample, control.sample
    null = pieces.later(_null_distances, None, *both, frame.seed)
    bins = [
        pieces.later(_with, numbers, pieces.later(_null_distances, region, *both, frame.seed))
        for region, numbers in zip(frame.regions, once.bins, strict=True)
    ]
    cases = [
        pieces.later(_with_case, numbers, pieces.later(_null_distances, case, *both, frame.seed))
        for case, numbers in zip(frame.hard_cases, once.hard_cases, strict=True)
    ]
    return Comparison([*once.numbers, null], bins, cases)


def random_splits(pool: Sample, seed: int) -> Splits:
    """The splits of the truth that make the floor."""
    return distances.random_splits(int(pool.showers.max()) + 1, SPLITS, seed)


def classify(pieces: Executor, truth: EventSample, other: EventSample, seed: int) -> dict[str, Future[Scores]]:
    """The classifiers' scores by figure; none where there are too few events to train on."""
    if classifiers.too_few(len(truth.side), len(other.side)):
        return {}
    both = truth.sample, other.sample
    bundles = pieces.later(set_classifier.Bundles.of, truth.side.events, other.side.events, seed)
    folds = {
        name: [
            pieces.later(classifiers.boosting_fold, *both, features, fold, seed) for fold in range(classifiers.FOLDS)
        ]
        for name, features in (
            ("auc_bundles", classifiers.bundle_features),
            ("auc_multiplicity", classifiers.multiplicity_features),
        )
    }
    folds["auc_muons"] = [
        pieces.later(set_classifier.set_fold, bundles, *both, fold, seed) for fold in range(set_classifier.FOLDS)
    ]
    return {name: pieces.later(classifiers.assemble, *both, seed, *scores) for name, scores in folds.items()}


def _marginal_numbers(truth: Sample, other: Sample) -> Numbers:
    if not len(truth) or not len(other):
        return distances.distances(truth, other)
    return distances.distances(truth, other) | ratios.multiplicity(truth, other) | ratios.tails(truth, other)


def _areas(num_true: int, num_other: int, names: tuple[str, ...], *scores: Scores) -> Numbers:
    absent = classifiers.too_few(num_true, num_other)
    if absent is not None:
        return dict.fromkeys(AREAS, absent)
    return {name: area_under_curve(each) for name, each in zip(names, scores, strict=True)}


def _in_region(
    region: Region, truth: Sample, other: Sample, seed: int, names: tuple[str, ...], *scores: Scores
) -> Numbers:
    """The figures of a bin; the classifiers are those that were trained on all events."""
    here, there = region.holds(truth.conditions), region.holds(other.conditions)
    true_part, part = truth.where(here), other.where(there)
    kept = np.concatenate([here, there])
    areas = {name: area_under_curve(each.where(kept)) for name, each in zip(names, scores, strict=True)}
    joint = multivariate(true_part, part, seed, kernel_batch=BIN_KERNEL_BATCH)
    return _marginal_numbers(true_part, part) | joint | areas


def _in_case(
    case: HardCase, truth: Sample, other: Sample, names: tuple[str, ...], *scores: Scores
) -> tuple[int, Numbers]:
    """How many of the other events there are in a hard case, and their figures. `rate` is the ratio of how often it occurs."""
    weights = case.weight(truth), case.weight(other)
    kept = np.concatenate(weights) > 0
    areas = {name: area_under_curve(each.where(kept)) for name, each in zip(names, scores, strict=True)}
    part = case.part(other)
    rate = ratios.tail_ratio(truth, other, *weights)
    return len(part), {"rate": rate} | distances.distances(case.part(truth), part) | areas


def _null_distances(where: Region | HardCase | None, truth: Sample, control: Sample, seed: int) -> Numbers:
    """W1/sigma of truth against truth, over random splits."""
    pool = Sample.concat([truth, control])
    splits = random_splits(pool, seed)
    if isinstance(where, Region):
        pool = pool.where(where.holds(pool.conditions))
    elif isinstance(where, HardCase):
        pool = where.part(pool)
    return distances.null_distances(pool, splits)


def _with(numbers: Numbers, null: Numbers) -> Numbers:
    return numbers | null


def _with_case(case: tuple[int, Numbers], null: Numbers) -> tuple[int, Numbers]:
    return case[0], case[1] | null
