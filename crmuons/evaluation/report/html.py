"""An evaluation as one HTML page, figures inside, for readers who see crmuons for the first time."""

import base64
import html
from collections.abc import Iterator, Sequence

from crmuons.evaluation.breakdown import Bin
from crmuons.evaluation.comparison import AREAS, Numbers
from crmuons.evaluation.evaluate import Evaluation
from crmuons.evaluation.metrics.distances import QUANTITIES, SCORED, Missing, Number
from crmuons.evaluation.metrics.quantities import LABELS
from crmuons.evaluation.metrics.ratios import EVENT_TAILS, MUON_TAILS
from crmuons.evaluation.reference import FLOOR, GENERATED
from crmuons.evaluation.report.criteria import AT_FLOOR, HEADLINES, MISSED, PASS, UNDECIDED, describe_bar, judge, show

CLASSES = {AT_FLOOR: "good", PASS: "good", UNDECIDED: "fair", MISSED: "bad"}
DISTANCES = tuple(f"w1_{name}" for name in QUANTITIES)
RATES = ("mean_muons_ratio", "log_multiplicity_variance_ratio", "empty_share_difference", *EVENT_TAILS, *MUON_TAILS)
IN_BINS = ("score", *DISTANCES, *RATES, "sliced_w1", "fpd", "kpd", *AREAS, "pit")
HARD_FIGURES = {
    "rate": "rate, ratio",
    "w1_log_energy": "W1/σ log E",
    "w1_log_radius": "W1/σ log r",
    "w1_log_num_muons": "W1/σ log (N + 1)",
    "auc_bundles": "AUC, summaries",
    "auc_multiplicity": "AUC, N",
    "auc_muons": "AUC, muons",
}
TITLES = {headline.name: headline.title for headline in HEADLINES} | {"score": "mean W1/σ over the ten marked *"}

INTRODUCTION = """An air shower of a cosmic ray brings a <em>bundle</em> of muons down to a neutrino telescope. A generator draws such
bundles in place of the full simulation: for a <em>primary</em> (energy, zenith angle, mass of the nucleus, slant depth of the detector) the
number N of muons, and of each its energy E and its distance r from the shower's axis. This page holds generated bundles against simulated
ones that no training has seen, which are called true."""
READING = """Every figure compares with one half of the true events. The <b>floor</b> is what the other half of the true events gives, whose
showers are other ones: the best that any generator can reach, and its ± is what chance does to a single comparison. The <b>rivals</b> are
cheap generators that a trained one has to beat: <em>nearest primary</em> copies the training event whose primary is nearest,
<em>parametric</em> draws from formulas fitted to the training events, every muon by itself. An <b>AUC</b> is how often a trained classifier
finds the stranger of a pair: 0.5 is ideal. <b>W1/σ</b> is the area between two distribution functions in standard deviations of the truth:
two normal distributions that are shifted by 0.1 σ give 0.1."""
CAPTIONS = {
    "marginals": "Distributions per event, with their ratio to the truth. Bands and bars are statistical errors; the muons of an event count as one "
    "fluctuation.",
    "multiplicity_by_energy": "Multiplicity against the primary's energy, for each mass: median and the central 68 % of the events.",
    "cells": "Mean multiplicity, generated over true, with its standard error.",
    "calibration": "Where the true N falls in the model's own distribution of N for the same primary (PIT): flat if that distribution is right.",
    "calibration_cells": "How far the PIT is from flat in every cell of (energy, mass, cos zenith, depth), times the root of the number of showers: "
    "0.9 on average where the model is right, beyond 1.6 in one of a hundred cells.",
    "lateral_profile": "Density of muons against the distance from the shower axis.",
    "energy_spectrum": "Spectrum of the muons.",
    "energy_radius_map": "Energies and distances together: true, generated, and their difference.",
    "bins": "Each figure in bins of the primary's quantities: standard deviations beyond its floor in that bin. Two or less is chance.",
    "event_displays": "Bundles in the plane across the axis: true ones, and generated ones of the most similar primary.",
}


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
    yield f"<p>{INTRODUCTION}</p>" + _about(evaluation)
    if evaluation.warnings:
        yield (
            "<ul class='warnings'>" + "".join(f"<li>{html.escape(each)}</li>" for each in evaluation.warnings) + "</ul>"
        )
    yield f"<h2>Verdict</h2><p>{READING}</p>" + _headline_table(evaluation)
    yield "<h2>At a glance</h2>" + _figures(images, "marginals", "multiplicity_by_energy", "cells")
    if evaluation.calibration is not None:
        yield "<h2>Is the distribution of N right?</h2>" + _figures(images, "calibration", "calibration_cells")
    yield "<h2>Where in the primary's quantities</h2>" + _figures(images, "bins") + _bin_tables(evaluation)
    yield "<h2>Hard cases</h2>" + _hard_table(evaluation)
    yield "<h2>Every distance and rate</h2>" + _full_table(evaluation)
    yield "<h2>Muons</h2>" + _figures(images, "lateral_profile", "energy_spectrum", "energy_radius_map")
    yield "<h2>Bundles side by side</h2>" + _figures(images, "event_displays")


