"""Run an evaluation: compare a model's events or a data set with held-out truth, and with the floor and two baselines.

`pairing` chooses what is compared with what, `tasks` where the work runs, and docs/metrics.md defines each figure.
"""

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from crmuons.data.events import EventArrays, take
from crmuons.data.features import MuonFeature
from crmuons.evaluation.breakdown import Bin, Breakdown, CaseFigures, worst_cell
from crmuons.evaluation.candidates import Candidate
from crmuons.evaluation.comparison import MEMORISED, Comparison, Numbers, compare
from crmuons.evaluation.datasets import EventSet
from crmuons.evaluation.hard_cells.figures import IN_CELLS
from crmuons.evaluation.hard_cells.judge import CellFigures
from crmuons.evaluation.headers import EventHeaders
from crmuons.evaluation.members import Members
from crmuons.evaluation.metrics import calibration, regions
from crmuons.evaluation.metrics.calibration import Calibration
from crmuons.evaluation.metrics.distances import Estimate
from crmuons.evaluation.metrics.profiles import ProfileBin
from crmuons.evaluation.metrics.quantities import Sample, primary_features, shower_numbers
from crmuons.evaluation.reference import GENERATED, NULL, Reference, event_sample
from crmuons.evaluation.tasks import Executor, Future

MEMORISED_EXCESS = 0.05  # Excess of the share of bundles nearer to training bundles. A copier has an excess of 0.5.
SHOWN_EVENTS = 200_000  # Events of each sample in the figures. More events do not visibly change a line.


@dataclass(frozen=True)
class Evaluation:
    """All figures of an evaluation.

    Attributes:
        about: what was compared.
        warnings: what a reader must know before the figures.
        numbers: figures by sample (GENERATED, NULL, and the baselines), then by name.
        breakdown: the figures in bins, in cells and for the hard cases.
        calibration: the PIT of a model; None for a data set.
        shown: true and generated events for the figures, of the same primaries if possible.
        further: features of a muon beyond the first three.
        profiles: the further features in bins of radius and energy, by sample.
        members: the band of an ensemble's members; None for a single model and a data set.
        hard_cells: the hard cells, judged with more events; empty unless asked for.
    """

    about: dict[str, Any]
    warnings: list[str]
    numbers: dict[str, Numbers]
    breakdown: Breakdown
    calibration: Calibration | None
    shown: tuple[EventArrays, EventArrays] = field(repr=False)
    further: tuple[MuonFeature, ...] = ()
    profiles: dict[str, list[ProfileBin]] = field(default_factory=dict)
    members: Members | None = None
    hard_cells: list[CellFigures] = field(default_factory=list)

    def flat(self) -> dict[str, float]:
        """Return the figures of the generated events and of the floor by name, for the tracking server."""
        in_cells = {
            (sample, f"hard_cells/{cell.key}/{name}"): cell.numbers[sample][name]
            for cell in self.hard_cells
            for sample in (GENERATED, NULL)
            for name in IN_CELLS
        }
        of_all = {(sample, name): n for sample in (GENERATED, NULL) for name, n in self.numbers[sample].items()}
        values = {
            f"{sample}/{name}": number.value
            for (sample, name), number in (of_all | in_cells).items()
            if isinstance(number, Estimate)
        }
        return values if self.members is None else values | self.members.flat()


