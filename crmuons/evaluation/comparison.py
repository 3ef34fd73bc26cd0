"""Compare one sample with the truth: all figures, for all events, in bins of the primary, and for hard cases."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool

from crmuons.data.features import MuonFeature
from crmuons.evaluation.datasets import EventSet
from crmuons.evaluation.metrics import classifiers, distances, ratios, set_classifier
from crmuons.evaluation.metrics.classifiers import Scores, area_under_curve
from crmuons.evaluation.metrics.distances import Number
from crmuons.evaluation.metrics.further import columns
from crmuons.evaluation.metrics.memorising import nearer_to_training
from crmuons.evaluation.metrics.multivariate import multivariate
from crmuons.evaluation.metrics.profiles import ProfileBin, profiles
from crmuons.evaluation.metrics.quantities import Sample
from crmuons.evaluation.metrics.regions import HardCase, Region
from crmuons.evaluation.tasks import Executor, Future

Numbers = dict[str, Number]

BIN_KERNEL_BATCH = 2_000  # Batch of the kernel distance in a bin. It takes a sixth of the work of a batch of 5,000.
MEMORISED = "nearer_to_training"
AREAS = ("auc_bundles", "auc_multiplicity", "auc_muons")


@dataclass(frozen=True)
class EvaluationPlan:
    """How to compare samples.

    Attributes:
        regions, hard_cases: parts of the events that are compared separately.
        seed: seed of all random draws.
        training: training events; None if there are none.
        further: features of a muon beyond the first three.
    """

    regions: list[Region]
    hard_cases: list[HardCase]
    seed: int
    training: Future[Sample] | None = None
    further: tuple[MuonFeature, ...] = ()


@dataclass(frozen=True)
class EventSample:
    """A set of events and its quantities, which the executor holds."""

    event_set: EventSet
    sample: Future[Sample]


@dataclass(frozen=True)
class Comparison:
    """The figures of one sample, submitted to the executor.

    Attributes:
        numbers: the figures for all events, in several parts.
        bins: the figures of each region of the plan.
        hard_cases: for each hard case of the plan, how many events belong to it, and the figures.
        profiles: further features in bins of radius and energy.
    """

    numbers: list[Future[Numbers]]
    bins: list[Future[Numbers]]
    hard_cases: list[Future[tuple[int, Numbers]]]
    profiles: Future[list[ProfileBin]]


def compare(executor: Executor, truth: EventSample, other: EventSample, plan: EvaluationPlan) -> Comparison:
    """Submit all figures of the other events against the truth."""
    scores = classify(executor, truth, other, plan.seed, plan.further)
    names = tuple(scores)
    both = truth.sample, other.sample
    numbers = [
        executor.submit(marginal_numbers, *both),
        executor.submit(multivariate, *both, plan.seed),
        executor.submit(_areas, len(truth.event_set), len(other.event_set), names, *scores.values()),
        executor.submit(_memorised, *both, plan.training, plan.seed),
    ]
    bins = [executor.submit(_in_region, region, *both, plan.seed, names, *scores.values()) for region in plan.regions]
    cases = [executor.submit(_in_case, case, *both, names, *scores.values()) for case in plan.hard_cases]
    return Comparison(numbers, bins, cases, executor.submit(profiles, *both, columns(plan.further)))


def compare_truth(executor: Executor, truth: EventSample, control: EventSample, plan: EvaluationPlan) -> Comparison:
    """Submit the null distribution of the figures (the floor): truth against truth.

    W1/sigma is the mean over many random splits of both halves together; the other figures come from one comparison.
    """
    once = compare(executor, truth, control, plan)
    both = truth.sample, control.sample
    null = executor.submit(_null_distances, None, *both, plan.seed)
    bins = [
        executor.submit(_replace, numbers, executor.submit(_null_distances, region, *both, plan.seed))
        for region, numbers in zip(plan.regions, once.bins, strict=True)
    ]
    cases = [
        executor.submit(_replace_in_case, numbers, executor.submit(_null_distances, case, *both, plan.seed))
        for case, numbers in zip(plan.hard_cases, once.hard_cases, strict=True)
    ]
    return Comparison([*once.numbers, null], bins, cases, once.profiles)


def classify(
    executor: Executor, truth: EventSample, other: EventSample, seed: int, further: tuple[MuonFeature, ...] = ()
) -> dict[str, Future[Scores]]:
    """Submit the classifiers' scores, by figure; empty if there are too few events to train on."""
    if classifiers.too_few(len(truth.event_set), len(other.event_set)):
        return {}
    both = truth.sample, other.sample
    events = truth.event_set.events, other.event_set.events
    bundles = executor.submit(set_classifier.BundleSet.of, *events, seed, further)
    folds = {
        name: [
            executor.submit(classifiers.boosting_fold, *both, features, fold, seed) for fold in range(classifiers.FOLDS)
        ]
        for name, features in (
            ("auc_bundles", classifiers.bundle_features),
            ("auc_multiplicity", classifiers.multiplicity_features),
        )
    }
    folds["auc_muons"] = [
        executor.submit(set_classifier.set_fold, bundles, *both, fold, seed) for fold in range(set_classifier.FOLDS)
    ]
    return {name: executor.submit(classifiers.assemble, *both, seed, *scores) for name, scores in folds.items()}


