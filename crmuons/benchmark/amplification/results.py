"""The figures of all models and copies, and the amplification in each figure."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from crmuons.benchmark.amplification.curve import Amplification, amplification
from crmuons.evaluation.comparison import Numbers
from crmuons.evaluation.metrics.distances import Estimate, Missing
from crmuons.evaluation.reference import NEAREST

MODEL = "model"


@dataclass(frozen=True)
class Measure:
    """A figure in which models and copies are compared; lower is better.

    Attributes:
        name: name of the figure in an evaluation.
        title: name of the figure for people.
        perfect: value of the figure if nothing differs, which is subtracted; 1/2 for an AUC.
    """

    name: str
    title: str
    perfect: float


MEASURES = (
    Measure("auc_bundles", "joint AUC", 0.5),
    Measure("auc_muons", "set classifier's AUC", 0.5),
    Measure("score", "mean W1/sigma", 0.0),
)


@dataclass(frozen=True)
class Results:
    """The measured figures of all candidates.

    Attributes:
        numbers: figures by candidate (MODEL, NEAREST, PARAMETRIC), then by number of showers, with one entry per seed.
        floor: the figures of truth against truth.
        trained: the numbers of showers that models were trained on, ascending.
    """

    numbers: Mapping[str, Mapping[int, Sequence[Numbers]]]
    floor: Numbers
    trained: Sequence[int]

    def excess(self, measure: Measure, candidate: str) -> dict[int, list[float]] | Missing:
        """Return by how much a figure exceeds its perfect value: for each number of showers, one value per seed.

        If one value is missing, return the reason.
        """
        values: dict[int, list[float]] = {}
        for showers, by_seed in self.numbers[candidate].items():
            for numbers in by_seed:
                number = numbers[measure.name]
                if isinstance(number, Missing):
                    return Missing(f"{candidate}, {showers} showers: {number.reason}")
                values.setdefault(showers, []).append(number.value - measure.perfect)
        return values

    def resolution(self, measure: Measure) -> float | Missing:
        """Return the smallest excess that can be distinguished from the truth's own: the floor plus its error."""
        number = self.floor[measure.name]
        if isinstance(number, Missing):
            return number
        return max(number.value - measure.perfect, 0.0) + (number.error or 0.0)

    def amplification(self, measure: Measure, showers: int) -> Amplification | Missing:
        """Return the amplification at a number of showers, or the reason why there is none."""
        ours, copied, floor = self.excess(measure, MODEL), self.excess(measure, NEAREST), self.resolution(measure)
        for part in (ours, copied, floor):
            if isinstance(part, Missing):
                return part
        assert isinstance(ours, dict)
        assert isinstance(copied, dict)
        assert isinstance(floor, float)
        if floor <= 0:
            return Missing("truth against truth is 0: the true events are too few or too alike to compare")
        return amplification(showers, ours[showers], copied, floor)

    def rows(self) -> Iterator[dict[str, Any]]:
        """Yield for each figure and each number of showers the values of all candidates, and the amplification."""
        for measure in MEASURES:
            for showers in self.trained:
                found = self.amplification(measure, showers)
                yield {
                    "figure": measure.name,
                    "showers": showers,
                    "amplification": {"absent": found.reason}
                    if isinstance(found, Missing)
                    else {"value": found.value, "factor": found.factor, "bound": found.bound},
                    **{name: mean_over_seeds(self.numbers[name][showers], measure.name) for name in self.numbers},
                }


def mean_over_seeds(numbers: Sequence[Numbers], name: str) -> dict[str, Any]:
    """Return mean and standard error of a figure over the seeds for JSON; with one seed there is no error."""
    found = [number[name] for number in numbers]
    missing = next((number.reason for number in found if isinstance(number, Missing)), None)
    if missing is not None:
        return {"absent": missing}
    values = [number.value for number in found if isinstance(number, Estimate)]
    error = float(np.std(values, ddof=1) / np.sqrt(len(values))) if len(values) > 1 else None
    return {"value": float(np.mean(values)), "error": error}
