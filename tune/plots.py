"""Figures of a sweep: score against settings, importance of the settings, and score along the runs."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure

from tune.controller import format_value
from tune.results import Row
from tune.space import Dimension, Space
from tune.trials import Trial

COLOURS = "viridis"  # The best trials are the darkest.


def parallel_coordinates(rows: Sequence[Row], space: Space) -> Figure:
    """Draw one line per trial through its settings to its score; leave out trials without a score.

    Args:
        rows: rows of the table; at least one must have a score.
        space: its dimensions become the axes, each from the low end to the high end.
    """
    scored = [row for row in rows if row["score"] is not None]
    scores = np.array([row["score"] for row in scored])
    norm = LogNorm(scores.min(), max(scores.max(), scores.min() * 1.01))
    heights = [np.array([each.coordinate(row[each.path]) for row in scored]) for each in space.dimensions]
    figure = Figure(figsize=(2.2 * (len(heights) + 1) + 1, 5), layout="constrained")
    axes = figure.subplots()
    for i in np.argsort(-scores):  # The best trial is drawn last, on top.
        line = [height[i] for height in heights] + [float(norm(scores[i]))]
        axes.plot(line, color=colormaps[COLOURS](norm(scores[i])), linewidth=1.5)
    _draw_axes(axes, space)
    figure.colorbar(ScalarMappable(norm, COLOURS), ax=axes, label="score: mean W1/σ of validation events")
    return figure


def plot_importance(shares: Mapping[str, float]) -> Figure:
    """Draw the share of the score's variance that each setting explains (fANOVA)."""
    figure = Figure(figsize=(7, 0.5 * len(shares) + 1.2), layout="constrained")
    axes = figure.subplots()
    paths = list(shares)[::-1]
    axes.barh(paths, [shares[path] for path in paths])
    axes.set_xlim(0, 1)
    axes.set_xlabel("share of the score's variance (fANOVA)")
    return figure


def curves(trials: Sequence[Trial]) -> Figure:
    """Draw the score of each trial against the share of its run that is done."""
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    for trial in trials:
        scores = [each for each in trial.scores() if np.isfinite(each.score)]
        style = "-" if trial.state() == "finished" else ":"
        axes.plot([each.share for each in scores], [each.score for each in scores], style, marker=".", label=trial.name)
    axes.set_yscale("log")
    axes.set_xlabel("share of the run (dotted: did not finish)")
    axes.set_ylabel("score: mean W1/σ of validation events")
    if len(trials) <= 20:
        axes.legend(fontsize=7, ncols=2)
    return figure


def _draw_axes(axes: Axes, space: Space) -> None:
    axes.set_xlim(0, len(space.dimensions))
    axes.set_ylim(-0.02, 1.02)
    axes.set_yticks([])
    axes.set_xticks(
        range(len(space.dimensions) + 1), [*(d.path.rpartition(".")[2] for d in space.dimensions), "score"], rotation=15
    )
    for x, dimension in enumerate(space.dimensions):
        axes.axvline(x, color="0.6", linewidth=0.8)
        for height, text in _ticks(dimension):
            axes.annotate(text, (x, height), fontsize=8, backgroundcolor=(1, 1, 1, 0.6), va="center")


def _ticks(dimension: Dimension) -> list[tuple[float, str]]:
    return [(dimension.coordinate(value), format_value(value)) for value in dimension.values]
