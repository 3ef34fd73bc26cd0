"""An evaluation as JSON, as a page for people, and as a short table for a terminal."""

import base64
import dataclasses
import html
import io
import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from crmuons.evaluation import breakdown_figures, figures
from crmuons.evaluation.metrics import QUANTITIES, SCORED, Absent, Number
from crmuons.evaluation.protocol import FLOOR, GENERATED, Evaluation
from crmuons.evaluation.rates import EVENT_TAILS, MUON_TAILS
from crmuons.evaluation.summaries import LABELS
from crmuons.evaluation.verdicts import AIM, BAR, HEADLINES, MISSED, UNDECIDED, describe_bar, judge

FORMAT = 1
JSON_FILE, PAGE_FILE, FIGURES_DIRECTORY = "evaluation.json", "report.html", "figures"
CLASSES = {AIM: "good", BAR: "good", UNDECIDED: "fair", MISSED: "bad"}
HARD_FIGURES = ("rate", "w1_log_energy", "w1_log_radius", "w1_log_num_muons", "auc_bundles", "auc_muons")


def write_report(evaluation: Evaluation, out: Path) -> dict[str, Figure]:
    """Write evaluation.json, report.html (which needs no other file) and figures/*.png into a directory.

    Returns:
        The figures by name.

    Raises:
        OSError: if it cannot be written.
    """
    drawn = draw(evaluation)
    images = {name: _png(figure) for name, figure in drawn.items()}
    (out / FIGURES_DIRECTORY).mkdir(parents=True, exist_ok=True)
    for name, image in images.items():
        (out / FIGURES_DIRECTORY / f"{name}.png").write_bytes(image)
    (out / JSON_FILE).write_text(json.dumps(to_json(evaluation), indent=1, ensure_ascii=False, allow_nan=False))
    (out / PAGE_FILE).write_text(page(evaluation, images), encoding="utf-8")
    return drawn


def draw(evaluation: Evaluation) -> dict[str, Figure]:
    """Every figure of the report, by name. Generated events are shown beside true ones of the same primaries, if any."""
    sides, parts = evaluation.sides, evaluation.breakdown
    truth = sides.truth if sides.paired is None else sides.control
    drawn = {
        "marginals": figures.marginals(truth, sides.generated),
        "multiplicity_by_energy": figures.multiplicity_by_energy(truth, sides.generated),
        "cells": breakdown_figures.cell_map(parts.cells),
        "lateral_profile": figures.lateral_profile(truth, sides.generated),
        "energy_spectrum": figures.energy_spectrum(truth, sides.generated),
        "energy_radius_map": figures.energy_radius_map(truth, sides.generated),
        "bins": breakdown_figures.heat_map(parts.bins),
        "event_displays": figures.event_displays(truth, sides.generated),
    }
    if evaluation.calibration is not None:
        drawn["calibration"] = breakdown_figures.calibration_histogram(evaluation.calibration)
    return drawn


def to_json(evaluation: Evaluation) -> dict[str, Any]:
    """All figures; one that is missing is {"absent": reason}, an infinite distance {"absent": "infinite"}."""
    parts = evaluation.breakdown
    return {
        "format": FORMAT,
        "about": evaluation.about,
        "warnings": evaluation.warnings,
        "verdicts": {headline.name: judge(evaluation, headline) for headline in HEADLINES},
        "numbers": {who: _numbers(numbers) for who, numbers in evaluation.numbers.items()},
        "cells": [dataclasses.asdict(cell) | {"ratio": _number(cell.ratio)} for cell in parts.cells],
        "bins": [
            dataclasses.asdict(part.region)
            | {"events": part.events, "generated": _numbers(part.generated), "truth": _numbers(part.floor)}
            for part in parts.bins
        ],
        "hard_cases": [
            {
                "name": case.name,
                "true_events": case.true_events,
                "generated_events": case.generated_events,
                "generated": _numbers(case.generated),
                "truth": _numbers(case.floor),
            }
            for case in parts.hard_cases
        ],
    }


