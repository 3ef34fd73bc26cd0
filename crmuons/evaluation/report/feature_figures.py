"""Draw the further features of the muons: the distribution of each, true and generated, with the ratio."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float64
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from crmuons.data.events import EventArrays
from crmuons.data.features import MuonFeature
from crmuons.evaluation.metrics import further as further_features
from crmuons.evaluation.metrics.further import Column
from crmuons.evaluation.metrics.quantities import event_of_muon
from crmuons.evaluation.report.figures import draw_ratio_histograms, log_scale, per_event_histogram

BINS = 40
OUTSIDE = 1e-4  # Share of the true muons beyond each end of a panel. They are counted in its first and last bin.
MOST_LEVELS = 20  # A discrete feature with more values gets bins.

Values = Float64[np.ndarray, " muons"]


def muon_features(truth: EventArrays, generated: EventArrays, further: Sequence[MuonFeature]) -> Figure:
    """Draw one panel for each column of metrics/further.py, with the ratio below it."""
    columns = further_features.columns(further)
    rows = -(-len(columns) // 2)
    figure = Figure(figsize=(11, 4.4 * rows))
    # Fixed margins, as in figures.marginals; in inches, because the height depends on the number of rows.
    inch = 1 / (4.4 * rows)
    panels = figure.add_gridspec(
        rows, 2, left=0.09, right=0.99, bottom=0.6 * inch, top=1 - 0.1 * inch, wspace=0.24, hspace=0.24
    )
    values = [further_features.values(events, further).astype(np.float64) for events in (truth, generated)]
    for number, column in enumerate(columns):
        pair = panels[number // 2, number % 2].subgridspec(2, 1, height_ratios=(3, 1), hspace=0.06)
        upper, lower = pair.subplots(sharex=True, squeeze=False)[:, 0]
        _draw_column(upper, lower, column, (truth, generated), (values[0][:, number], values[1][:, number]))
        lower.set_xlabel(column.label)
        upper.set_ylabel("muons per event per bin")
    return figure


def _draw_column(
    upper: Axes, lower: Axes, column: Column, sets: tuple[EventArrays, EventArrays], values: tuple[Values, Values]
) -> None:
    edges = _edges(column, *values)
    histograms = [
        per_event_histogram(part, event_of_muon(events.counts), len(events.counts), edges)
        for events, part in zip(sets, values, strict=True)
    ]
    draw_ratio_histograms(upper, lower, edges, *histograms, widths=np.ones(len(edges) - 1))
    upper.set_xlim(edges[0], edges[-1])
    if column.kind == "signed":
        upper.set_xscale("asinh", linear_width=_unit(values[0]))
    if column.kind == "discrete":
        upper.set_ylim(0)
    else:
        log_scale(upper)


def _edges(column: Column, truth: Values, generated: Values) -> Float64[np.ndarray, " edges"]:
    """Return the edges of the bins: around the values of a discrete feature, and even in asinh of a signed one."""
    levels = np.unique(np.concatenate([truth, generated]))
    if column.kind == "discrete" and 1 < len(levels) <= MOST_LEVELS:
        middle = (levels[1:] + levels[:-1]) / 2
        return np.concatenate([[2 * levels[0] - middle[0]], middle, [2 * levels[-1] - middle[-1]]])
    if not len(truth):
        return np.linspace(0, 1, BINS + 1)
    low, high = np.quantile(truth, (OUTSIDE, 1 - OUTSIDE))
    high = high if high > low else low + 1
    if column.kind != "signed":
        return np.linspace(low, high, BINS + 1)
    unit = _unit(truth)
    return unit * np.sinh(np.linspace(np.arcsinh(low / unit), np.arcsinh(high / unit), BINS + 1))


def _unit(truth: Values) -> float:
    """Return where the axis of a signed feature turns from linear to logarithmic: the median of its absolute value."""
    median = float(np.median(np.abs(truth))) if len(truth) else 0.0
    return median if median > 0 else 1.0
