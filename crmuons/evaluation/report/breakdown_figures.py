"""Draw the figures in bins, in cells, and of the calibration."""

from collections.abc import Callable

import numpy as np
from matplotlib.figure import Figure

from crmuons.evaluation.breakdown import Bin
from crmuons.evaluation.metrics.calibration import Calibration, PitCell
from crmuons.evaluation.metrics.distances import SCORED, Estimate, Missing, Number
from crmuons.evaluation.metrics.regions import Cell
from crmuons.evaluation.reference import GENERATED, NULL

PIT_BINS = 20

# The rows of the heat map, and their labels.
ROWS = {
    **{f"w1_{name}": f"W1 {name.replace('_', ' ')}" for name in SCORED},
    "fpd": "FPD",
    "kpd": "KPD",
    "auc_bundles": "AUC, bundle summaries",
    "auc_multiplicity": "AUC, N",
    "auc_muons": "AUC, muons",
    "pit": "PIT of N",
}


def heat_map(bins: list[Bin]) -> Figure:
    """Draw how far each figure lies above its floor in each bin of the primary, in standard deviations."""
    rows = [row for row in ROWS if _known(row, bins)] or list(ROWS)
    values = np.array(
        [[_excess(part.numbers[GENERATED].get(row), part.numbers[NULL].get(row)) for part in bins] for row in rows]
    )
    names_of_rows = [ROWS[row] for row in rows]
    figure = Figure(figsize=(4.2 + 0.55 * len(bins), 6.6), layout="constrained")
    axis = figure.subplots()
    axis.set_facecolor("#dddddd")
    image = axis.pcolormesh(np.ma.masked_invalid(values), cmap="RdYlGn_r", vmin=-1, vmax=8, edgecolor="white")
    axis.invert_yaxis()
    axis.set_yticks(np.arange(len(names_of_rows)) + 0.5, names_of_rows)
    names = [f"{part.region.quantity}\n{part.region.label}" for part in bins]
    axis.set_xticks(np.arange(len(bins)) + 0.5, names, rotation=90, fontsize=8)
    for (row, column), value in np.ndenumerate(values):
        if np.isfinite(value):
            colour = "white" if value > 6.5 else "black"
            axis.text(column + 0.5, row + 0.5, f"{round(value)}", ha="center", va="center", fontsize=8, color=colour)
    figure.colorbar(image, ax=axis, label="standard deviations above the floor (grey: too few events)", extend="both")
    return figure


def cell_map(cells: list[Cell]) -> Figure:
    """Draw the ratio of mean N, generated / true, in cells of mass and energy decade."""
    masses, energies = (list(dict.fromkeys(values)) for values in ([c.mass for c in cells], [c.energy for c in cells]))
    ratios = np.full((len(masses), len(energies)), np.nan)
    figure = Figure(figsize=(2.6 + 1.6 * len(energies), 1.6 + 0.6 * len(masses)), layout="constrained")
    axis = figure.subplots()
    for cell in cells:
        row, column = masses.index(cell.mass), energies.index(cell.energy)
        if isinstance(cell.ratio, Missing):
            text = "too few"
        else:
            ratios[row, column] = cell.ratio.value
            text = f"{cell.ratio.value:.3f} ± {cell.ratio.error:.3f}"
        dark = abs(ratios[row, column] - 1) > 0.15  # False for NaN, whose cell is light grey.
        colour = "white" if dark else "black"
        axis.text(column + 0.5, row + 0.5, text, ha="center", va="center", fontsize=8.5, color=colour)
    axis.set_facecolor("#dddddd")
    image = axis.pcolormesh(np.ma.masked_invalid(ratios), cmap="coolwarm", vmin=0.8, vmax=1.2, edgecolor="white")
    axis.set_yticks(np.arange(len(masses)) + 0.5, masses)
    axis.set_xticks(np.arange(len(energies)) + 0.5, energies)
    axis.set_ylabel("primary mass")
    axis.set_xlabel("primary energy")
    figure.colorbar(image, ax=axis, label="mean N, generated / true", extend="both")
    return figure