def summary(evaluation: Evaluation) -> str:
    """The headline table for a terminal."""
    rows = [["figure", "generated", "floor", "verdict"]]
    for headline in HEADLINES:
        number, floor = (evaluation.numbers[who][headline.name] for who in (GENERATED, FLOOR))
        rows.append([headline.title, show(number), show(floor), judge(evaluation, headline)])
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join([*lines, *(f"warning: {warning}" for warning in evaluation.warnings)])


def show(number: Number) -> str:
    """A number with as many digits as its error warrants (two of the error's); four decimals where it has none."""
    if isinstance(number, Absent):
        return "absent"
    if not number.error or not math.isfinite(number.value):
        return f"{number.value:.4f}" if abs(number.value) >= 1e-3 else f"{number.value:.2g}"
    decimals = max(0, 1 - math.floor(math.log10(number.error)))
    if decimals > 6:
        return f"{number.value:.2g} ± {number.error:.1g}"
    return f"{number.value:.{decimals}f} ± {number.error:.{decimals}f}"


def page(evaluation: Evaluation, images: dict[str, bytes]) -> str:
    """The report as one HTML page with its figures inside."""
    body = "\n".join(_sections(evaluation, images))
    title = html.escape(f"Evaluation: {evaluation.about.get('candidate', 'generated events')}")
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{title}</title>\n'
        f'<meta name="viewport" content="width=device-width">\n<style>{STYLE}</style></head>\n'
        f"<body><h1>{title}</h1>\n{body}\n</body></html>\n"
    )


def _sections(evaluation: Evaluation, images: dict[str, bytes]) -> Iterator[str]:
    about = "".join(
        f"<dt>{html.escape(key.replace('_', ' '))}</dt><dd>{html.escape(str(value))}</dd>"
        for key, value in evaluation.about.items()
    )
    yield f"<dl>{about}</dl>"
    if evaluation.warnings:
        yield (
            "<ul class='warnings'>" + "".join(f"<li>{html.escape(text)}</li>" for text in evaluation.warnings) + "</ul>"
        )
    yield "<h2>Verdict</h2>" + _note(
        "Each figure compares with true events of other showers. The floor is what true events give, its ± what chance does "
        "to a single comparison. An AUC of 0.5 and a distance of 0 are ideal, and the floor is the best that can be reached. "
        "A number that is absent says why when the pointer rests on it."
    )
    yield _headline_table(evaluation)
    captions = {
        "marginals": "Distributions per event. Bands and bars are statistical; the muons of an event count as one fluctuation.",
        "multiplicity_by_energy": "Multiplicity against the primary's energy, for each mass.",
        "cells": "Mean multiplicity, generated over true, with its standard error.",
        "calibration": "Where the true N falls in the model's own distribution of N for the same primary: flat if calibrated.",
        "lateral_profile": "Density of muons against the distance from the shower axis.",
        "energy_spectrum": "Spectrum of the muons.",
        "energy_radius_map": "Energies and distances together.",
        "bins": "Each figure in bins of the primary's quantities, in standard deviations beyond its floor in that bin.",
        "event_displays": "Bundles in the plane across the axis: true ones, and generated ones of the most similar primary.",
    }
    for name, caption in captions.items():
        if name == "lateral_profile":
            yield "<h2>Hard cases</h2>" + _hard_table(evaluation)
            yield "<h2>Every distance and rate</h2>" + _full_table(evaluation) + "<h2>Figures</h2>"
        if name in images:
            data = base64.b64encode(images[name]).decode()
            text = html.escape(caption)
            yield f"<figure><img alt='{text}' src='data:image/png;base64,{data}'><figcaption>{text}</figcaption></figure>"


def _headline_table(evaluation: Evaluation) -> str:
    rivals = [who for who in evaluation.numbers if who not in (GENERATED, FLOOR)]
    head = ["figure", "generated", "floor", *(f"rival: {rival}" for rival in rivals), "bar", "verdict"]
    rows = []
    for headline in HEADLINES:
        verdict = judge(evaluation, headline)
        cells = [_td(html.escape(headline.title), "name")]
        cells += [_cell(evaluation.numbers[who].get(headline.name)) for who in (GENERATED, FLOOR, *rivals)]
        cells.append(_td(html.escape(describe_bar(headline, evaluation.numbers[FLOOR][headline.name]))))
        rows.append("".join([*cells, _td(verdict, CLASSES.get(verdict, ""))]))
    return _table(head, rows)


