"""Draw weighted events together with the published tables; no display is needed."""

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from crmuons.evaluation.nature import tables
from crmuons.evaluation.nature.compare import BUNDLE_KM, MOST_MUONS
from crmuons.evaluation.nature.rows import OUTSIDE, Row
from crmuons.evaluation.report.figures import GENERATED_COLOUR, TRUE_COLOUR

COLOURS = ("#2b6cb0", "#6b46c1", "#2f855a")
LEGEND: Literal["upper right"] = "upper right"  # Place of the legend for falling curves.
INTENSITY_LABEL = "intensity, 1 / (m² s sr)"


def draw(rows: Sequence[Row], least_gev: float) -> dict[str, Figure]:
    """Return all figures by name."""
    drawn = {
        "depth_intensity": depth_intensity(rows, least_gev),
        "zenith": _with_ratio(_of(rows, "intensity at"), "zenith angle, degrees", INTENSITY_LABEL),
        "mean_energy": _with_ratio(_of(rows, "mean energy"), "depth, km w.e.", "mean energy, GeV", log=False),
        "multiplicity": multiplicity(rows),
        "distances": distances(rows),
    }
    surface = _of(rows, "vertical intensity at the surface")
    if any(row.value is not None for row in surface):
        drawn["surface"] = _with_ratio(surface, "muon energy, GeV", INTENSITY_LABEL, log_x=True)
    return drawn


def depth_intensity(rows: Sequence[Row], least_gev: float) -> Figure:
    """Draw the vertical intensity against the depth, and below it its ratio to daemonflux through water."""
    figure, (upper, lower) = _panels(8.6, 7.0)
    depth = np.linspace(0.6, 6.4, 200)
    reference = tables.vertical_intensity(depth, least_gev)
    error = np.array([tables.vertical_error(float(x)) for x in depth])
    upper.fill_between(depth, reference * (1 - error), reference * (1 + error), color=TRUE_COLOUR, alpha=0.3, lw=0)
    upper.plot(depth, reference, color=TRUE_COLOUR, lw=1, label="daemonflux through water, with its error")
    lower.fill_between(depth, 1 - error, 1 + error, color=TRUE_COLOUR, alpha=0.3, lw=0)
    inside = (depth >= tables.MUPAGE_KM[0]) & (depth <= tables.MUPAGE_KM[1])
    mupage = tables.all_bundles(depth[inside], np.ones(inside.sum()))
    for axes, scale in ((upper, 1.0), (lower, reference)):
        here, there = (scale[inside], scale) if isinstance(scale, np.ndarray) else (scale, scale)
        axes.plot(depth[inside], mupage / here, color=COLOURS[0], lw=1, ls="--", label="MUPAGE")
        axes.plot(depth, tables.mei_hime(depth) / there, color=COLOURS[1], lw=1, ls=":", label="Mei and Hime, in rock")
        for number, (x, value, sigma) in enumerate(tables.DUMAND):
            below = 1.0 if axes is upper else float(tables.vertical_intensity(np.array(x), least_gev))
            label = "DUMAND, measured" if number == 0 else None
            axes.errorbar(x, value / below, sigma / below, fmt="s", color=COLOURS[2], ms=4, lw=1, label=label)
    _points(upper, lower, [row for row in _of(rows, "vertical intensity, ") if row.source.startswith("daemonflux")])
    upper.set_yscale("log")
    upper.set_ylabel(INTENSITY_LABEL)
    upper.legend(frameon=False, loc=LEGEND)
    lower.set_xlabel("vertical depth, km w.e.")
    lower.set_ylim(0.5, 1.6)
    return figure


