"""The truth in two halves, with what does not depend on what is evaluated: the floor, and two cheap rivals."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64, Int64

from crmuons.data.events import EventArrays, concat
from crmuons.evaluation import baselines
from crmuons.evaluation.comparison import Comparison, EvaluationPlan, EventSample, compare, compare_truth
from crmuons.evaluation.datasets import BlockedEvents, EventSet
from crmuons.evaluation.headers import EventHeaders
from crmuons.evaluation.metrics import regions
from crmuons.evaluation.metrics.quantities import Sample, primary_features, shower_numbers
from crmuons.evaluation.tasks import Executor

GENERATED, FLOOR, NEAREST, PARAMETRIC = "generated", "truth", "nearest primary", "parametric"
EVENTS_PER_PIECE = 2**14  # Of generation and of the rivals. A multiple of the blocks that share a random stream.
ADVISED_EVENTS = 20_000


@dataclass(frozen=True)
class EvaluationSettings:
    """How many events are compared (on each side), and the seed of all that is drawn.

    Raises:
        ValueError: if there are none to compare, or the seed is negative.
    """

    max_events: int = 60_000
    seed: int = 0

    def __post_init__(self) -> None:
        if self.max_events < 1:
            msg = f"--events {self.max_events}: wanted 1 or more on each side, better {ADVISED_EVENTS:,}"
            raise ValueError(msg)
        if self.seed < 0:
            msg = f"--seed {self.seed}: wanted 0 or more"
            raise ValueError(msg)


@dataclass(frozen=True)
class Reference:
    """True events in two halves, and what does not depend on the candidate: the floor and the rivals.

    Attributes:
        truth, control: the halves.
        comparisons: by contender.
        frame: what is asked for.
        warnings: why a rival is not there, and whether there are few events.
    """

    truth: EventSample
    control: EventSample
    comparisons: dict[str, Comparison]
    frame: EvaluationPlan
    warnings: list[str]

    @property
    def both(self) -> EventHeaders:
        """All true events that are used."""
        return EventHeaders.concat([self.truth.side.outline, self.control.side.outline])


def prepare_reference(
    pieces: Executor,
    truth: BlockedEvents,
    training: BlockedEvents | None,
    settings: EvaluationSettings,
    rows: tuple[np.ndarray, np.ndarray],
) -> Reference:
    """Set floor and rivals going.

    Args:
        pieces: where the work is done.
        truth: true events.
        training: for the rivals, and for the masses that were trained on; showers that are in the truth are left out.
        settings: sizes and seed.
        rows: of the true events, the two halves.

    Raises:
        ValueError: if no true event has a muon.
    """
    first, second = (truth.gather(pieces, half) for half in rows)
    if not first.outline.counts.any():
        msg = f"none of the {len(first)} true events has a muon: there is nothing to compare"
        raise ValueError(msg)
    here, there = shower_numbers(first.outline.ids, second.outline.ids)
    control_contender = contender(pieces, second, there)
    truth_contender = contender(pieces, first, here)
    conditions = primary_features(EventHeaders.concat([first.outline, second.outline]).primaries)
    frame = EvaluationPlan(list(regions.regions(conditions)), regions.hard_cases(_masses(training)), settings.seed)
    others, warnings = _rivals(pieces, (first, second), training, settings.seed)
    comparisons = {FLOOR: compare_truth(pieces, truth_contender, control_contender, frame)}
    for name, side in others.items():
        comparisons[name] = compare(pieces, truth_contender, contender(pieces, side, there), frame)
    warnings += _size_warnings(first)
    return Reference(truth_contender, control_contender, comparisons, frame, warnings)


def contender(pieces: Executor, side: EventSet, showers: Int64[np.ndarray, " events"]) -> EventSample:
    """Events with their quantities."""
    return EventSample(side, pieces.later(Sample.of, side.events, showers))


def parts(events: EventHeaders) -> Iterator[tuple[int, tuple[np.ndarray, np.ndarray]]]:
    """Primaries and ids of EVENTS_PER_PIECE events at a time, with the number of the first."""
    for start in range(0, len(events), EVENTS_PER_PIECE):
        rows = slice(start, start + EVENTS_PER_PIECE)
        yield start, (events.primaries[rows], events.ids[rows])


def concat_samples(*parts: EventArrays) -> EventArrays:
    """The events of several parts, in order."""
    return concat(parts)


def _rivals(
    pieces: Executor, halves: tuple[EventSet, EventSet], training: BlockedEvents | None, seed: int
) -> tuple[dict[str, EventSet], list[str]]:
    """The rivals' events for the control's primaries, and why a rival is not there."""
    if training is None:
        return {}, ["no training events were given, so the cheap rivals are missing"]
    known = EventHeaders.concat([half.outline for half in halves])
    theirs, ours = shower_numbers(training.outline.ids, known.ids)
    rows = np.flatnonzero(~np.isin(theirs, ours))
    muons = int(training.outline.counts[rows].sum())
    if len(rows) < baselines.MIN_TRAINING_EVENTS or not muons:
        reason = f"{len(rows)} training events with {muons} muons share no shower with the truth"
        return {}, [f"the cheap rivals are missing: {reason}, {baselines.MIN_TRAINING_EVENTS} events are needed"]
    learned, control = training.gather(pieces, rows).events, halves[1].outline
    nearest = pieces.later(baselines.NearestPrimary, learned)
    parametric = pieces.later(baselines.ParametricSampler.fit, learned, seed)
    copied = [pieces.later(baselines.NearestPrimary.generate, nearest, *part) for _, part in parts(control)]
    drawn = [
        pieces.later(baselines.ParametricSampler.generate, parametric, *part, (seed, start))
        for start, part in parts(control)
    ]
    return {
        name: EventSet(control, pieces.later(concat_samples, *parts))
        for name, parts in ((NEAREST, copied), (PARAMETRIC, drawn))
    }, []


def _masses(training: BlockedEvents | None) -> Float64[np.ndarray, " masses"] | None:
    if training is None or not len(training):
        return None
    return np.unique(training.outline.primaries[:, 2]).astype(np.float64)


def _size_warnings(truth: EventSet) -> list[str]:
    if len(truth) >= ADVISED_EVENTS:
        return []
    showers = len(np.unique(truth.outline.ids, axis=0))
    warning = (
        f"{len(truth)} events ({showers} showers) a side could be compared, which takes twice as many true ones: the floor is "
        f"high, and what lies below it is not seen; {ADVISED_EVENTS:,} or more a side are advised"
    )
    return [warning]
