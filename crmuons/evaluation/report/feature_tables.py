"""The section of the further features of the muons in the report of an evaluation."""

import html
from collections.abc import Iterator, Mapping
from itertools import groupby

from crmuons.evaluation.evaluate import Evaluation
from crmuons.evaluation.metrics.distances import Estimate, Missing, Number
from crmuons.evaluation.metrics.profiles import ProfileBin
from crmuons.evaluation.reference import GENERATED, NULL
from crmuons.evaluation.report import parts
from crmuons.evaluation.report.criteria import show
from crmuons.evaluation.report.parts import table, td

CAPTIONS = {
    "muon_features": (
        "Further numbers of the muons, and below each one its ratio, generated / true. Good: the points of the ratio lie "
        "at 1 within their error bars and the grey band. A direction is shown as its parts along the radius, away from "
        "the axis, and across it. One muon in 10,000 on each side lies outside and is counted in the outermost bin. Axes "
        "of signed numbers are linear near 0 and logarithmic beyond."
    )
}
VERDICTS = {"within 5 %": "good", "undecided": "fair", "beyond 5 %": "bad"}
READING = """This table shows whether the numbers of a muon depend on its distance from the axis and on its energy as
they do in the truth. It lists means in bins. The deviation is generated / true − 1. For numbers of both signs, whose
mean may be zero, it is the difference divided by the true standard deviation (marked σ). The floor is truth against
truth. Bins of fewer than 100 showers are left out. <em>Undecided</em> means beyond 5 % by less than two standard errors."""


def section(evaluation: Evaluation, images: Mapping[str, bytes], distances: str) -> str:
    """Return the section; empty without further features. `distances` is the table of their W1."""
    if not evaluation.further:
        return ""
    heading = "<h2>Further numbers of the muons</h2>" + parts.figures(images, CAPTIONS, "muon_features")
    head = ["mean of the muons", "true", "generated", "deviation", "floor", "verdict"]
    return heading + distances + f"<p>{READING}</p>" + table(head, list(_rows(evaluation)))


def _rows(evaluation: Evaluation) -> Iterator[str]:
    both = zip(evaluation.profiles[GENERATED], evaluation.profiles[NULL], strict=True)
    pairs = [pair for pair in both if isinstance(pair[0].true, Estimate)]
    for (quantity, axis), rows in groupby(pairs, key=lambda pair: (pair[0].quantity, pair[0].axis)):
        yield f"<td class='name' colspan='6'><b>{html.escape(f'{quantity} against {axis}')}</b></td>"
        yield from (_row(made, floor) for made, floor in rows)


def _row(made: ProfileBin, floor: ProfileBin) -> str:
    numbers = (made.true, made.other, made.deviation, floor.deviation)
    units = ("", "", *(("",) * 2 if made.relative else (" σ",) * 2))
    cells = [_cell(number, unit) for number, unit in zip(numbers, units, strict=True)]
    return td(html.escape(made.interval), "name") + "".join(cells) + td(made.verdict, VERDICTS.get(made.verdict, ""))


def _cell(number: Number, unit: str) -> str:
    if isinstance(number, Missing):
        return f"<td class='absent' title='{html.escape(number.reason, quote=True)}'>absent</td>"
    return td(show(number) + unit)