def evaluate(executor: Executor, reference: Reference, candidate: Candidate) -> Evaluation:
    """Compare a candidate with the truth, and collect all figures."""
    truth, control, seed = reference.truth, reference.control, reference.plan.seed
    generated = event_sample(executor, candidate.event_set, candidate.showers, reference.plan.further)
    comparisons = {GENERATED: compare(executor, truth, generated, reference.plan)} | reference.comparisons
    shown_truth = truth if candidate.paired is None else control
    shown = [_some(executor, event_set, seed) for event_set in (shown_truth.event_set, candidate.event_set)]
    numbers = {sample: _merge(executor, comparison.numbers) for sample, comparison in comparisons.items()}
    cells = _cells(reference, candidate)
    pit_cells = [] if candidate.calibration is None else calibration.pit_cells(candidate.calibration)
    for name, generated_and_null in (
        ("worst_cell", worst_cell(cells, seed)),
        ("pit", calibration.pit_numbers(candidate.calibration)),
        ("pit_worst_cell", calibration.worst_pit_cell(pit_cells, seed)),
    ):
        numbers[GENERATED][name], numbers[NULL][name] = generated_and_null
    bins = _bins(executor, reference, comparisons, candidate.calibration)
    cases = _hard_cases(executor, reference, comparisons)
    about = {"events": len(truth.event_set), "true_muons": int(truth.event_set.headers.counts.sum()), "seed": seed}
    return Evaluation(
        about,
        candidate.warnings + _memorising_warnings(numbers) + reference.warnings,
        numbers,
        Breakdown(cells, pit_cells, bins, cases),
        candidate.calibration,
        (executor.get(shown[0]), executor.get(shown[1])),
        reference.plan.further,
        {sample: executor.get(comparisons[sample].profiles) for sample in (GENERATED, NULL)},
    )


def _memorising_warnings(numbers: dict[str, Numbers]) -> list[str]:
    """Return a warning if generated bundles are nearer to training bundles than true ones are."""
    ours, true = (numbers[sample][MEMORISED] for sample in (GENERATED, NULL))
    if not (isinstance(ours, Estimate) and isinstance(true, Estimate)):
        return []
    excess, error = ours.value - true.value, math.hypot(ours.error or 0, true.error or 0)
    if excess <= max(MEMORISED_EXCESS, 3 * error):
        return []
    warning = (
        f"{ours.value:.0%} of the generated bundles are nearer to a training bundle than to a held-out one, and "
        f"{true.value:.0%} of the true ones: the model repeats training events; train it for a shorter time or on more "
        "showers"
    )
    return [warning]


def _some(executor: Executor, event_set: EventSet, seed: int) -> Future[EventArrays]:
    """Draw at most SHOWN_EVENTS events; sets of equal size give the same rows."""
    rows = np.random.default_rng(seed).permutation(len(event_set))[:SHOWN_EVENTS]
    return executor.submit(take, event_set.events, np.sort(rows))


def _merge(executor: Executor, parts: list[Future[Numbers]]) -> Numbers:
    return {name: number for part in parts for name, number in executor.get(part).items()}


def _bins(
    executor: Executor, reference: Reference, comparisons: dict[str, Comparison], pit: Calibration | None
) -> list[Bin]:
    conditions = primary_features(reference.truth.event_set.headers.primaries)
    bins = []
    for index, region in enumerate(reference.plan.regions):
        numbers = {sample: _merge(executor, [comparison.bins[index]]) for sample, comparison in comparisons.items()}
        numbers[GENERATED]["pit"], numbers[NULL]["pit"] = calibration.pit_numbers(pit, region)
        bins.append(Bin(region, int(region.holds(conditions).sum()), numbers))
    return bins


def _hard_cases(executor: Executor, reference: Reference, comparisons: dict[str, Comparison]) -> list[CaseFigures]:
    figures = []
    for index, case in enumerate(reference.plan.hard_cases):
        results = {sample: executor.get(comparison.hard_cases[index]) for sample, comparison in comparisons.items()}
        true_events = executor.get(executor.submit(_num_events, case, reference.truth.sample))
        events = {sample: num_events for sample, (num_events, _) in results.items()}
        numbers = {sample: numbers for sample, (_, numbers) in results.items()}
        figures.append(CaseFigures(case.name, true_events, events, numbers))
    return figures


def _num_events(case: regions.HardCase, sample: Sample) -> int:
    return int(np.count_nonzero(case.weight(sample)))


def _cells(reference: Reference, candidate: Candidate) -> list[regions.Cell]:
    if candidate.paired is not None:
        truth, counts = candidate.paired
        (showers,) = shower_numbers(truth.ids)
        generated = EventHeaders(truth.ids, truth.primaries, counts)
        return regions.cells(truth.counted(showers), generated.counted(showers), paired=True)
    truth, generated = reference.both, candidate.event_set.headers
    true_showers, generated_showers = shower_numbers(truth.ids, generated.ids)
    return regions.cells(truth.counted(true_showers), generated.counted(generated_showers), paired=False)
