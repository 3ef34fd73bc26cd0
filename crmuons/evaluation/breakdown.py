"""The figures by bins of the primary, by cells, and for the hard cases, each beside its floor."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float64

from crmuons.evaluation import metrics, rates, regions
from crmuons.evaluation.classifiers import Scores, area_under_curve
from crmuons.evaluation.metrics import Absent, Estimate, Number
from crmuons.evaluation.pairing import Sides
from crmuons.evaluation.summaries import Sample

Numbers = dict[str, Number]
Splits = Bool[np.ndarray, "splits showers"]

SPLITS = 24  # Truth-against-truth splits: their spread is then known to a seventh.
MAX_CELL_ERROR = 0.05  # A cell whose mean is less certain than the bar on it says nothing about the bar.


@dataclass(frozen=True)
class Calibration:
    """Randomised PIT of the true multiplicities, of one event per shower, and the primaries' features."""

    pit: Float64[np.ndarray, " events"]
    conditions: Float64[np.ndarray, "events 4"]


@dataclass(frozen=True)
class Bin:
    """The figures of one bin of the primary's quantities, and their floor."""

    region: regions.Region
    events: int
    generated: Numbers
    floor: Numbers


@dataclass(frozen=True)
class HardCase:
    """The figures of one hard case, and their floor. `rate` is the ratio of how often it occurs."""

    name: str
    true_events: int
    generated_events: int
    generated: Numbers
    floor: Numbers


@dataclass(frozen=True)
class Breakdown:
    """Everything that is not one figure for all events."""

    cells: list[regions.Cell]
    bins: list[Bin]
    hard_cases: list[HardCase]


def break_down(
    sides: Sides,
    scores: tuple[dict[str, Scores], dict[str, Scores]],
    calibration: Calibration | None,
    training_masses_gev: Float64[np.ndarray, " masses"] | None,
    seed: int,
) -> Breakdown:
    """Compare part by part.

    Args:
        sides: the events.
        scores: of the classifiers, by figure: of generated events against the truth, and of the control against it.
        calibration: of the multiplicities, where the candidate is a model.
        training_masses_gev: the masses that were trained on, where they are known.
        seed: of the splits of the truth.
    """
    truth, control, generated = regions.numbered(sides.truth, sides.control, sides.generated)
    pool = Sample.concat([truth, control])
    splits = random_splits(pool, seed)
    bins = []
    for region in regions.regions(pool.conditions):
        here, there, other = (region.holds(sample.conditions) for sample in (truth, control, generated))
        true_part = truth.where(here)
        numbers = _by_part(true_part, generated.where(other)) | _areas(scores[0], np.concatenate([here, other]))
        null = pool.where(np.concatenate([here, there]))
        floor = metrics.null_distances(null, splits) | _areas(scores[1], np.concatenate([here, there]))
        numbers["pit"], floor["pit"] = uniformity(calibration, region)
        bins.append(Bin(region, len(true_part), numbers, floor))
    cases = [_hard_case(case, sides, scores, seed) for case in regions.hard_cases(training_masses_gev)]
    return Breakdown(_cells(sides), bins, cases)


def random_splits(pool: Sample, seed: int) -> Splits:
    """The splits of the truth that make the floor."""
    return metrics.random_splits(int(pool.showers.max()) + 1, SPLITS, seed)


def uniformity(calibration: Calibration | None, region: regions.Region | None = None) -> tuple[Number, Number]:
    """Kolmogorov's distance of the PIT from uniform, in all or in a region, and what chance gives."""
    if calibration is None:
        absent = Absent("a data set has one draw per primary; the PIT needs a model, which draws as often as asked")
        return absent, absent
    pit = calibration.pit if region is None else calibration.pit[region.holds(calibration.conditions)]
    distance = rates.uniformity(pit)
    return distance, distance if isinstance(distance, Absent) else rates.uniformity_floor(len(pit))


def worst_cell(cells: list[regions.Cell], seed: int) -> tuple[Number, Number]:
    """The largest |ratio - 1| of a cell beyond its standard error, and what chance alone gives (mean and spread).

    Over the cells whose error is below MAX_CELL_ERROR, or that are further from 1 than four errors.
    """
    judged = [cell.ratio for cell in cells if isinstance(cell.ratio, Estimate)]
    ratios = np.array([(ratio.value, ratio.error) for ratio in judged]).reshape(-1, 2)
    far = np.abs(ratios[:, 0] - 1) > 4 * ratios[:, 1]
    ratios = ratios[(ratios[:, 1] < MAX_CELL_ERROR) | far]
    if not len(ratios):
        absent = Absent(f"no cell whose mean N is known to {MAX_CELL_ERROR:.0%}: more events are needed")
        return absent, absent
    errors = ratios[:, 1]
    chance = np.abs(np.random.default_rng(seed).normal(size=(1000, len(errors)))) * errors - errors
    worst = chance.max(axis=1)
    excess = np.abs(ratios[:, 0] - 1) - errors
    return Estimate(float(excess.max())), Estimate(float(worst.mean()), float(worst.std()))


def _cells(sides: Sides) -> list[regions.Cell]:
    if sides.paired is not None:
        truth, generated = regions.numbered(*sides.paired)
        return regions.cells(truth, generated, paired=True)
    truth, control, generated = regions.numbered(sides.truth, sides.control, sides.generated)
    return regions.cells(Sample.concat([truth, control]), generated, paired=False)


def _by_part(truth: Sample, other: Sample) -> Numbers:
    """Distances of two parts, and their multiplicities where both have events."""
    if not len(truth) or not len(other):
        return metrics.distances(truth, other)
    return metrics.distances(truth, other) | rates.multiplicity(truth, other)


def _areas(scores: dict[str, Scores], kept: Bool[np.ndarray, " events"]) -> Numbers:
    """The AUC of classifiers that were trained on all events, in a part of them."""
    return {name: area_under_curve(values.where(kept)) for name, values in scores.items()}


def _hard_case(
    case: regions.HardCase, sides: Sides, scores: tuple[dict[str, Scores], dict[str, Scores]], seed: int
) -> HardCase:
    everything = regions.numbered(sides.truth, sides.control, sides.generated)
    weights = [case.weight(events) for events in (sides.truth, sides.control, sides.generated)]
    truth, control, generated = regions.numbered(*(case.part(e) for e in (sides.truth, sides.control, sides.generated)))
    rate, floor_rate = (rates.tail_ratio(everything[0], everything[i], weights[0], weights[i]) for i in (2, 1))
    areas, floor_areas = (
        _areas(scores[of], np.concatenate([weights[0], weights[i]]) > 0) for of, i in ((0, 2), (1, 1))
    )
    pool = Sample.concat([truth, control])
    null = metrics.null_distances(pool, random_splits(pool, seed)) if len(pool) else metrics.distances(truth, control)
    return HardCase(
        name=case.name,
        true_events=len(truth),
        generated_events=len(generated),
        generated={"rate": rate} | metrics.distances(truth, generated) | areas,
        floor={"rate": floor_rate} | null | floor_areas,
    )
