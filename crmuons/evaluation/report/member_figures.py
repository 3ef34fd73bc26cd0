"""The section of a report about the members of an ensemble: coverage, figures and bands."""

import html
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from crmuons.evaluation.members import ALL, Members
from crmuons.evaluation.metrics.bands import QUANTITIES
from crmuons.evaluation.metrics.quantities import LABELS
from crmuons.evaluation.report import parts
from crmuons.evaluation.report.criteria import show
from crmuons.evaluation.report.figures import GENERATED_COLOUR, TRUE_COLOUR
from crmuons.evaluation.report.parts import table, td

NAME = "members"
CAPTION = {
    NAME: (
        "Ratio of the true rate in a bin to the mean of the members. Red band: 68 % band of the members, including "
        "statistical errors. Grey bars: statistical error alone. Good: about two in three points lie in the band."
    )
}
TEXT = """Each member was trained separately, so the spread of the members shows the uncertainty from the training and
its finite number of showers. The <em>coverage</em> is the share of bins of the distributions whose true rate lies in
the 68 % band around the mean of the members. Good: 60 to 76 %. A smaller share means that the members agree on wrong
rates. A larger share means that the band is too wide."""


def section(members: Members | None, images: dict[str, bytes]) -> str:
    """Return the section of an ensemble; empty for a single model."""
    if members is None:
        return ""
    rows = [
        td(html.escape(place), "name") + td(str(number)) + td(f"{covered / number:.0%}" if number else "no bin")
        for place, (covered, number) in members.coverages().items()
    ]
    figures = [
        td(html.escape(name.replace("_", " ")), "name") + td(show(value)) for name, value in members.figures.items()
    ]
    return (
        f"<h2>Spread of the {members.number} members</h2><p>{TEXT}</p>"
        + table(["bins", "number", "coverage"], rows)
        + parts.figures(images, CAPTION, NAME)
        + "<details><summary>Figures: mean of the members ± their standard deviation</summary>"
        + table(["figure", "members"], figures)
        + "</details>"
    )


def lines(members: Members | None) -> list[str]:
    """Return the coverage for a terminal; nothing for a single model."""
    if members is None:
        return []
    shown = [
        f"{covered / number:.0%} of {number} bins ({place})"
        for place, (covered, number) in members.coverages().items()
        if number and place in {ALL, "hard cases together"}
    ]
    return [
        f"truth in the 68 % band of the {members.number} members: {', '.join(shown) or 'no bin has enough showers'}"
    ]


def as_json(members: Members) -> dict[str, Any]:
    """Return coverage, figures and bins for JSON; an infinite edge is null."""
    bins = [
        {
            name: value if not isinstance(value, float) or np.isfinite(value) else None
            for name, value in vars(one).items()
        }
        | {"covered": one.is_covered}
        for one in members.bins
    ]
    shares = {place: {"covered": covered, "bins": number} for place, (covered, number) in members.coverages().items()}
    figures = {name: {"mean": figure.value, "spread": figure.error} for name, figure in members.figures.items()}
    return {"number": members.number, "coverage": shares, "figures": figures, "bins": bins}


def draw(members: Members) -> Figure:
    """Draw the true rate in the band of the members, for the distributions of all events."""
    figure = Figure(figsize=(11, 6.4), layout="constrained")
    for axes, quantity in zip(figure.subplots(2, 3).ravel(), QUANTITIES, strict=True):
        bins = [one for one in members.bins if one.where == ALL and one.quantity == quantity and one.predicted > 0]
        finite = [one for one in bins if np.isfinite([one.low, one.high]).all()]
        if finite:
            mean = np.array([one.predicted for one in finite])
            centre = np.array([(one.low + one.high) / 2 for one in finite])
            half = np.array([one.half_width for one in finite]) / mean
            true = np.array([one.true for one in finite]) / mean
            axes.fill_between(centre, 1 - half, 1 + half, step="mid", color=GENERATED_COLOUR, alpha=0.25)
            error = np.array([one.statistical for one in finite]) / mean
            axes.errorbar(centre, true, error, fmt=".", color=TRUE_COLOUR, markersize=4, linewidth=1)
        axes.axhline(1, color=GENERATED_COLOUR, linewidth=0.8)
        axes.set_xlabel(LABELS[quantity])
        axes.set_ylabel("true / members")
    return figure
