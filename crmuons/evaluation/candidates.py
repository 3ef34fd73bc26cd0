"""The candidate of an evaluation: a model, which generates events for true primaries, or a generated data set."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Int64

from crmuons.data.events import EventArrays, with_columns
from crmuons.data.features import BASE, columns_of
from crmuons.evaluation import pairing
from crmuons.evaluation.datasets import BlockedEvents, EventSet, concat_parts
from crmuons.evaluation.headers import EventHeaders
from crmuons.evaluation.metrics import calibration
from crmuons.evaluation.metrics.calibration import Calibration
from crmuons.evaluation.metrics.quantities import primary_features, shower_numbers
from crmuons.evaluation.reference import Reference, task_slices
from crmuons.evaluation.tasks import Executor, Future
from crmuons.evaluation.training_statistics import training_warnings
from crmuons.generation.generator import BundleGenerator
from crmuons.models.bundle_model import members_of

COPIES_LOOKED_FOR = 10_000  # Number of the candidate's muons that are searched for among the true muons.
# Largest share of these that may be found: rounded energies and positions coincide now and then.
MAX_COPIED_SHARE = 0.1

# True events, and the candidate's N for the same primaries in the same order.
PairedCounts = tuple[EventHeaders, Int64[np.ndarray, " events"]]


@dataclass(frozen=True)
class Candidate:
    """The generated events that an evaluation judges.

    Attributes:
        event_set: the events.
        showers: the shower number of each event.
        paired: N of true and generated events with the same primaries; None if the two share none.
        calibration: the PIT of a model; None for a data set.
        warnings: warnings for the reader of the report.
    """

    event_set: EventSet
    showers: Int64[np.ndarray, " events"]
    paired: PairedCounts | None
    calibration: Calibration | None
    warnings: list[str]


def model_candidate(executor: Executor, reference: Reference, generator: BundleGenerator) -> Candidate:
    """Generate a model's events for the primaries of the control, and its N for all true primaries."""
    model, seed = executor.put(generator), reference.plan.seed
    truth, control = reference.truth.event_set.headers, reference.control.event_set.headers
    kept = columns_of(generator.muon_features, (*BASE, *reference.plan.further), "the model")
    events = generated_events(executor, model, control, seed)
    if kept is not None:
        events = executor.submit(with_columns, events, kept)
    drawn_counts = [
        executor.submit(_draw_counts, model, truth.primaries[rows], seed, rows.start)
        for rows in task_slices(len(truth))
    ]
    warnings = executor.submit(training_warnings, model, reference.truth.event_set.events)
    pit = _calibrate(executor, model, reference.both, seed)
    control_counts = executor.get(executor.submit(_counts, events))
    event_set = EventSet(EventHeaders(control.ids, control.primaries, control_counts), events)
    counts = np.concatenate([*(executor.get(part) for part in drawn_counts), control_counts])
    return Candidate(
        event_set,
        _showers(reference, event_set.headers),
        (reference.both, counts),
        pit,
        _outside_warnings(generator, reference.both) + executor.get(warnings),
    )


def refuse_copies(executor: Executor, truth: BlockedEvents, generated: BlockedEvents, pairs: pairing.Pairing) -> None:
    """Refuse a generated data set that copies the true muons, because its score would mean nothing.

    Raises:
        ValueError: if more than MAX_COPIED_SHARE of the muons are copies; it names their number.
    """
    true_rows = np.concatenate([pairs.truth, pairs.control])
    both = truth.gather(executor, true_rows).events, generated.gather(executor, pairs.generated).events
    copied, looked_at = executor.get(executor.submit(_num_copied, *both))
    if copied > MAX_COPIED_SHARE * looked_at:
        msg = (
            f"the truth and the generated sample are the same rows: {copied} of {looked_at} generated muons occur among the true ones, "
            "number for number; give events that a model generated, or the truth that they are compared with"
        )
        raise ValueError(msg)


