"""The figures by bins of the primary, by cells, and for the hard cases, each beside its floor."""

from dataclasses import dataclass

import numpy as np

from crmuons.evaluation.comparison import Numbers
from crmuons.evaluation.metrics.calibration import PitCell
from crmuons.evaluation.metrics.distances import Estimate, Missing, Number
from crmuons.evaluation.metrics.regions import Cell, Region

MAX_CELL_ERROR = 0.05  # A cell whose mean is less certain than the bar on it says nothing about the bar.


@dataclass(frozen=True)
class Bin:
    """The figures of one bin of the primary's quantities, by contender."""

    region: Region
    events: int
    numbers: dict[str, Numbers]


@dataclass(frozen=True)
class CaseFigures:
    """The figures of one hard case by contender, and how many events each has of it."""

    name: str
    true_events: int
    events: dict[str, int]
    numbers: dict[str, Numbers]


@dataclass(frozen=True)
class Breakdown:
    """Everything that is not one figure for all events."""

    cells: list[Cell]
    pit_cells: list[PitCell]
    bins: list[Bin]
    hard_cases: list[CaseFigures]


def worst_cell(cells: list[Cell], seed: int) -> tuple[Number, Number]:
    """The largest |ratio - 1| of a cell beyond its standard error, and what chance alone gives (mean and spread).

    Over the cells whose error is below MAX_CELL_ERROR, or that are further from 1 than four errors.
    """
    judged = [cell.ratio for cell in cells if isinstance(cell.ratio, Estimate)]
    ratios = np.array([(ratio.value, ratio.error) for ratio in judged]).reshape(-1, 2)
    far = np.abs(ratios[:, 0] - 1) > 4 * ratios[:, 1]
    ratios = ratios[(ratios[:, 1] < MAX_CELL_ERROR) | far]
    if not len(ratios):
        absent = Missing(f"no cell whose mean N is known to {MAX_CELL_ERROR:.0%}: more events are needed")
        return absent, absent
    errors = ratios[:, 1]
    chance = np.abs(np.random.default_rng(seed).normal(size=(1000, len(errors)))) * errors - errors
    worst = chance.max(axis=1)
    excess = np.abs(ratios[:, 0] - 1) - errors
    return Estimate(float(excess.max())), Estimate(float(worst.mean()), float(worst.std()))
