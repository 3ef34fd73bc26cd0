"""The figures in bins of the primary, in cells and for the hard cases."""

from dataclasses import dataclass

import numpy as np

from crmuons.evaluation.comparison import Numbers
from crmuons.evaluation.metrics.calibration import PitCell
from crmuons.evaluation.metrics.distances import Estimate, Missing, Number
from crmuons.evaluation.metrics.regions import Cell, Region

MAX_CELL_ERROR = 0.05  # The bar of `worst_cell`. A less certain cell cannot show whether this bar is met.


@dataclass(frozen=True)
class Bin:
    """The figures of one bin of the primary's quantities, by sample; `events` counts the true events in it."""

    region: Region
    events: int
    numbers: dict[str, Numbers]


@dataclass(frozen=True)
class CaseFigures:
    """The figures of one hard case.

    Attributes:
        name: name of the case.
        true_events: number of true events that belong to it.
        events: number of events of each sample that belong to it.
        numbers: the figures of each sample.
    """

    name: str
    true_events: int
    events: dict[str, int]
    numbers: dict[str, Numbers]


@dataclass(frozen=True)
class Breakdown:
    """All figures that are restricted to a part of the events."""

    cells: list[Cell]
    pit_cells: list[PitCell]
    bins: list[Bin]
    hard_cases: list[CaseFigures]


def worst_cell(cells: list[Cell], seed: int) -> tuple[Number, Number]:
    """Return the largest |ratio - 1| of a cell minus its standard error, and what chance alone gives (mean and spread).

    It uses cells with an error below MAX_CELL_ERROR, and cells with a ratio that is more than four errors away from 1.
    """
    estimates = [cell.ratio for cell in cells if isinstance(cell.ratio, Estimate)]
    ratios = np.array([(ratio.value, ratio.error) for ratio in estimates]).reshape(-1, 2)
    far = np.abs(ratios[:, 0] - 1) > 4 * ratios[:, 1]
    ratios = ratios[(ratios[:, 1] < MAX_CELL_ERROR) | far]
    if not len(ratios):
        missing = Missing(f"no cell has a mean N that is known to {MAX_CELL_ERROR:.0%}; more events are needed")
        return missing, missing
    errors = ratios[:, 1]
    chance = np.abs(np.random.default_rng(seed).normal(size=(1000, len(errors)))) * errors - errors
    worst = chance.max(axis=1)
    excess = np.abs(ratios[:, 0] - 1) - errors
    return Estimate(float(excess.max())), Estimate(float(worst.mean()), float(worst.std()))
