"""Amplification: how many copied showers reach the figure of a model that was trained on fewer showers."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Self

import numpy as np
from jaxtyping import Float64
from sklearn.isotonic import IsotonicRegression

Bound = Literal["", "more than", "less than"]
ROUNDING = 1e-9  # Tolerance of a logarithm: a value from which the curve was made lies on the curve.


@dataclass(frozen=True)
class Equivalent:
    """A number of copied showers; with a bound, the true number is more or less than this."""

    showers: float
    bound: Bound = ""


@dataclass(frozen=True)
class Curve:
    """A figure of the copier against the number of copied showers. Lower is better.

    Attributes:
        log_showers: natural logarithms of the numbers of showers, ascending.
        log_values: natural logarithms of the figure, which never rise and are never below the floor.
        floor: the lowest figure that can be distinguished from the truth's own figure.
    """

    log_showers: Float64[np.ndarray, " sizes"]
    log_values: Float64[np.ndarray, " sizes"]
    floor: float

    @classmethod
    def fit(cls, values: Mapping[int, float], floor: float) -> Self:
        """Fit a curve that never rises to values by number of showers, by least squares in the logarithm.

        Args:
            values: the figure at each number of showers.
            floor: see the attribute; above 0.
        """
        showers = np.log(np.array(sorted(values), float))
        logs = np.log([max(values[number], floor) for number in sorted(values)])
        return cls(showers, IsotonicRegression(increasing=False).fit_transform(showers, logs), floor)

    def showers_for(self, value: float) -> Equivalent:
        """Return the smallest number of copied showers that reaches a figure, interpolated in both logarithms.

        A figure at the floor gives a lower limit: more showers would not look better.
        """
        level = math.log(max(value, self.floor))
        if level > self.log_values[0] + ROUNDING:
            return Equivalent(math.exp(self.log_showers[0]), "less than")
        if level < self.log_values[-1] - ROUNDING:
            return Equivalent(math.exp(self.log_showers[-1]), "more than")
        reached = int(np.argmax(self.log_values <= level + ROUNDING))
        return Equivalent(math.exp(self._between(reached, level)), "more than" if value <= self.floor else "")

    def _between(self, reached: int, level: float) -> float:
        """Return the logarithm of the number of showers at a level, given the first size that reaches it."""
        right, below = self.log_showers[reached], self.log_values[reached]
        if reached == 0:
            return float(right)
        left, above = self.log_showers[reached - 1], self.log_values[reached - 1]
        share = min(1.0, (above - level) / (above - below))  # The left size does not reach the level: above > below.
        return float(left + share * (right - left))


@dataclass(frozen=True)
class Amplification:
    """A number of copied showers divided by the number that a model was trained on.

    Attributes:
        value: from the means over all seeds.
        factor: its standard error as a factor, from the seeds; None with one seed, or where a seed gives only a bound.
        bound: whether the value is a limit.
    """

    value: float
    factor: float | None
    bound: Bound

    def __str__(self) -> str:
        """Return the value with its error or bound, as text for a table."""
        shown = f"{self.value:.3g}" if self.value < 1000 else f"{self.value:,.0f}"
        if self.bound:
            return f"{self.bound} {shown}"
        return shown if self.factor is None else f"{shown} ×/÷ {self.factor:.2f}"


def amplification(
    showers: int, ours: Sequence[float], copied: Mapping[int, Sequence[float]], floor: float
) -> Amplification:
    """Compare a model with the copier.

    Args:
        showers: how many the model was trained on.
        ours: the model's figure for each seed.
        copied: the copier's figure at each number of showers, for each seed.
        floor: see `Curve`.
    """
    curve = Curve.fit({number: float(np.mean(values)) for number, values in copied.items()}, floor)
    found = curve.showers_for(float(np.mean(ours)))
    # Each seed has its own showers, so its model is compared with copies of the same showers.
    by_seed = [
        Curve.fit({number: values[seed] for number, values in copied.items()}, floor).showers_for(value)
        for seed, value in enumerate(ours)
    ]
    factor = None
    if len(ours) > 1 and not any(each.bound for each in by_seed):
        spread = np.std(np.log([each.showers for each in by_seed]), ddof=1)
        factor = math.exp(spread / math.sqrt(len(ours)))
    return Amplification(found.showers / showers, factor, found.bound)