def marginal_numbers(truth: Sample, other: Sample) -> Numbers:
    """Compute the figures of single quantities: distances, multiplicities and tails."""
    if not len(truth) or not len(other):
        return distances.distances(truth, other)
    return distances.distances(truth, other) | ratios.multiplicity(truth, other) | ratios.tails(truth, other)


def _memorised(truth: Sample, other: Sample, training: Sample | None, seed: int) -> Numbers:
    return {MEMORISED: nearer_to_training(truth, other, training, seed)}


def _areas(num_true: int, num_other: int, names: tuple[str, ...], *scores: Scores) -> Numbers:
    missing = classifiers.too_few(num_true, num_other)
    if missing is not None:
        return dict.fromkeys(AREAS, missing)
    return {name: area_under_curve(part) for name, part in zip(names, scores, strict=True)}


def _in_region(
    region: Region, truth: Sample, other: Sample, seed: int, names: tuple[str, ...], *scores: Scores
) -> Numbers:
    """Compute the figures of a bin. The classifiers were trained on all events."""
    true_mask, other_mask = region.holds(truth.conditions), region.holds(other.conditions)
    true_part, other_part = truth.where(true_mask), other.where(other_mask)
    areas = _areas_where(np.concatenate([true_mask, other_mask]), names, scores)
    joint = multivariate(true_part, other_part, seed, kernel_batch=BIN_KERNEL_BATCH)
    return marginal_numbers(true_part, other_part) | joint | areas


def _in_case(
    case: HardCase, truth: Sample, other: Sample, names: tuple[str, ...], *scores: Scores
) -> tuple[int, Numbers]:
    """Return how many other events belong to a hard case, and its figures; `rate` is its frequency, other/true."""
    weights = case.weight(truth), case.weight(other)
    areas = _areas_where(np.concatenate(weights) > 0, names, scores)
    part = case.part(other)
    rate = ratios.tail_ratio(truth, other, *weights)
    return len(part), {"rate": rate} | distances.distances(case.part(truth), part) | areas


def _areas_where(selected: Bool[np.ndarray, " events"], names: tuple[str, ...], scores: tuple[Scores, ...]) -> Numbers:
    return {name: area_under_curve(part.where(selected)) for name, part in zip(names, scores, strict=True)}


def _null_distances(where: Region | HardCase | None, truth: Sample, control: Sample, seed: int) -> Numbers:
    """Compute W1/sigma of truth against truth over random splits, for all events or in one region or hard case."""
    pool = Sample.concat([truth, control])
    splits = distances.random_splits(pool, seed)
    if isinstance(where, Region):
        pool = pool.where(where.holds(pool.conditions))
    elif isinstance(where, HardCase):
        pool = where.part(pool)
    return distances.null_distances(pool, splits)


def _replace(numbers: Numbers, null: Numbers) -> Numbers:
    return numbers | null


def _replace_in_case(case: tuple[int, Numbers], null: Numbers) -> tuple[int, Numbers]:
    return case[0], case[1] | null
