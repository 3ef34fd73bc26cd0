"""Write a validation as JSON, HTML page and figures, and as text for a terminal."""

import html
from collections.abc import Iterator, Mapping
from pathlib import Path

from crmuons.evaluation.nature import figures
from crmuons.evaluation.nature.request import Validation
from crmuons.evaluation.nature.rows import AGREES, CERTAIN, HIGH, LEAST_COVERED, LOW, MOST_ERROR, OUTSIDE, Row
from crmuons.evaluation.report import parts
from crmuons.evaluation.report.parts import table, td

FORMAT = 1
JSON_FILE = "validation.json"
CLASSES = {AGREES: "good", HIGH: "bad", LOW: "bad"}

INTRODUCTION = f"""This page weights muon bundles to a cosmic-ray flux and compares them with published measurements and
calculations. The flux gives the number of primaries of each nucleus and energy; the bundles give the number of muons of
each primary. A row <em>agrees</em> if it is within {CERTAIN:g} standard errors of the reference. The standard error
combines the statistical error of the data and the error of the reference. A row is <em>{OUTSIDE}</em> if the data hold
less than {LEAST_COVERED:.0%} of the primaries that matter there, or if the statistical error is above {MOST_ERROR:.0%}.
"""
CAPTIONS = {
    "depth_intensity": (
        "Vertical intensity of muons against the depth of water or ice, and below it the ratio to daemonflux through "
        "water. Good: the points lie in the grey band. Mei and Hime's line is for rock, which lets fewer muons through "
        "at great depths; hollow points lack a part of the primaries."
    ),
    "zenith": "Intensity at a vertical depth of 0.5 km w.e. against the zenith angle, and its ratio to MUTE.",
    "mean_energy": "Mean energy of the muons against the depth, and its ratio to daemonflux through water.",
    "multiplicity": (
        "Intensity of bundles of m muons. MuonGun has the same form with another exponent; the two differ because they "
        "were fitted to other shower programs."
    ),
    "distances": "Mean distances of muons from the axis and from each other, divided by MUPAGE's.",
    "surface": "Vertical intensity at the surface in bins of energy, and its ratio to daemonflux.",
}
SECTIONS = {
    "Vertical intensity": ("depth_intensity", ("vertical intensity, ",)),
    "Zenith angle": ("zenith", ("intensity at",)),
    "Mean energy": ("mean_energy", ("mean energy",)),
    "Multiplicity": ("multiplicity", ("bundles of",)),
    "Distances": ("distances", ("mean distance",)),
    "Surface": ("surface", ("vertical intensity at the surface",)),
}


def write_report(validation: Validation, out: Path) -> None:
    """Write validation.json, report.html (which needs no other file) and figures/*.png into a directory.

    Raises:
        OSError: if a file cannot be written.
    """
    drawn = figures.draw(validation.rows, validation.least_gev)
    images = {name: parts.png(figure) for name, figure in drawn.items()}
    content = {
        "format": FORMAT,
        "about": validation.about,
        "warnings": validation.warnings,
        "rows": [row.to_json() for row in validation.rows],
    }
    parts.write(out, images, JSON_FILE, content, page(validation, images))


def page(validation: Validation, images: Mapping[str, bytes]) -> str:
    """Return the report as one HTML page with its figures inside."""
    body = "\n".join(_sections(validation, images))
    return parts.document(f"Validation: {validation.about['candidate']}", body)


def summary(validation: Validation) -> str:
    """Return the rows that the data cover, and the number of the other rows, as text for a terminal."""
    covered = [row for row in validation.rows if row.verdict != OUTSIDE]
    lines = [["figure", "where", "data / reference", "reference", "verdict"]]
    lines += [
        [row.quantity, row.label, _ratio(row), row.source, row.verdict + (row.note and f" ({row.note})")]
        for row in covered
    ]
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    text = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines]
    outside = len(validation.rows) - len(covered)
    if outside:
        text.append(f"{outside} of {len(validation.rows)} figures: {OUTSIDE}; the report says why")
    return "\n".join([*text, *(f"warning: {warning}" for warning in validation.warnings)])


def _sections(validation: Validation, images: Mapping[str, bytes]) -> Iterator[str]:
    yield f"<p>{INTRODUCTION}</p>" + parts.definitions(validation.about) + parts.warning_list(validation.warnings)
    for title, (figure, starts) in SECTIONS.items():
        rows = [row for row in validation.rows if row.quantity.startswith(starts)]
        shown = parts.figures(images, CAPTIONS, figure) if figure in images else ""
        yield f"<h2>{title}</h2>" + shown + _table(rows)


def _table(rows: list[Row]) -> str:
    head = ["figure", "where", "data", "reference", "data / reference", "source", "verdict", "note"]
    return table(head, [_cells(row) for row in rows])


def _cells(row: Row) -> str:
    value = "" if row.value is None else f"{row.value:.3g} ± {row.error:.1g}"
    reference = f"{row.reference:.3g} ± {row.reference_error:.1g}"
    texts = [value, reference, _ratio(row), row.source]
    return (
        "".join(td(html.escape(text), "name") for text in (row.quantity, row.label))
        + "".join(td(html.escape(text)) for text in texts)
        + td(html.escape(row.verdict), CLASSES.get(row.verdict, ""))
        + td(html.escape(row.note))
    )


def _ratio(row: Row) -> str:
    return "" if row.ratio is None else f"{row.ratio:.3f} ± {row.ratio_error:.3f}"