def calibration_histogram(calibration: Calibration) -> Figure:
    """Draw the histogram of the PIT of N, which is flat for a calibrated model."""
    figure = Figure(figsize=(7, 3.6), layout="constrained")
    axis = figure.subplots()
    counts, edges = np.histogram(calibration.pit, bins=PIT_BINS, range=(0, 1))
    expected = len(calibration.pit) / PIT_BINS
    error = np.sqrt(expected * (1 - 1 / PIT_BINS))  # Binomial.
    axis.stairs(counts / expected, edges, color="#c8412b", linewidth=1.5)
    axis.axhline(1, color="#4d4d4d", linewidth=0.8)
    axis.axhspan(1 - error / expected, 1 + error / expected, color="#4d4d4d", alpha=0.25, linewidth=0)
    axis.set_ylim(0, max(2.0, 1.1 * counts.max() / expected))
    axis.set_xlim(0, 1)
    axis.set_xlabel("randomised PIT of the true N under the model")
    axis.set_ylabel("events / expected (band: one σ)")
    return figure


def calibration_map(cells: list[PitCell]) -> Figure:
    """Draw the PIT's distance from uniform in cells of mass (rows), energy, cos zenith and depth (columns)."""
    masses = list(dict.fromkeys(cell.mass for cell in cells))
    columns = sorted(dict.fromkeys((cell.energy, cell.zenith, cell.depth) for cell in cells), key=_order(cells))
    values = np.full((len(masses), len(columns)), np.nan)
    figure = Figure(figsize=(3 + 0.5 * len(columns), 2.6 + 0.45 * len(masses)), layout="constrained")
    axis = figure.subplots()
    for cell in cells:
        if isinstance(cell.distance, Estimate):
            row, column = masses.index(cell.mass), columns.index((cell.energy, cell.zenith, cell.depth))
            values[row, column] = cell.distance.value
            colour = "white" if cell.distance.value > 2.4 else "black"
            text = f"{cell.distance.value:.1f}"
            axis.text(column + 0.5, row + 0.5, text, ha="center", va="center", fontsize=8, color=colour)
    axis.set_facecolor("#dddddd")
    image = axis.pcolormesh(np.ma.masked_invalid(values), cmap="RdYlGn_r", vmin=0.4, vmax=2.8, edgecolor="white")
    axis.set_yticks(np.arange(len(masses)) + 0.5, masses)
    names = [f"{energy}\ncos θ {zenith}, {depth}" for energy, zenith, depth in columns]
    axis.set_xticks(np.arange(len(columns)) + 0.5, names, rotation=90, fontsize=7)
    axis.set_ylabel("primary mass")
    figure.colorbar(image, ax=axis, label="√n × distance from uniform (grey: too few events)", extend="both")
    return figure


def _order(cells: list[PitCell]) -> Callable[[tuple[str, str, str]], tuple[int, int, int]]:
    """Return a sorting key: labels in order of first appearance, which is ascending in each quantity."""
    energies, zeniths, depths = (
        list(dict.fromkeys(labels))
        for labels in zip(*((cell.energy, cell.zenith, cell.depth) for cell in cells), strict=True)
    )
    return lambda column: (energies.index(column[0]), zeniths.index(column[1]), depths.index(column[2]))


def _known(row: str, bins: list[Bin]) -> bool:
    """Return whether a figure exists in any bin; classifiers and PIT may be missing in all."""
    return any(isinstance(part.numbers[GENERATED].get(row), Estimate) for part in bins)


def _excess(number: Number | None, null: Number | None) -> float:
    if not isinstance(number, Estimate) or not isinstance(null, Estimate):
        return float("nan")
    error = np.hypot(null.error or 0, number.error or 0)
    return float((number.value - null.value) / error) if error > 0 else float("nan")
