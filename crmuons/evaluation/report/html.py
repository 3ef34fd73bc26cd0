"""Write an evaluation as one HTML page with its figures inside, for readers who do not know crmuons."""

import html
from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType

from crmuons.evaluation.breakdown import Bin
from crmuons.evaluation.comparison import AREAS, Numbers
from crmuons.evaluation.evaluate import Evaluation
from crmuons.evaluation.metrics.distances import QUANTITIES, SCORED, Missing, Number, figure_name
from crmuons.evaluation.metrics.further import columns
from crmuons.evaluation.metrics.quantities import EXTRA, LABELS
from crmuons.evaluation.metrics.ratios import EVENT_TAILS, MUON_TAILS
from crmuons.evaluation.reference import GENERATED, NULL
from crmuons.evaluation.report import cell_tables, feature_tables, member_figures, parts
from crmuons.evaluation.report.criteria import AT_FLOOR, HEADLINES, MISSED, PASS, UNDECIDED, describe_bar, judge, show
from crmuons.evaluation.report.parts import table, td

CLASSES = {AT_FLOOR: "good", PASS: "good", UNDECIDED: "fair", MISSED: "bad"}
DISTANCES = tuple(f"w1_{name}" for name in QUANTITIES)
RATES = ("mean_muons_ratio", "log_multiplicity_variance_ratio", "empty_share_difference", *EVENT_TAILS, *MUON_TAILS)
IN_BINS = ("score", *DISTANCES, *RATES, "sliced_w1", "fpd", "kpd", *AREAS, "pit")
HARD_FIGURES = {
    "rate": "rate / true rate",
    "w1_log_energy": "W1/σ log E",
    "w1_log_radius": "W1/σ log r",
    "w1_log_num_muons": "W1/σ log (N + 1)",
    "auc_bundles": "AUC, bundle summaries",
    "auc_multiplicity": "AUC, N",
    "auc_muons": "AUC, muons",
}
TITLES = {headline.name: headline.title for headline in HEADLINES} | {
    "score": "mean W1/σ of the ten quantities marked *"
}

INTRODUCTION = """When a cosmic ray hits the atmosphere, the air shower sends a <em>bundle</em> of muons down to a
neutrino telescope. A generator draws such bundles faster than the full simulation. Its input is the <em>primary</em>:
energy, zenith angle, mass of the nucleus, and slant depth of the detector. Its output is the number N of muons, and
for each muon its energy E and its distance r from the shower axis. This page compares generated bundles with
simulated bundles, which it calls <em>true</em>. By default they come from the test split, which no training uses."""
READING = """The true events are split into two halves that share no shower. Every figure compares a sample with the
first half:</p>
<ul><li><b>generated</b>: the generated events.</li>
<li><b>floor</b>: the second half of the true events. This is truth against truth, and a perfect generator reaches it.
Its ± is the standard deviation of a single comparison by chance alone.</li>
<li><b>baselines</b>: two cheap generators that a trained one must beat. <em>Nearest primary</em> copies the training
event with the most similar primary. <em>Parametric</em> draws every muon independently from formulas that were fitted
to the training events.</li></ul>
<p>Some figures need an explanation:</p>
<ul><li><b>AUC</b>: take one true and one generated event at random. The AUC is the probability that a trained
classifier gives the generated event the higher score. 0.5 is ideal, because the classifier then sees no difference; 1
is the worst.</li>
<li><b>W1/σ</b>: the area between two cumulative distributions, in standard deviations σ of the truth. A shift by 0.1
σ gives 0.1. It is never exactly 0 for finite samples, so compare it with the floor.</li>
<li><b>PIT</b>: it tests whether the model's distribution of N is right, see "Calibration of the number of muons". Its
distance from uniform is 0 at best.</li>
<li><b>worst cell</b>: the largest value among cells of mass and energy; for the PIT, cells of cos zenith and depth too.
</li>
<li><b>sliced W1, FPD, KPD</b>: distances of the joint distribution of bundle quantities and primary. 0 is ideal;
compare them with the floor.</li></ul>
<p>The <b>bar</b> is the largest acceptable value. The <b>verdict</b> compares the generated events with it. <em>At the
floor</em> means as good as truth against truth. <em>Undecided</em> means above the bar by less than two standard
errors."""
CAPTIONS = {
    "marginals": (
        "Four distributions per event, and below each one its ratio, generated / true. Good: the points of the ratio "
        "lie at 1 within their error bars and the grey band. Bars and bands are statistical errors. The muons of an "
        "event are not independent, so they count as one fluctuation."
    ),
    "multiplicity_by_energy": (
        "Number of muons N against the energy of the primary, one panel for each mass. Lines: median. Bands: central "
        "68 % of the events. Good: the two lines and the two bands coincide."
    ),
    "cells": (
        "Mean N of generated events divided by the mean N of true events, with its standard error, in cells of mass "
        "and energy. Good: 1 within the errors."
    ),
    "calibration": (
        "Histogram of the PIT (probability integral transform): the position of the true N in the model's own "
        "distribution of N for the same primary, from 0 (lowest) to 1 (highest). Good: flat at 1 within the grey "
        "band. A slope means that the model's N is too large or too small; a U shape means that its distribution is "
        "too narrow, and a hump that it is too wide."
    ),
    "calibration_cells": (
        "Distance of the PIT from a flat distribution in cells of energy, mass, cos zenith and depth, multiplied by "
        "the square root of the number of showers. Good: about 0.9 on average. Chance alone takes one cell in a "
        "hundred above 1.6."
    ),
    "lateral_profile": (
        "Density of muons against the distance from the shower axis, and below it the ratio, generated / true. Good: "
        "the ratio is 1 within the errors."
    ),
    "energy_spectrum": (
        "Energy spectrum of the muons, and below it the ratio, generated / true. Good: the ratio is 1 within the "
        "errors."
    ),
    "energy_radius_map": (
        "Muons in the plane of energy and distance from the axis: true, generated, and their difference in standard "
        "errors. Good: the first two look alike, and the third is pale and has no pattern. The muons of a bundle are "
        "correlated, so a few strong colours are expected."
    ),
    "bins": (
        "Each figure in bins of the primary's energy, mass, cos zenith and depth. The number is how many standard "
        "deviations the generated events lie above the floor of the same bin. Good: 2 or less, which chance explains."
    ),
    "event_displays": (
        "True bundles (left), each beside the generated bundle with the most similar primary (right), in the plane "
        "across the shower axis. Each point is a muon; colour and size show its energy. Good: the same kind of "
        "pattern. The muons themselves differ, as they do in any two showers."
    ),
}


