"""The evaluation protocol: a model, or a data set, against held-out truth, beside the floor and two cheap rivals.

What is compared with what: pairing.py. What each figure means: docs/metrics.md.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from jaxtyping import Float32, Float64, Int64

from crmuons.evaluation import classifiers, metrics, pairing, rates, regions, rivals
from crmuons.evaluation.breakdown import (
    Breakdown,
    Calibration,
    Numbers,
    break_down,
    random_splits,
    uniformity,
    worst_cell,
)
from crmuons.evaluation.classifiers import Scores
from crmuons.evaluation.metrics import Estimate
from crmuons.evaluation.multivariate import multivariate
from crmuons.evaluation.pairing import Sides
from crmuons.evaluation.set_classifier import set_scores
from crmuons.evaluation.summaries import Sample, primary_features, shower_numbers
from crmuons.generate import BundleGenerator
from crmuons.progress import progress
from crmuons.reader import concat, take
from crmuons.schema import EventArrays

GENERATED, FLOOR, NEAREST, PARAMETRIC = "generated", "truth", "nearest primary", "parametric"
PIT_EVENTS, PIT_DRAWS = 20_000, 99


@dataclass(frozen=True)
class Settings:
    """How many events are compared (on each side), and the seed of all that is drawn."""

    max_events: int = 60_000
    seed: int = 0


@dataclass(frozen=True)
class Evaluation:
    """All figures.

    Attributes:
        about: what was compared.
        warnings: what a reader has to know before the figures.
        numbers: by contender (GENERATED, FLOOR, and the rivals that there are), then by name.
        breakdown: the figures part by part.
        calibration: the PIT, where the candidate is a model.
        sides: the events themselves, for figures.
    """

    about: dict[str, Any]
    warnings: list[str]
    numbers: dict[str, Numbers]
    breakdown: Breakdown
    calibration: Calibration | None
    sides: Sides = field(repr=False)

    def flat(self) -> dict[str, float]:
        """The figures of the generated events and of the floor, by name, to be logged."""
        return {
            f"{contender}/{name}": number.value
            for contender in (GENERATED, FLOOR)
            for name, number in self.numbers[contender].items()
            if isinstance(number, Estimate)
        }


def evaluate(
    truth: EventArrays, candidate: BundleGenerator | EventArrays, training: EventArrays | None, settings: Settings
) -> Evaluation:
    """Run the protocol.

    Args:
        truth: held-out events; twice as many as are compared, since the floor needs as many again.
        candidate: a model, which generates for the true primaries; or events.
        training: for the rivals, and for the masses that were trained on; showers that are in `truth` are left out.
        settings: sizes and seed.

    Raises:
        ValueError: if the truth holds fewer than two showers or no muons, or there are no events to compare it with.
    """
    seed = settings.seed
    sides = _sides(truth, candidate, settings)
    contenders, warnings = _contenders(sides, training, seed)
    with progress(3 * len(contenders) + 2, unit="steps", what="evaluate") as bar:
        compared = {name: _compare(sides.truth, events, seed, bar.update) for name, events in contenders.items()}
        numbers = {name: numbers for name, (numbers, _) in compared.items()}
        numbers[FLOOR] |= _null_distances(sides, seed)
        calibration = None if isinstance(candidate, EventArrays) else calibrate(candidate, sides, seed)
        numbers[GENERATED]["pit"], numbers[FLOOR]["pit"] = uniformity(calibration)
        bar.update()
        scores = (compared[GENERATED][1], compared[FLOOR][1])
        parts = break_down(sides, scores, calibration, _masses(training), seed)
        numbers[GENERATED]["worst_cell"], numbers[FLOOR]["worst_cell"] = worst_cell(parts.cells, seed)
        bar.update()
    about = {"events": len(sides.truth.counts), "true_muons": len(sides.truth.muons), "seed": seed}
    return Evaluation(about, _warnings(sides, candidate) + warnings, numbers, parts, calibration, sides)


def calibrate(model: BundleGenerator, sides: Sides, seed: int) -> Calibration:
    """Randomised PIT of true multiplicities, by their rank among the model's draws for the same primary.

    Of one event per shower, at most PIT_EVENTS, so that uniform values are independent ones.
    """
    truth = pairing.one_per_shower(concat([sides.truth, sides.control]))
    truth = take(truth, np.random.default_rng(seed).permutation(len(truth.counts))[:PIT_EVENTS])
    draws = draw_counts(model, truth.primaries, PIT_DRAWS, seed)
    pit = rates.randomised_pit(*rates.ranks(truth.counts, draws), seed)
    return Calibration(pit, primary_features(truth.primaries))


def draw_counts(
    model: BundleGenerator, primaries: Float32[np.ndarray, "events 4"], draws: int, seed: int
) -> Int64[np.ndarray, "events draws"]:
    """Several multiplicities for each primary."""
    source = torch.Generator(model.device).manual_seed(seed)
    on_device = torch.from_numpy(np.array(primaries)).to(model.device)
    return np.stack([model.model.sample_counts(on_device, source).cpu().numpy() for _ in range(draws)], axis=1)


def _sides(truth: EventArrays, candidate: BundleGenerator | EventArrays, settings: Settings) -> Sides:
    if isinstance(candidate, EventArrays):
        sides = pairing.pair_data(truth, candidate, settings.max_events, settings.seed)
    else:
        first, second = pairing.halve(truth, settings.max_events, settings.seed)
        both = concat([first, second])
        drawn = candidate.bundles(both.primaries, seed=settings.seed, ids=both.ids)
        of_second = take(drawn, np.arange(len(first.counts), len(both.counts)))
        sides = Sides(first, second, of_second, paired=(both, drawn))
    if not len(sides.truth.muons):
        msg = f"none of the {len(sides.truth.counts)} true events has a muon: there is nothing to compare"
        raise ValueError(msg)
    return sides


def _contenders(sides: Sides, training: EventArrays | None, seed: int) -> tuple[dict[str, EventArrays], list[str]]:
    """Who is compared with the truth, and why a rival is not there."""
    contenders = {GENERATED: sides.generated, FLOOR: sides.control}
    if training is None:
        return contenders, ["no training events were given, so the cheap rivals are missing"]
    training = _without_showers_of(training, concat([sides.truth, sides.control]))
    if len(training.counts) < rivals.MIN_TRAINING_EVENTS or not len(training.muons):
        reason = (
            f"{len(training.counts)} training events with {len(training.muons)} muons share no shower with the truth"
        )
        return contenders, [f"the cheap rivals are missing: {reason}, {rivals.MIN_TRAINING_EVENTS} events are needed"]
    primaries, ids = sides.control.primaries, sides.control.ids
    contenders[NEAREST] = rivals.NearestPrimary(training).bundles(primaries, ids)
    contenders[PARAMETRIC] = rivals.ParametricSampler.fit(training, seed).bundles(primaries, ids, seed)
    return contenders, []


def _compare(
    truth: EventArrays, other: EventArrays, seed: int, done: Callable[[], object]
) -> tuple[Numbers, dict[str, Scores]]:
    """All figures of one contender, and the classifiers' scores by figure."""
    a, b = regions.numbered(truth, other)
    numbers = metrics.distances(a, b) | rates.multiplicity(a, b) | rates.tails(a, b) | multivariate(a, b, seed)
    done()
    absent = classifiers.too_few(a, b)
    if absent is not None:
        done()
        done()
        return numbers | dict.fromkeys(AREAS, absent), {}
    scores = {
        "auc_bundles": classifiers.bundle_scores(a, b, seed=seed),
        "auc_multiplicity": classifiers.multiplicity_scores(a, b, seed=seed),
    }
    done()
    scores["auc_muons"] = set_scores(a, b, (truth, other), seed=seed)
    done()
    return numbers | {name: classifiers.area_under_curve(values) for name, values in scores.items()}, scores


AREAS = ("auc_bundles", "auc_multiplicity", "auc_muons")


def _null_distances(sides: Sides, seed: int) -> Numbers:
    pool = Sample.concat(regions.numbered(sides.truth, sides.control))
    return metrics.null_distances(pool, random_splits(pool, seed))


def _masses(training: EventArrays | None) -> Float64[np.ndarray, " masses"] | None:
    return None if training is None else np.unique(training.primaries[:, 2]).astype(np.float64)


def _without_showers_of(training: EventArrays, truth: EventArrays) -> EventArrays:
    theirs, ours = shower_numbers(training.ids, truth.ids)
    return take(training, np.flatnonzero(~np.isin(theirs, ours)))


def _warnings(sides: Sides, candidate: BundleGenerator | EventArrays) -> list[str]:
    if isinstance(candidate, EventArrays):
        return pairing.range_warnings(concat([sides.truth, sides.control]), sides.generated)
    outside = int(candidate.outside_training(concat([sides.truth, sides.control]).primaries).sum())
    if not outside:
        return []
    ranges = ", ".join(f"{name} {low:.4g} to {high:.4g}" for name, (low, high) in candidate.training_ranges.items())
    return [f"{outside} of the true primaries lie outside the range that the model was trained in ({ranges})"]