def multiplicity(rows: Sequence[Row]) -> Figure:
    """Draw the intensity of bundles of m muons at each depth, and its ratio to MUPAGE."""
    figure = Figure(figsize=(11, 5.2), layout="constrained")
    panels = figure.subplots(2, len(BUNDLE_KM), sharex=True, squeeze=False, height_ratios=(3, 2))
    many, ones = np.arange(1, MOST_MUONS + 1), np.ones(MOST_MUONS)
    for upper, lower, depth in zip(*panels, BUNDLE_KM, strict=True):
        here = [row for row in _of(rows, "bundles of m muons, ") if row.label.endswith(f"{depth:g} km w.e.")]
        mupage, muongun = (tables.bundle_intensity(many, depth * ones, ones, muongun=other) for other in (False, True))
        upper.plot(many, mupage, color=COLOURS[0], ls="--", lw=1, label="MUPAGE")
        upper.plot(many, muongun, color=COLOURS[1], ls=":", lw=1, label="MuonGun's exponents")
        lower.plot(many, muongun / mupage, color=COLOURS[1], ls=":", lw=1)
        _points(upper, lower, here)
        upper.set_title(f"{depth:g} km w.e.", fontsize=10)
        upper.set_yscale("log")
        upper.legend(frameon=False, loc=LEGEND)
        lower.set_xlabel("muons in the bundle")
        lower.set_ylim(0, 1.6)
    panels[0, 0].set_ylabel(INTENSITY_LABEL)
    panels[1, 0].set_ylabel("ratio to MUPAGE")
    return figure


def distances(rows: Sequence[Row]) -> Figure:
    """Draw the ratios of all mean distances to MUPAGE's."""
    chosen = [*_of(rows, "mean distance from"), *_of(rows, "mean distance of")]
    figure = Figure(figsize=(8.6, 0.42 * len(chosen) + 1.2), layout="constrained")
    axes = figure.subplots()
    place = np.arange(len(chosen))[::-1]
    axes.fill_betweenx([-0.6, len(chosen) - 0.4], 1 - tables.DISTANCE_ERROR, 1 + tables.DISTANCE_ERROR,
                       color=TRUE_COLOUR, alpha=0.3, lw=0)  # fmt: skip
    axes.axvline(1, color=TRUE_COLOUR, lw=0.8)
    for y, row in zip(place, chosen, strict=True):
        if row.ratio is not None:
            axes.errorbar(row.ratio, y, xerr=row.ratio_error or 0.0, **_marker(row))
    axes.set_yticks(place, [f"{'axis' if 'axis' in row.quantity else 'pairs'}: {row.label}" for row in chosen])
    axes.set_xlim(0.4, 1.6)
    axes.set_xlabel("mean distance / MUPAGE")
    return figure


def _with_ratio(rows: Sequence[Row], x_label: str, y_label: str, *, log: bool = True, log_x: bool = False) -> Figure:
    """Draw values and references against the position, and their ratio below."""
    figure, (upper, lower) = _panels(8.6, 5.6)
    x = np.array([row.position for row in rows])
    reference = np.array([row.reference for row in rows])
    band = np.array([row.reference_error for row in rows])
    upper.fill_between(x, reference - band, reference + band, color=TRUE_COLOUR, alpha=0.3, lw=0)
    upper.plot(x, reference, color=TRUE_COLOUR, lw=1, label=rows[0].source)
    lower.fill_between(x, 1 - band / reference, 1 + band / reference, color=TRUE_COLOUR, alpha=0.3, lw=0)
    _points(upper, lower, rows)
    if log:
        upper.set_yscale("log")
    if log_x:
        upper.set_xscale("log")
    upper.set_ylabel(y_label)
    upper.legend(frameon=False, loc=LEGEND if log else "lower right")
    lower.set_xlabel(x_label)
    lower.set_ylim(0.7, 1.3)
    return figure


def _points(upper: Axes, lower: Axes, rows: Sequence[Row]) -> None:
    """Draw the data of rows, with hollow points for rows that the data do not cover, and their ratios."""
    lower.axhline(1, color=TRUE_COLOUR, lw=0.8)
    lower.set_ylabel("ratio")
    labelled = False
    for row in rows:
        if not row.value or row.ratio is None:
            continue
        label = None if labelled or row.verdict == OUTSIDE else "this data"
        labelled = labelled or label is not None
        upper.errorbar(row.position, row.value, row.error, label=label, **_marker(row))
        lower.errorbar(row.position, row.ratio, row.ratio_error or 0.0, **_marker(row))


def _marker(row: Row) -> dict[str, Any]:
    hollow = row.verdict == OUTSIDE
    return {"fmt": "o", "color": GENERATED_COLOUR, "ms": 4, "lw": 1, "mfc": "white" if hollow else GENERATED_COLOUR}


def _panels(width: float, height: float) -> tuple[Figure, tuple[Axes, Axes]]:
    figure = Figure(figsize=(width, height), layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
    return figure, (upper, lower)


def _of(rows: Sequence[Row], start: str) -> list[Row]:
    return [row for row in rows if row.quantity.startswith(start)]
