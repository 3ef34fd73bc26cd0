"""The figures that people look at: true events beside generated ones. Drawn without a display."""

import numpy as np
from jaxtyping import Float64
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from crmuons.schema import EventArrays
from crmuons.summaries import muon_quantities

TRUE_COLOUR, GENERATED_COLOUR = "#4d4d4d", "#c8412b"
RATIO_RANGE = (0.5, 1.5)


def marginals(truth: EventArrays, generated: EventArrays, *, names: tuple[str, str] = ("true", "generated")) -> Figure:
    """Distributions of muon energy, axis distance, multiplicity and total energy, each above its ratio to the truth.

    All are per event, so a wrong multiplicity shows in the muons' panels too. Bands are the truth's statistical errors,
    in which the muons of an event count as one fluctuation.
    """
    figure = Figure(figsize=(11, 8.4), layout="constrained")
    for panel, name in zip(figure.subfigures(2, 2, squeeze=False).flat, MARGINALS, strict=True):
        upper, lower = panel.subplots(2, 1, sharex=True, height_ratios=(3, 1))
        _draw_ratio_pair(upper, lower, *(_marginal(events, name) for events in (truth, generated)), names=names)
        lower.set_xlabel(MARGINALS[name][0])
        upper.set_ylabel(MARGINALS[name][1])
        if MARGINALS[name][2]:
            upper.set_yscale("log")
    return figure


# Axis label, label of the density, logarithmic density.
MARGINALS = {
    "energy": ("muon energy: log$_{10}$(E / GeV)", "muons per event per bin", True),
    "radius": ("distance from the axis: log$_{10}$(r / m)", "muons per event per bin", True),
    "multiplicity": ("multiplicity: log$_{10}$(N + 1)", "share of the events per bin", True),
    "total_energy": ("total energy of a bundle: log$_{10}$(ΣE / GeV)", "share of the events per bin", True),
}

Values = tuple[Float64[np.ndarray, " values"], Float64[np.ndarray, " values"], int]


def _marginal(events: EventArrays, name: str) -> Values:
    """Values to count, the event that each belongs to, and the number of events."""
    counts = events.counts
    if name == "multiplicity":
        return np.log10(counts + 1.0), np.arange(len(counts)), len(counts)
    event = np.repeat(np.arange(len(counts)), counts)
    if name == "total_energy":
        total = np.bincount(event, events.muons[:, 0].astype(np.float64), len(counts))
        return np.log10(total[counts > 0]), np.flatnonzero(counts), len(counts)
    return muon_quantities(events)[f"log_{name}"], event, len(counts)


def _draw_ratio_pair(upper: Axes, lower: Axes, truth: Values, other: Values, *, names: tuple[str, str]) -> None:
    edges = _edges(truth[0], other[0])
    (true_density, true_error), (density, error) = (_per_event_histogram(*values, edges) for values in (truth, other))
    upper.stairs(true_density, edges, color=TRUE_COLOUR, fill=True, alpha=0.25)
    upper.stairs(true_density, edges, color=TRUE_COLOUR, label=names[0])
    upper.stairs(density, edges, color=GENERATED_COLOUR, label=names[1])
    upper.legend(frameon=False)
    filled = true_density > 0  # Bins that are empty in the truth have no ratio.
    band = np.divide(true_error, true_density, out=np.zeros_like(true_error), where=filled)
    lower.stairs(1 + band, edges, baseline=1 - band, fill=True, color=TRUE_COLOUR, alpha=0.25)
    ratio, ratio_error = density[filled] / true_density[filled], error[filled] / true_density[filled]
    centres = ((edges[:-1] + edges[1:]) / 2)[filled]
    lower.errorbar(centres, ratio, ratio_error, fmt=".", color=GENERATED_COLOUR, markersize=4, linewidth=1)
    lower.axhline(1, color=TRUE_COLOUR, linewidth=0.8)
    lower.set_ylim(*RATIO_RANGE)
    lower.set_ylabel("ratio")


def _edges(a: Float64[np.ndarray, " n"], b: Float64[np.ndarray, " m"], bins: int = 40) -> Float64[np.ndarray, " edges"]:
    values = np.concatenate([a, b])
    if not len(values):
        return np.linspace(0, 1, bins + 1)
    low, high = values.min(), values.max()
    return np.linspace(low, high if high > low else low + 1, bins + 1)


def _per_event_histogram(
    values: Float64[np.ndarray, " values"],
    event: Float64[np.ndarray, " values"],
    num_events: int,
    edges: Float64[np.ndarray, " edges"],
) -> tuple[Float64[np.ndarray, " bins"], Float64[np.ndarray, " bins"]]:
    """Counts per event and bin, and their errors: the root of the sum over events of (count in the bin)^2."""
    bins = len(edges) - 1
    index = np.clip(np.searchsorted(edges, values, side="right") - 1, 0, bins - 1)
    cells, counts = np.unique(event.astype(np.int64) * bins + index, return_counts=True)
    squares = np.bincount(cells % bins, counts.astype(np.float64) ** 2, bins)
    return np.bincount(index, minlength=bins) / num_events, np.sqrt(squares) / num_events
