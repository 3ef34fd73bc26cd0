"""Write an evaluation as JSON, HTML page and figures, and format the table for the terminal."""

import dataclasses
import math
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from crmuons.evaluation.comparison import Numbers
from crmuons.evaluation.evaluate import Evaluation
from crmuons.evaluation.metrics.distances import Missing, Number
from crmuons.evaluation.metrics.profiles import ProfileBin
from crmuons.evaluation.reference import GENERATED, NULL
from crmuons.evaluation.report import breakdown_figures, feature_figures, figures, parts
from crmuons.evaluation.report.criteria import HEADLINES, judge, show
from crmuons.evaluation.report.html import page

FORMAT = 1
JSON_FILE = "evaluation.json"


def write_report(evaluation: Evaluation, out: Path) -> dict[str, Figure]:
    """Write evaluation.json, report.html (which needs no other file) and figures/*.png into a directory.

    Returns:
        The figures by name.

    Raises:
        OSError: if a file cannot be written.
    """
    drawn = _draw(evaluation)
    images = {name: parts.png(figure) for name, figure in drawn.items()}
    parts.write(out, images, JSON_FILE, to_json(evaluation), page(evaluation, images))
    return drawn


def _draw(evaluation: Evaluation) -> dict[str, Figure]:
    """Draw all figures of the report; return them by name."""
    (truth, generated), breakdown = evaluation.shown, evaluation.breakdown
    drawn = {
        "marginals": figures.marginals(truth, generated),
        "multiplicity_by_energy": figures.multiplicity_by_energy(truth, generated),
        "cells": breakdown_figures.cell_map(breakdown.cells),
        "lateral_profile": figures.lateral_profile(truth, generated),
        "energy_spectrum": figures.energy_spectrum(truth, generated),
        "energy_radius_map": figures.energy_radius_map(truth, generated),
        "bins": breakdown_figures.heat_map(breakdown.bins),
        "event_displays": figures.event_displays(truth, generated),
    }
    if evaluation.further:
        drawn["muon_features"] = feature_figures.muon_features(truth, generated, evaluation.further)
    if evaluation.calibration is not None:
        drawn["calibration"] = breakdown_figures.calibration_histogram(evaluation.calibration)
        drawn["calibration_cells"] = breakdown_figures.calibration_map(breakdown.pit_cells)
    return drawn


def to_json(evaluation: Evaluation) -> dict[str, Any]:
    """Return all numbers for JSON; a missing one is {"absent": reason}, an infinite distance {"absent": "infinite"}."""
    breakdown = evaluation.breakdown
    return {
        "format": FORMAT,
        "about": evaluation.about,
        "warnings": evaluation.warnings,
        "verdicts": {headline.name: judge(evaluation, headline) for headline in HEADLINES},
        "numbers": _by_sample(evaluation.numbers),
        "cells": [dataclasses.asdict(cell) | {"ratio": number_as_json(cell.ratio)} for cell in breakdown.cells],
        "pit_cells": [
            dataclasses.asdict(cell) | {"distance": number_as_json(cell.distance)} for cell in breakdown.pit_cells
        ],
        "bins": [
            dataclasses.asdict(part.region) | {"events": part.events} | _by_sample(part.numbers)
            for part in breakdown.bins
        ],
        "profiles": {
            sample: [_profile_as_json(part) for part in profile] for sample, profile in evaluation.profiles.items()
        },
        "hard_cases": [
            {"name": case.name, "true_events": case.true_events, "generated_events": case.events[GENERATED]}
            | _by_sample(case.numbers)
            for case in breakdown.hard_cases
        ],
        "hard_cells": [
            {"name": cell.name, "key": cell.key, "events": cell.events, "effective_events": cell.effective}
            | _by_sample(cell.numbers)
            for cell in evaluation.hard_cells
        ],
    }


def summary(evaluation: Evaluation) -> str:
    """Return the table of headline figures and the warnings as text for a terminal."""
    rows = [["figure", "generated", "floor", "verdict"]]
    for headline in HEADLINES:
        number, null = (evaluation.numbers[sample][headline.name] for sample in (GENERATED, NULL))
        verdict = " ".join([judge(evaluation, headline), *_reasons(number, null)])
        rows.append([headline.title, show(number), show(null), verdict])
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join([*lines, *(f"warning: {warning}" for warning in evaluation.warnings)])


def _reasons(number: Number, null: Number) -> list[str]:
    """Return why a figure or its floor is absent, in brackets."""
    ours, floor = (each.reason if isinstance(each, Missing) else "" for each in (number, null))
    both = [ours] if ours == floor else [*([ours] if ours else []), *([f"floor: {floor}"] if floor else [])]
    return [f"({'; '.join(both)})"] if any(both) else []


def _profile_as_json(part: ProfileBin) -> dict[str, Any]:
    numbers = {name: number_as_json(getattr(part, name)) for name in ("true", "other", "deviation")}
    return dataclasses.asdict(part) | numbers | {"verdict": part.verdict}


def _by_sample(numbers: dict[str, Numbers]) -> dict[str, Any]:
    return {
        sample: {name: number_as_json(number) for name, number in figures.items()}
        for sample, figures in numbers.items()
    }


def number_as_json(number: Number) -> dict[str, Any]:
    """Return a number for JSON; see `to_json`."""
    if isinstance(number, Missing):
        return {"absent": number.reason}
    if not math.isfinite(number.value):
        return {"absent": "infinite"}
    return {"value": number.value, "error": number.error}
