"""The reference of an evaluation, the same for every candidate: two halves of the truth, the floor, two baselines."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64, Int64

from crmuons.config.options import ADVISED_EVENTS, SampleEvents, Seed, check
from crmuons.data.events import EventArrays
from crmuons.data.features import MuonFeature
from crmuons.evaluation import baselines
from crmuons.evaluation.comparison import Comparison, EvaluationPlan, EventSample, compare, compare_truth
from crmuons.evaluation.datasets import BlockedEvents, EventSet, concat_parts
from crmuons.evaluation.headers import EventHeaders
from crmuons.evaluation.metrics import regions
from crmuons.evaluation.metrics.quantities import Sample, primary_features, shower_numbers
from crmuons.evaluation.tasks import Executor, Future

# The samples that are compared with the first half of the truth. NULL, the floor, is the second half of the truth.
GENERATED, NULL, NEAREST, PARAMETRIC = "generated", "truth", "nearest primary", "parametric"
EVENTS_PER_TASK = 2**14  # Events per task. A multiple of the generator's blocks, because each has one random stream.


@dataclass(frozen=True)
class EvaluationSettings:
    """The size and the seed of an evaluation.

    Attributes:
        max_events: the largest number of events in each of the compared samples.
        seed: seed of all random draws.

    Raises:
        ValueError: if `max_events` is below 1 or the seed is negative.
    """

    max_events: SampleEvents = 60_000
    seed: Seed = 0

    def __post_init__(self) -> None:
        check(self, max_events="--events")


@dataclass(frozen=True)
class Reference:
    """True events in two halves, and the comparisons that do not depend on the candidate.

    Attributes:
        truth, control: the halves.
        comparisons: comparisons of the control (NULL) and of the baselines with the first half, by name.
        plan: the bins, the hard cases and the seed.
        warnings: about missing baselines and few events.
    """

    truth: EventSample
    control: EventSample
    comparisons: dict[str, Comparison]
    plan: EvaluationPlan
    warnings: list[str]

    @property
    def both(self) -> EventHeaders:
        """The headers of both halves."""
        return EventHeaders.concat([self.truth.event_set.headers, self.control.event_set.headers])


def prepare_reference(
    executor: Executor,
    truth: BlockedEvents,
    training: BlockedEvents,
    settings: EvaluationSettings,
    halves: tuple[np.ndarray, np.ndarray],
    *,
    further: Sequence[MuonFeature] = (),
) -> Reference:
    """Submit the comparisons of the control and of the baselines with the truth.

    Args:
        executor: runs the work.
        truth: true events.
        training: events for the baselines, and for the masses that the model was trained on; may be empty. Events of
            showers that are in the truth are left out.
        settings: size and seed.
        halves: the rows of the true events in each half.
        further: features of the true muons beyond the first three.

    Raises:
        ValueError: if no event of the first half has a muon.
    """
    first, second = (truth.gather(executor, rows) for rows in halves)
    if not first.headers.counts.any():
        msg = f"none of the {len(first)} true events has a muon, so there is nothing to compare"
        raise ValueError(msg)
    truth_showers, control_showers = shower_numbers(first.headers.ids, second.headers.ids)
    further = tuple(further)
    truth_sample = event_sample(executor, first, truth_showers, further)
    control_sample = event_sample(executor, second, control_showers, further)
    conditions = primary_features(EventHeaders.concat([first.headers, second.headers]).primaries)
    unseen = _training_set(executor, (first, second), training)
    plan = EvaluationPlan(
        list(regions.regions(conditions)),
        regions.hard_cases(_masses(training)),
        settings.seed,
        event_sample(executor, unseen, shower_numbers(unseen.headers.ids)[0]).sample if len(unseen) else None,
        further,
    )
    comparisons = {NULL: compare_truth(executor, truth_sample, control_sample, plan)}
    rivals, warnings = _rivals(executor, second, unseen, settings.seed)
    for name, event_set in rivals.items():
        rival = event_sample(executor, event_set, control_showers, further)
        comparisons[name] = compare(executor, truth_sample, rival, plan)
    return Reference(truth_sample, control_sample, comparisons, plan, warnings + size_warnings(first))


def event_sample(
    executor: Executor,
    event_set: EventSet,
    showers: Int64[np.ndarray, " events"],
    further: tuple[MuonFeature, ...] = (),
) -> EventSample:
    """Submit the computation of the events' quantities."""
    return EventSample(event_set, executor.submit(Sample.of, event_set.events, showers, further))


def task_slices(num_events: int) -> Iterator[slice]:
    """Cut a number of events into slices of EVENTS_PER_TASK."""
    for start in range(0, num_events, EVENTS_PER_TASK):
        yield slice(start, start + EVENTS_PER_TASK)


def _training_set(executor: Executor, halves: tuple[EventSet, EventSet], training: BlockedEvents) -> EventSet:
    """Return the training events of showers that are not in the truth."""
    true_ids = np.concatenate([half.headers.ids for half in halves])
    training_showers, true_showers = shower_numbers(training.headers.ids, true_ids)
    return training.gather(executor, np.flatnonzero(~np.isin(training_showers, true_showers)))


def _rivals(
    executor: Executor, control: EventSet, training: EventSet, seed: int
) -> tuple[dict[str, EventSet], list[str]]:
    """Submit the baselines' events for the control's primaries; return them, or a warning if they are missing."""
    muons = int(training.headers.counts.sum())
    if len(training) < baselines.MIN_TRAINING_EVENTS or not muons:
        warning = (
            f"the baselines are missing: they need {baselines.MIN_TRAINING_EVENTS} training events of showers that are "
            f"not in the truth, and there are {len(training)} with {muons} muons"
        )
        return {}, [warning]
    return baseline_sets(executor, training.events, control.headers, seed), []


def baseline_sets(
    executor: Executor, training: Future[EventArrays], control: EventHeaders, seed: int
) -> dict[str, EventSet]:
    """Submit the baselines' events for the control's primaries; return them by the baseline's name."""
    nearest = executor.submit(baselines.NearestPrimary, training)
    parametric = executor.submit(baselines.ParametricSampler.fit, training, seed)
    slices = list(task_slices(len(control)))
    primaries_and_ids = [(control.primaries[rows], control.ids[rows]) for rows in slices]
    copied = [executor.submit(baselines.NearestPrimary.generate, nearest, *part) for part in primaries_and_ids]
    drawn = [
        executor.submit(baselines.ParametricSampler.generate, parametric, *part, (seed, rows.start))
        for part, rows in zip(primaries_and_ids, slices, strict=True)
    ]
    return {
        name: EventSet(control, executor.submit(concat_parts, *parts))
        for name, parts in ((NEAREST, copied), (PARAMETRIC, drawn))
    }


def _masses(training: BlockedEvents) -> Float64[np.ndarray, " masses"] | None:
    if not len(training):
        return None
    return np.unique(training.headers.primaries[:, 2]).astype(np.float64)


def size_warnings(truth: EventSet) -> list[str]:
    """Return a warning if a sample has too few events to show small differences."""
    if len(truth) >= ADVISED_EVENTS:
        return []
    showers = len(np.unique(truth.headers.ids, axis=0))
    warning = (
        f"each sample has only {len(truth)} events ({showers} showers): the floor is high, and smaller differences "
        f"stay hidden. Use {ADVISED_EVENTS:,} or more events for each sample, which needs twice as many true events"
    )
    return [warning]
