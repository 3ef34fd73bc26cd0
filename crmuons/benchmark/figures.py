"""Show speeds and their references as a table, as JSON and as metrics."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from crmuons.benchmark.timing import Times


@dataclass(frozen=True)
class Figure:
    """A measured speed. Its rounds alternate with rounds of its reference.

    Attributes:
        name: name of the measurement.
        unit: unit of the work, such as events.
        amount: work of one round.
        times: times of the rounds.
        reference: description of the reference.
        reference_amount: the reference's work of one round; 0 without a reference.
        reference_times: times of the reference's rounds.
        details: other numbers, by name.
    """

    name: str
    unit: str
    amount: float
    times: Times
    reference: str = ""
    reference_amount: float = 0.0
    reference_times: Times | None = None
    details: Mapping[str, float] = field(default_factory=dict)

    def values(self) -> dict[str, float]:
        """Return medians and quartiles of the speed, and of its ratio to the reference's speed in the same round."""
        speed = self.amount / self.times.wall
        values = _quartiles("per_second", speed)
        if self.reference_times is not None:
            reference = self.reference_amount / self.reference_times.wall
            values |= _quartiles("reference_per_second", reference) | _quartiles("ratio", speed / reference)
            if self.times.cpu is not None and self.reference_times.cpu is not None:
                cpu = (self.reference_times.cpu / self.reference_amount) / (self.times.cpu / self.amount)
                values["ratio_of_cpu_seconds"] = float(np.median(cpu))
        return values | dict(self.details)


def figure_table(figures: Iterable[Figure]) -> str:
    """Return a table as text: one line per figure, and its details below."""
    lines = [
        f"{'figure':44} {'median':>11} {'quartiles':>21}   {'reference':>11} {'ratio':>7} {'quartiles':>12}  CPU ratio"
    ]
    for figure in figures:
        lines += _lines(figure, figure.values())
    return "\n".join(lines)


def figure_metrics(figures: Iterable[Figure]) -> dict[str, float]:
    """Return metrics for MLflow, named figure/value."""
    return {f"{_slug(figure.name)}/{name}": value for figure in figures for name, value in figure.values().items()}


def as_json(suite: str, machine: Mapping[str, Any], figures: Iterable[Figure]) -> dict[str, Any]:
    """Return the figures for programs: their values, and the seconds of all rounds."""
    entries = [
        {
            "name": figure.name, "unit": figure.unit, "reference": figure.reference, **figure.values(),
            "seconds": figure.times.wall.tolist(),
            "reference_seconds": [] if figure.reference_times is None else figure.reference_times.wall.tolist(),
        }
        for figure in figures
    ]  # fmt: skip
    return {"suite": suite, "machine": dict(machine), "figures": entries}


def _quartiles(name: str, values: np.ndarray) -> dict[str, float]:
    low, middle, high = np.percentile(values, [25, 50, 75])
    return {name: float(middle), f"{name}_q1": float(low), f"{name}_q3": float(high)}


def _lines(figure: Figure, v: Mapping[str, float]) -> list[str]:
    line = f"{figure.name:44} {v['per_second']:11,.0f} {v['per_second_q1']:10,.0f}-{v['per_second_q3']:10,.0f}"
    if figure.reference:
        line += f"   {v['reference_per_second']:11,.0f} {v['ratio']:7.2f} {v['ratio_q1']:5.2f}-{v['ratio_q3']:6.2f}"
        line += f"  {v['ratio_of_cpu_seconds']:.2f}" if "ratio_of_cpu_seconds" in v else ""
    details = [f"    {name.replace('_', ' ')} {value:,.4g}" for name, value in figure.details.items()]
    against = f"; reference: {figure.reference}" if figure.reference else ""
    return [line, f"    {figure.unit} per second{against}", *details]


def _slug(name: str) -> str:
    return "".join(letter if letter.isalnum() or letter in ".-" else "_" for letter in name)