def _about(evaluation: Evaluation) -> str:
    entries = (
        f"<dt>{html.escape(key.replace('_', ' '))}</dt><dd>{html.escape(f'{value:,}' if isinstance(value, int) else str(value))}</dd>"
        for key, value in evaluation.about.items()
    )
    return f"<dl>{''.join(entries)}</dl>"


def _figures(images: dict[str, bytes], *names: str) -> str:
    return "".join(
        f"<figure><img alt='{html.escape(CAPTIONS[name])}' src='data:image/png;base64,{base64.b64encode(images[name]).decode()}'>"
        f"<figcaption>{html.escape(CAPTIONS[name])}</figcaption></figure>"
        for name in names
    )


def _headline_table(evaluation: Evaluation) -> str:
    rivals = _rivals(evaluation)
    head = ["figure", "generated", "floor", *(f"rival: {rival}" for rival in rivals), "bar", "verdict"]
    rows = []
    for headline in HEADLINES:
        verdict = judge(evaluation, headline)
        cells = [_td(html.escape(headline.title), "name")]
        cells += [_cell(evaluation.numbers[who].get(headline.name)) for who in (GENERATED, FLOOR, *rivals)]
        cells.append(_td(html.escape(describe_bar(headline, evaluation.numbers[FLOOR][headline.name]))))
        rows.append("".join([*cells, _td(verdict, CLASSES.get(verdict, ""))]))
    names = [headline.name for headline in HEADLINES]
    return _table(head, rows) + _reasons({name: evaluation.numbers[GENERATED].get(name) for name in names})


def _full_table(evaluation: Evaluation) -> str:
    names = [*DISTANCES, *RATES[3:]]
    note = "Distances are W1/σ (* in the mean of the verdict); the others are ratios of how often something occurs to the truth."
    reasons = _reasons({name: evaluation.numbers[GENERATED].get(name) for name in names})
    return f"<p>{note}</p>" + _contender_table(evaluation.numbers, names) + reasons


def _contender_table(numbers: dict[str, Numbers], names: Sequence[str]) -> str:
    contenders = [GENERATED, FLOOR, *(who for who in numbers if who not in {GENERATED, FLOOR})]
    head = ["figure", *("floor" if who == FLOOR else who for who in contenders)]
    rows = [
        _td(html.escape(_title(name)), "name") + "".join(_cell(numbers[who].get(name)) for who in contenders)
        for name in names
    ]
    return _table(head, rows)


def _bin_tables(evaluation: Evaluation) -> str:
    return "".join(_bin_table(part) for part in evaluation.breakdown.bins)


