"""What is evaluated: a model, which generates for true primaries, or a data set."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Int64

from crmuons.data.events import EventArrays
from crmuons.evaluation import pairing
from crmuons.evaluation.datasets import BlockedEvents, EventSet
from crmuons.evaluation.headers import EventHeaders
from crmuons.evaluation.metrics import calibration
from crmuons.evaluation.metrics.calibration import Calibration
from crmuons.evaluation.metrics.quantities import primary_features, shower_numbers
from crmuons.evaluation.reference import EVENTS_PER_PIECE, Reference, concat_samples, parts
from crmuons.evaluation.tasks import Executor, Future
from crmuons.evaluation.training_statistics import training_warnings
from crmuons.generation.generator import BundleGenerator


@dataclass(frozen=True)
class Candidate:
    """What is evaluated.

    Attributes:
        side: its events.
        showers: their numbers.
        paired: true events, and the candidate's N for the same primaries in the same order; None where there are none.
        calibration: the PIT of a model.
        warnings: what is to be said of it.
    """

    side: EventSet
    showers: Int64[np.ndarray, " events"]
    paired: tuple[EventHeaders, Int64[np.ndarray, " events"]] | None
    calibration: Calibration | None
    warnings: list[str]


def model_candidate(pieces: Executor, reference: Reference, generator: BundleGenerator) -> Candidate:
    """A model's events for the primaries of the control, and its N for all true primaries."""
    model, seed = pieces.given(generator), reference.frame.seed
    truth, control = reference.truth.side.outline, reference.control.side.outline
    made = [pieces.later(_generate, model, *part, seed, start) for start, part in parts(control)]
    events = pieces.later(concat_samples, *made)
    drawn = [pieces.later(_draw_counts, model, part[0], seed, start) for start, part in parts(truth)]
    warned = pieces.later(training_warnings, model, reference.truth.side.events)
    pit = _calibrate(pieces, model, reference.both, seed)
    side = EventSet(EventHeaders(control.ids, control.primaries, pieces.get(pieces.later(_counts, events))), events)
    counts = np.concatenate([*(pieces.get(each) for each in drawn), side.outline.counts])
    outside = _outside_warnings(generator, reference.both)
    showers = _showers(reference, side.outline)
    return Candidate(side, showers, (reference.both, counts), pit, outside + pieces.get(warned))


def data_candidate(
    pieces: Executor, reference: Reference, truth: BlockedEvents, generated: BlockedEvents, pairs: pairing.Pairing
) -> Candidate:
    """A data set's events.

    Args:
        pieces: where the work is done.
        reference: of the pairs' true events.
        truth: the true data set.
        generated: the other data set.
        pairs: which of their events are compared.
    """
    side = generated.gather(pieces, pairs.generated)
    paired = None
    if pairs.paired is not None:
        of_truth, of_generated = pairs.paired
        paired = truth.outline.take(of_truth), generated.outline.counts[of_generated]
    warnings = pairing.range_warnings(reference.both, side.outline) + _copy_warnings(paired)
    return Candidate(side, _showers(reference, side.outline), paired, None, warnings)


def _copy_warnings(paired: tuple[EventHeaders, Int64[np.ndarray, " events"]] | None) -> list[str]:
    if paired is None or (paired[0].counts != paired[1]).any():
        return []
    return [
        "every generated event has the N of the true event of its primary: are the two data sets the same, or was N given?"
    ]


def _generate(
    generator: BundleGenerator, primaries: np.ndarray, ids: np.ndarray, seed: int, first_event: int
) -> EventArrays:
    return generator.generate(primaries, seed=seed, ids=ids, first_event=first_event)


def _draw_counts(generator: BundleGenerator, primaries: np.ndarray, seed: int, first_event: int) -> np.ndarray:
    """N for other primaries than `_generate`'s, from other random numbers."""
    own = int(np.random.SeedSequence([seed, first_event, 1]).generate_state(1, np.uint32)[0])
    return generator.draw_counts(primaries, seed=own)


def _counts(events: EventArrays) -> Int64[np.ndarray, " events"]:
    return events.counts


def _calibrate(pieces: Executor, model: Future[BundleGenerator], truth: EventHeaders, seed: int) -> Calibration:
    """The PIT of one event of every shower, so that uniform values are independent ones."""
    events = truth.take(pairing.one_per_shower(truth, seed))
    rows = [slice(start, start + EVENTS_PER_PIECE) for start in range(0, len(events), EVENTS_PER_PIECE)]
    cdfs = [pieces.later(_cumulative, model, events.primaries[part], events.counts[part]) for part in rows]
    below, up_to = (np.concatenate(each) for each in zip(*(pieces.get(cdf) for cdf in cdfs), strict=True))
    return Calibration(calibration.randomised_pit(below, up_to, seed), primary_features(events.primaries))


def _cumulative(generator: BundleGenerator, primaries: np.ndarray, counts: np.ndarray) -> calibration.Cumulative:
    return calibration.cumulative(generator.model, primaries, counts)


def _showers(reference: Reference, outline: EventHeaders) -> Int64[np.ndarray, " events"]:
    """The numbers of showers as the reference numbers them; new numbers, after those, where it has none."""
    ids = reference.truth.side.outline.ids, reference.control.side.outline.ids
    known, found = shower_numbers(np.concatenate(ids), outline.ids)
    ours = np.concatenate(shower_numbers(*ids))
    first_new = int(ours.max()) + 1
    number_of = first_new + np.arange(max(int(known.max()), int(found.max())) + 1)
    number_of[known] = ours
    numbers: np.ndarray = number_of[found]
    return numbers


def _outside_warnings(generator: BundleGenerator, truth: EventHeaders) -> list[str]:
    outside = int(generator.outside_training(truth.primaries).sum())
    if not outside:
        return []
    ranges = ", ".join(f"{name} {low:.4g} to {high:.4g}" for name, (low, high) in generator.training_ranges.items())
    return [
        f"{outside} of the {len(truth)} true primaries lie outside the range that the model was trained in ({ranges})"
    ]