def _num_copied(truth: EventArrays, generated: EventArrays) -> tuple[int, int]:
    """Return how many generated muons are also true muons, and how many muons were searched."""
    step = max(len(generated.muons) // COPIES_LOOKED_FOR, 1)
    some = _keys(generated.muons[::step])
    return int(np.isin(some, _keys(truth.muons)).sum()), len(some)


def _keys(muons: np.ndarray) -> np.ndarray:
    """Return a number for each muon that depends on every bit of its energy and place."""
    words = np.ascontiguousarray(muons[:, :3]).view(np.uint32).astype(np.uint64)
    # The factors are odd numbers without a pattern.
    factors = np.array([0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9], np.uint64)
    return (words * factors).sum(axis=1, dtype=np.uint64)


def generated_events(
    executor: Executor, model: Future[BundleGenerator], primaries: EventHeaders, seed: int
) -> Future[EventArrays]:
    """Submit the generation of one event for each primary."""
    parts = [
        executor.submit(_generate, model, primaries.primaries[rows], primaries.ids[rows], seed, rows.start)
        for rows in task_slices(len(primaries))
    ]
    return executor.submit(concat_parts, *parts)


def data_candidate(
    executor: Executor, reference: Reference, truth: BlockedEvents, generated: BlockedEvents, pairs: pairing.Pairing
) -> Candidate:
    """Select the events of a generated data set.

    Args:
        executor: runs the work.
        reference: made of the true events of `pairs`.
        truth: the true data set.
        generated: the generated data set.
        pairs: the rows to compare.
    """
    event_set = generated.gather(executor, pairs.generated)
    paired = None
    if pairs.paired is not None:
        true_rows, generated_rows = pairs.paired
        paired = truth.headers.take(true_rows), generated.headers.counts[generated_rows]
    warnings = pairing.range_warnings(reference.both, event_set.headers) + _copy_warnings(paired)
    return Candidate(event_set, _showers(reference, event_set.headers), paired, None, warnings)


def _copy_warnings(paired: PairedCounts | None) -> list[str]:
    if paired is None or (paired[0].counts != paired[1]).any():
        return []
    return [
        "every generated event has the N of the true event of its primary: are the data sets the same, or was N given?"
    ]


def _generate(
    generator: BundleGenerator, primaries: np.ndarray, ids: np.ndarray, seed: int, first_event: int
) -> EventArrays:
    return generator.generate(primaries, seed=seed, ids=ids, first_event=first_event)


def _draw_counts(generator: BundleGenerator, primaries: np.ndarray, seed: int, first_event: int) -> np.ndarray:
    """Draw N with random numbers that `_generate` does not use."""
    own_seed = int(np.random.SeedSequence([seed, first_event, 1]).generate_state(1, np.uint32)[0])
    return generator.draw_counts(primaries, seed=own_seed)


def _counts(events: EventArrays) -> Int64[np.ndarray, " events"]:
    return events.counts


def _calibrate(executor: Executor, model: Future[BundleGenerator], truth: EventHeaders, seed: int) -> Calibration:
    """Compute the PIT of one event per shower, so that the values are independent."""
    events = truth.take(pairing.one_per_shower(truth, seed))
    cdfs = [
        executor.submit(_cumulative, model, events.primaries[rows], events.counts[rows])
        for rows in task_slices(len(events))
    ]
    below, up_to = (np.concatenate(parts) for parts in zip(*(executor.get(cdf) for cdf in cdfs), strict=True))
    return Calibration(calibration.randomised_pit(below, up_to, seed), primary_features(events.primaries))


def _cumulative(generator: BundleGenerator, primaries: np.ndarray, counts: np.ndarray) -> calibration.Cumulative:
    """Return the cumulative distribution of N. For an ensemble, it is the mean over the members, which draw in turn."""
    of_members = [calibration.cumulative(model, primaries, counts) for model in members_of(generator.model)]
    below, up_to = (np.mean(parts, axis=0) for parts in zip(*of_members, strict=True))
    return below, up_to


def _showers(reference: Reference, headers: EventHeaders) -> Int64[np.ndarray, " events"]:
    """Number the showers as the reference does; showers that it does not have get higher numbers."""
    ids = reference.truth.event_set.headers.ids, reference.control.event_set.headers.ids
    joint_of_reference, joint = shower_numbers(np.concatenate(ids), headers.ids)
    of_reference = np.concatenate(shower_numbers(*ids))
    first_new = int(of_reference.max()) + 1
    number_of = first_new + np.arange(max(int(joint_of_reference.max()), int(joint.max())) + 1)
    number_of[joint_of_reference] = of_reference
    numbers: np.ndarray = number_of[joint]
    return numbers


def _outside_warnings(generator: BundleGenerator, truth: EventHeaders) -> list[str]:
    outside = int(generator.outside_training(truth.primaries).sum())
    if not outside:
        return []
    ranges = ", ".join(f"{name} {low:.4g} to {high:.4g}" for name, (low, high) in generator.training_ranges.items())
    return [
        f"{outside} of the {len(truth)} true primaries lie outside the range of the model's training data ({ranges})"
    ]