def _bin_table(part: Bin) -> str:
    title = html.escape(f"{part.region.quantity} {part.region.label}: {part.events:,} true events")
    return f"<details><summary>{title}</summary>{_contender_table(part.numbers, IN_BINS)}</details>"


def _hard_table(evaluation: Evaluation) -> str:
    rivals = _rivals(evaluation)
    rows = []
    for case in evaluation.breakdown.hard_cases:
        name = f"{html.escape(case.name)}<br><small>{case.true_events:,} true, {case.events[GENERATED]:,} generated</small>"
        for who in (GENERATED, FLOOR, *rivals):
            first = f"<td class='name' rowspan='{2 + len(rivals)}'>{name}</td>" if who == GENERATED else ""
            figures = "".join(_cell(case.numbers[who].get(figure)) for figure in HARD_FIGURES)
            rows.append(first + _td("floor" if who == FLOOR else who) + figures)
    note = "Events, or muons, that are rare or at the edge. Of a case of muons, N counts these muons alone, and the events are those that have any."
    return f"<p>{note}</p>" + _table(["case", "", *HARD_FIGURES.values()], rows)


def _rivals(evaluation: Evaluation) -> list[str]:
    return [who for who in evaluation.numbers if who not in {GENERATED, FLOOR}]


def _title(name: str) -> str:
    if name in TITLES:
        return TITLES[name]
    quantity = name.removeprefix("w1_")
    if quantity in LABELS:
        return f"W1/σ: {LABELS[quantity]}" + (" *" if quantity in SCORED else "")
    return name.replace("_n_above_", " with N above ").replace("_", " ")


def _reasons(numbers: dict[str, Number | None]) -> str:
    """Why numbers are absent, in words: a page on paper has no pointer to rest."""
    reasons = {name: number.reason for name, number in numbers.items() if isinstance(number, Missing)}
    if not reasons:
        return ""
    lines = "".join(f"<li>{html.escape(_title(name))}: {html.escape(reason)}</li>" for name, reason in reasons.items())
    return f"<p>Absent, and why:</p><ul class='absent'>{lines}</ul>"


def _cell(number: Number | None) -> str:
    if number is None:
        return _td("")
    if isinstance(number, Missing):
        return f"<td class='absent' title='{html.escape(number.reason, quote=True)}'>absent</td>"
    return _td(show(number))


def _td(text: str, kind: str = "") -> str:
    return f"<td class='{kind}'>{text}</td>" if kind else f"<td>{text}</td>"


def _table(head: Sequence[str], rows: Sequence[str]) -> str:
    header = "".join(f"<th>{html.escape(text)}</th>" for text in head)
    body = "".join(f"<tr>{row}</tr>" for row in rows)
    return f"<div class='wide'><table><thead><tr>{header}</tr></thead><tbody>{body}</tbody></table></div>"


STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; color: #222; max-width: 1180px; margin: 2em auto; padding: 0 1em; }
h1 { font-size: 1.5em; overflow-wrap: anywhere; } h2 { font-size: 1.2em; margin-top: 2em; border-bottom: 1px solid #ccc; }
p { max-width: 60em; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .1em 1em; } dt { color: #666; } dd { margin: 0; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .92em; }
th, td { padding: .3em .7em; text-align: right; border-bottom: 1px solid #e3e3e3; white-space: nowrap; }
th { border-bottom: 2px solid #999; }
th:first-child, td.name { text-align: left; white-space: normal; } td.name { min-width: 13em; }
td.absent { color: #999; text-decoration: underline dotted; cursor: help; } ul.absent { color: #666; font-size: .92em; }
.good { background: #d9f0d9; } .fair { background: #fdf3cd; } .bad { background: #f8d7d3; }
.warnings { background: #fdf3cd; padding: .7em 2em; }
summary { cursor: pointer; padding: .2em 0; } details[open] { margin-bottom: 1em; }
figure { margin: 1.6em 0; } img { max-width: 100%; } figcaption { color: #555; max-width: 60em; } small { color: #666; }
"""
