"""Show an amplification: a table for the terminal, a figure, JSON, and metrics for MLflow."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from crmuons.benchmark.amplification.curve import Amplification
from crmuons.benchmark.amplification.results import MEASURES, MODEL, Measure, Results
from crmuons.evaluation.metrics.distances import Estimate, Missing
from crmuons.evaluation.reference import NEAREST, PARAMETRIC
from crmuons.evaluation.report.criteria import show

COLOURS = {MODEL: "#c8412b", NEAREST: "#4d4d4d", PARAMETRIC: "#3b6ea8"}


def table(results: Results) -> str:
    """Return all figures and amplifications as text, with the reasons for absent ones below."""
    lines, reasons = list[list[str]](), list[str]()
    head = ["figure", "showers", MODEL, NEAREST, PARAMETRIC, "floor", "amplification"]
    for measure in MEASURES:
        floor = results.floor[measure.name]
        for row in (row for row in results.rows() if row["figure"] == measure.name):
            found = results.amplification(measure, row["showers"])
            if isinstance(found, Missing) and (text := f"{measure.title} is absent: {found.reason}") not in reasons:
                reasons.append(text)
            values = [_show(row[name]) for name in (MODEL, NEAREST, PARAMETRIC)]
            last = "absent" if isinstance(found, Missing) else str(found)
            lines.append([measure.title, f"{row['showers']:,}", *values, show(floor), last])
    widths = [max(len(row[column]) for row in [head, *lines]) for column in range(len(head))]
    rows = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in [head, *lines]]
    return "\n".join([*(line.rstrip() for line in rows), *reasons])


def as_json(results: Results, about: Mapping[str, Any]) -> dict[str, Any]:
    """Return the results for programs."""
    curve = [
        {"figure": measure.name, "showers": showers, "excess": values}
        for measure in MEASURES
        if isinstance(copied := results.excess(measure, NEAREST), dict)
        for showers, values in sorted(copied.items())
    ]
    floor = {measure.name: _floor(results, measure) for measure in MEASURES}
    return {"about": dict(about), "floor": floor, "rows": list(results.rows()), "copies": curve}


def metrics(results: Results) -> dict[int, dict[str, float]]:
    """Return metrics for MLflow by number of showers, which takes the place of the step."""
    by_showers: dict[int, dict[str, float]] = {}
    for row in results.rows():
        values = by_showers.setdefault(row["showers"], {})
        for name in (MODEL, NEAREST, PARAMETRIC, "amplification"):
            if "value" in row[name]:
                values[f"{row['figure']}/{name}"] = row[name]["value"]
    return by_showers


def draw(results: Results) -> Figure:
    """Draw each figure against the number of showers, both axes logarithmic; an arrow is the amplification."""
    figure = Figure(figsize=(4.2 * len(MEASURES), 4.4), layout="constrained")
    for axis, measure in zip(figure.subplots(1, len(MEASURES)), MEASURES, strict=True):
        _draw(axis, results, measure)
    return figure


def _draw(axis: Axes, results: Results, measure: Measure) -> None:
    axis.set(xscale="log", yscale="log", xlabel="showers", title=measure.title)
    axis.set_ylabel(f"{measure.title} − 1/2" if measure.perfect else measure.title)
    floor = results.resolution(measure)
    absent = ["floor"] if isinstance(floor, Missing) else []
    for name, colour in COLOURS.items():
        found = results.excess(measure, name)
        if isinstance(found, Missing) or isinstance(floor, Missing):
            absent.append(name)
            continue
        showers = sorted(found)
        # A figure below the floor cannot be distinguished from the truth. It may be negative, without a logarithm.
        low = [max(float(np.mean(found[number])), floor) for number in showers]
        spread = [float(np.std(found[number], ddof=1)) if len(found[number]) > 1 else 0.0 for number in showers]
        axis.errorbar(showers, low, yerr=spread, fmt="o-", color=colour, label=name, capsize=2, markersize=4)
        if name == MODEL:
            for number, value in zip(showers, low, strict=True):
                _draw_arrow(axis, results.amplification(measure, number), number, value)
    sizes = sorted(results.numbers[NEAREST])
    axis.set_xticks(sizes, [f"{size:,}" for size in sizes])
    axis.tick_params(axis="x", which="minor", bottom=False, labelbottom=False)
    if isinstance(floor, float):
        axis.axhline(floor, color="#999999", linestyle=":", label="floor and its error")
        axis.legend(fontsize=8)
    if absent:  # The table says why.
        axis.text(0.5, 0.5, f"absent: {', '.join(absent)}", transform=axis.transAxes, ha="center")


def _draw_arrow(axis: Axes, found: Amplification | Missing, showers: int, value: float) -> None:
    if isinstance(found, Missing):
        return
    end = showers * found.value
    axis.annotate(
        "", (end, value), (showers, value), arrowprops={"arrowstyle": "->", "color": COLOURS[MODEL], "alpha": 0.6}
    )
    label = f"{found}" if found.bound else f"×{found}"
    axis.annotate(label, (showers, value), (0, 5), textcoords="offset points", fontsize=8, ha="center")


def _show(entry: Mapping[str, Any]) -> str:
    return "absent" if "absent" in entry else show(Estimate(entry["value"], entry["error"]))


def _floor(results: Results, measure: Measure) -> dict[str, Any]:
    number = results.floor[measure.name]
    return {"absent": number.reason} if isinstance(number, Missing) else {"value": number.value, "error": number.error}