def page(evaluation: Evaluation, images: dict[str, bytes]) -> str:
    """Return the report as one HTML page with its figures inside."""
    body = "\n".join(_sections(evaluation, images))
    return parts.document(f"Evaluation: {evaluation.about.get('candidate', 'generated events')}", body)


def _sections(evaluation: Evaluation, images: dict[str, bytes]) -> Iterator[str]:
    yield f"<p>{INTRODUCTION}</p>" + parts.definitions(evaluation.about) + parts.warning_list(evaluation.warnings)
    yield f"<h2>Verdict</h2><p>{READING}</p>" + _headline_table(evaluation)
    yield "<h2>Overview</h2>" + parts.figures(images, CAPTIONS, "marginals", "multiplicity_by_energy", "cells")
    if evaluation.calibration is not None:
        yield "<h2>Calibration of the number of muons</h2>" + parts.figures(
            images, CAPTIONS, "calibration", "calibration_cells"
        )
    yield member_figures.section(evaluation.members, images)
    yield "<h2>Dependence on the primary</h2>" + parts.figures(images, CAPTIONS, "bins") + _bin_tables(evaluation)
    yield "<h2>Hard cases</h2>" + _hard_table(evaluation)
    yield cell_tables.section(evaluation)
    yield "<h2>All distances and rates</h2>" + _full_table(evaluation)
    yield "<h2>Muons</h2>" + parts.figures(images, CAPTIONS, "lateral_profile", "energy_spectrum", "energy_radius_map")
    yield feature_tables.section(evaluation, images, _further_table(evaluation))
    yield "<h2>Single bundles</h2>" + parts.figures(images, CAPTIONS, "event_displays")


def _headline_table(evaluation: Evaluation) -> str:
    baselines = _baselines(evaluation.numbers)
    head = ["figure", "generated", "floor", *(f"baseline: {name}" for name in baselines), "bar", "verdict"]
    rows = []
    for headline in HEADLINES:
        verdict = judge(evaluation, headline)
        cells = [td(html.escape(headline.title), "name")]
        cells += [_cell(evaluation.numbers[sample].get(headline.name)) for sample in (GENERATED, NULL, *baselines)]
        cells.append(td(html.escape(describe_bar(headline, evaluation.numbers[NULL][headline.name]))))
        rows.append("".join([*cells, td(verdict, CLASSES.get(verdict, ""))]))
    names = [headline.name for headline in HEADLINES]
    return table(head, rows) + _reasons({name: evaluation.numbers[GENERATED].get(name) for name in names})