def _full_table(evaluation: Evaluation) -> str:
    names = [f"w1_{name}" for name in QUANTITIES] + [*EVENT_TAILS, *MUON_TAILS]
    head = ["figure", *evaluation.numbers]
    rows = [
        "".join(
            [
                _td(html.escape(_title(name)), "name"),
                *(_cell(numbers.get(name)) for numbers in evaluation.numbers.values()),
            ]
        )
        for name in names
    ]
    return _note(
        "Distances are W1/σ (* in the mean of the verdict); the others are ratios of rates to the truth."
    ) + _table(head, rows)


def _hard_table(evaluation: Evaluation) -> str:
    titles = ["rate, ratio", "W1/σ log E", "W1/σ log r", "W1/σ log (N + 1)", "AUC, summaries", "AUC, muons"]
    rows = []
    for case in evaluation.breakdown.hard_cases:
        name = (
            f"{html.escape(case.name)}<br><small>{case.true_events:,} true, {case.generated_events:,} generated</small>"
        )
        for who, numbers in ((GENERATED, case.generated), ("floor", case.floor)):
            first = f"<td class='name' rowspan='2'>{name}</td>" if who == GENERATED else ""
            rows.append(first + _td(who) + "".join(_cell(numbers.get(figure)) for figure in HARD_FIGURES))
    return _note("Of a case of muons, N counts these muons alone, and the events are those that have any.") + _table(
        ["case", "", *titles], rows
    )


def _title(name: str) -> str:
    quantity = name.removeprefix("w1_")
    if quantity in LABELS:
        return f"W1/σ: {LABELS[quantity]}" + (" *" if quantity in SCORED else "")
    return name.replace("_n_above_", " with N above ").replace("_", " ")


def _cell(number: Number | None) -> str:
    if number is None:
        return _td("")
    if isinstance(number, Absent):
        return f"<td class='absent' title='{html.escape(number.reason, quote=True)}'>absent</td>"
    return _td(show(number))


def _td(text: str, kind: str = "") -> str:
    return f"<td class='{kind}'>{text}</td>" if kind else f"<td>{text}</td>"


def _table(head: Sequence[str], rows: Sequence[str]) -> str:
    header = "".join(f"<th>{html.escape(text)}</th>" for text in head)
    return (
        f"<table><thead><tr>{header}</tr></thead><tbody>"
        + "".join(f"<tr>{row}</tr>" for row in rows)
        + "</tbody></table>"
    )


def _note(text: str) -> str:
    return f"<p>{html.escape(text)}</p>"


def _numbers(numbers: dict[str, Number]) -> dict[str, Any]:
    return {name: _number(number) for name, number in numbers.items()}


def _number(number: Number) -> dict[str, Any]:
    if isinstance(number, Absent):
        return {"absent": number.reason}
    if not math.isfinite(number.value):
        return {"absent": "infinite"}
    return {"value": number.value, "error": number.error}


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=100)
    return buffer.getvalue()


STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; color: #222; max-width: 1180px; margin: 2em auto; padding: 0 1em; }
h1 { font-size: 1.5em; } h2 { font-size: 1.2em; margin-top: 2em; border-bottom: 1px solid #ccc; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .1em 1em; } dt { color: #666; } dd { margin: 0; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .92em; }
th, td { padding: .3em .7em; text-align: right; border-bottom: 1px solid #e3e3e3; } th { border-bottom: 2px solid #999; }
th:first-child, td.name { text-align: left; } td.absent { color: #999; text-decoration: underline dotted; cursor: help; }
.good { background: #d9f0d9; } .fair { background: #fdf3cd; } .bad { background: #f8d7d3; }
.warnings { background: #fdf3cd; padding: .7em 2em; }
figure { margin: 1.6em 0; } img { max-width: 100%; } figcaption { color: #555; } small { color: #666; }
"""
