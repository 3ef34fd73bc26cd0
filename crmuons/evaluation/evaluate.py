"""The evaluation protocol: a model, or a data set, against held-out truth, beside the floor and two cheap rivals.

What is compared with what: pairing.py. Where the work is done: pieces.py. What each figure means: docs/metrics.md.
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from crmuons.data.events import EventArrays, take
from crmuons.evaluation.breakdown import Bin, Breakdown, CaseFigures, worst_cell
from crmuons.evaluation.candidates import Candidate
from crmuons.evaluation.comparison import Comparison, Numbers, compare
from crmuons.evaluation.datasets import EventSet
from crmuons.evaluation.headers import EventHeaders
from crmuons.evaluation.metrics import calibration, regions
from crmuons.evaluation.metrics.calibration import Calibration
from crmuons.evaluation.metrics.distances import Estimate
from crmuons.evaluation.metrics.quantities import Sample, primary_features, shower_numbers
from crmuons.evaluation.reference import FLOOR, GENERATED, Reference, contender
from crmuons.evaluation.tasks import Executor, Future

SHOWN_EVENTS = 200_000  # In the figures, of each side: more change no line of them.


@dataclass(frozen=True)
class Evaluation:
    """All figures.

    Attributes:
        about: what was compared.
        warnings: what a reader has to know before the figures.
        numbers: by contender (GENERATED, FLOOR, and the rivals that there are), then by name.
        breakdown: the figures part by part.
        calibration: the PIT, where the candidate is a model.
        shown: true and generated events for figures, of the same primaries where there are such.
    """

    about: dict[str, Any]
    warnings: list[str]
    numbers: dict[str, Numbers]
    breakdown: Breakdown
    calibration: Calibration | None
    shown: tuple[EventArrays, EventArrays] = field(repr=False)

    def flat(self) -> dict[str, float]:
        """The figures of the generated events and of the floor, by name, to be logged."""
        return {
            f"{contender}/{name}": number.value
            for contender in (GENERATED, FLOOR)
            for name, number in self.numbers[contender].items()
            if isinstance(number, Estimate)
        }


def evaluate(pieces: Executor, reference: Reference, candidate: Candidate) -> Evaluation:
    """Compare a candidate with the truth, and collect all figures."""
    truth, control, seed = reference.truth, reference.control, reference.frame.seed
    generated = contender(pieces, candidate.side, candidate.showers)
    comparisons = {GENERATED: compare(pieces, truth, generated, reference.frame)} | reference.comparisons
    beside = truth if candidate.paired is None else control
    shown = [_some(pieces, side, seed) for side in (beside.side, candidate.side)]
    numbers = {who: _merge(pieces, each.numbers) for who, each in comparisons.items()}
    cells = _cells(reference, candidate)
    pit_cells = [] if candidate.calibration is None else calibration.pit_cells(candidate.calibration)
    for name, both in (
        ("worst_cell", worst_cell(cells, seed)),
        ("pit", calibration.pit_numbers(candidate.calibration)),
        ("pit_worst_cell", calibration.worst_pit_cell(pit_cells, seed)),
    ):
        numbers[GENERATED][name], numbers[FLOOR][name] = both
    bins = _bins(pieces, reference, comparisons, candidate.calibration)
    cases = _hard_cases(pieces, reference, comparisons)
    about = {"events": len(truth.side), "true_muons": int(truth.side.outline.counts.sum()), "seed": seed}
    return Evaluation(
        about,
        candidate.warnings + reference.warnings,
        numbers,
        Breakdown(cells, pit_cells, bins, cases),
        candidate.calibration,
        (pieces.get(shown[0]), pieces.get(shown[1])),
    )


def _some(pieces: Executor, side: EventSet, seed: int) -> Future[EventArrays]:
    """At most SHOWN_EVENTS of the events, the same rows of both sides."""
    rows = np.random.default_rng(seed).permutation(len(side))[:SHOWN_EVENTS]
    return pieces.later(take, side.events, np.sort(rows))


def _merge(pieces: Executor, parts: list[Future[Numbers]]) -> Numbers:
    return {name: number for part in parts for name, number in pieces.get(part).items()}


def _bins(
    pieces: Executor, reference: Reference, comparisons: dict[str, Comparison], pit: Calibration | None
) -> list[Bin]:
    conditions = primary_features(reference.truth.side.outline.primaries)
    bins = []
    for place, region in enumerate(reference.frame.regions):
        numbers = {who: _merge(pieces, [each.bins[place]]) for who, each in comparisons.items()}
        numbers[GENERATED]["pit"], numbers[FLOOR]["pit"] = calibration.pit_numbers(pit, region)
        bins.append(Bin(region, int(region.holds(conditions).sum()), numbers))
    return bins


def _hard_cases(pieces: Executor, reference: Reference, comparisons: dict[str, Comparison]) -> list[CaseFigures]:
    figures = []
    for place, case in enumerate(reference.frame.hard_cases):
        found = {who: pieces.get(each.hard_cases[place]) for who, each in comparisons.items()}
        true_events = pieces.get(pieces.later(_events_of, case, reference.truth.sample))
        events = {who: number for who, (number, _) in found.items()}
        figures.append(CaseFigures(case.name, true_events, events, {who: each for who, (_, each) in found.items()}))
    return figures


def _events_of(case: regions.HardCase, sample: Sample) -> int:
    return int(np.count_nonzero(case.weight(sample)))


def _cells(reference: Reference, candidate: Candidate) -> list[regions.Cell]:
    if candidate.paired is not None:
        truth, counts = candidate.paired
        (showers,) = shower_numbers(truth.ids)
        counted = truth.counted(showers)
        return regions.cells(counted, EventHeaders(truth.ids, truth.primaries, counts).counted(showers), paired=True)
    both = reference.both
    here, there = shower_numbers(both.ids, candidate.side.outline.ids)
    return regions.cells(both.counted(here), candidate.side.outline.counted(there), paired=False)