def _full_table(evaluation: Evaluation) -> str:
    names = [*DISTANCES, *RATES[3:]]
    note = (
        "The rows with W1/σ are distances; the mean in the first table is over the rows marked *. "
        "All other rows are rates divided by the true rate, so 1 is ideal."
    )
    reasons = _reasons({name: evaluation.numbers[GENERATED].get(name) for name in names})
    return f"<p>{note}</p>" + _sample_table(evaluation.numbers, names) + reasons


def _further_table(evaluation: Evaluation) -> str:
    """Return the W1 of the further features, with the reasons for absent numbers."""
    labels = {figure_name(f"{EXTRA}{column.name}"): f"W1/σ: {column.label}" for column in columns(evaluation.further)}
    reasons = _reasons({labels[name]: evaluation.numbers[GENERATED].get(name) for name in labels})
    return _sample_table(evaluation.numbers, list(labels), labels) + reasons


def _sample_table(
    numbers: dict[str, Numbers], names: Sequence[str], titles: Mapping[str, str] = MappingProxyType({})
) -> str:
    samples = [GENERATED, NULL, *_baselines(numbers)]
    head = ["figure", *("floor" if sample == NULL else sample for sample in samples)]
    rows = [
        td(html.escape(titles.get(name) or _title(name)), "name")
        + "".join(_cell(numbers[sample].get(name)) for sample in samples)
        for name in names
    ]
    return table(head, rows)


def _bin_tables(evaluation: Evaluation) -> str:
    return "".join(_bin_table(part) for part in evaluation.breakdown.bins)


def _bin_table(part: Bin) -> str:
    title = html.escape(f"{part.region.quantity} {part.region.label}: {part.events:,} true events")
    return f"<details><summary>{title}</summary>{_sample_table(part.numbers, IN_BINS)}</details>"


def _hard_table(evaluation: Evaluation) -> str:
    samples = [GENERATED, NULL, *_baselines(evaluation.numbers)]
    rows = []
    for case in evaluation.breakdown.hard_cases:
        sizes = f"{case.true_events:,} true, {case.events[GENERATED]:,} generated"
        name = f"{html.escape(case.name)}<br><small>{sizes}</small>"
        for sample in samples:
            first = f"<td class='name' rowspan='{len(samples)}'>{name}</td>" if sample == GENERATED else ""
            figures = "".join(_cell(case.numbers[sample].get(figure)) for figure in HARD_FIGURES)
            rows.append(first + td("floor" if sample == NULL else sample) + figures)
    note = (
        "Events or muons that are rare, or at the edge of the range of primaries. The ideal rate is 1. A case of muons "
        "contains the events that have such muons, and N counts only these muons."
    )
    return f"<p>{note}</p>" + table(["case", "sample", *HARD_FIGURES.values()], rows)


def _baselines(numbers: dict[str, Numbers]) -> list[str]:
    return [sample for sample in numbers if sample not in {GENERATED, NULL}]


def _title(name: str) -> str:
    if name in TITLES:
        return TITLES[name]
    quantity = name.removeprefix("w1_")
    if quantity in LABELS:
        return f"W1/σ: {LABELS[quantity]}" + (" *" if quantity in SCORED else "")
    return name.replace("_n_above_", " with N above ").replace("_", " ")


def _reasons(numbers: dict[str, Number | None]) -> str:
    """Return the reasons why numbers are absent, as a list, because a printed page has no tooltips."""
    reasons = {name: number.reason for name, number in numbers.items() if isinstance(number, Missing)}
    if not reasons:
        return ""
    lines = "".join(f"<li>{html.escape(_title(name))}: {html.escape(reason)}</li>" for name, reason in reasons.items())
    return f"<p>Numbers that are absent, and why:</p><ul class='absent'>{lines}</ul>"


def _cell(number: Number | None) -> str:
    if number is None:
        return td("")
    if isinstance(number, Missing):
        return f"<td class='absent' title='{html.escape(number.reason, quote=True)}'>absent</td>"
    return td(show(number))
