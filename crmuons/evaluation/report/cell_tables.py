"""The report's section on hard cells."""

import html

from crmuons.evaluation.evaluate import Evaluation
from crmuons.evaluation.hard_cells.figures import IN_CELLS
from crmuons.evaluation.hard_cells.judge import CellFigures
from crmuons.evaluation.metrics.distances import Missing
from crmuons.evaluation.reference import GENERATED, NULL
from crmuons.evaluation.report.criteria import show
from crmuons.evaluation.report.parts import table, td

TITLES = {"rate": "rate / true rate", "auc_bundles": "AUC, bundle summaries", "w1": "mean W1/σ"}
NOTE = """All of the truth was searched for these kinds of events. The tables above use only a random part of it. Events
were chosen by their primary alone, and weights undo the choice in every number. The classifier of the AUC was trained
only on events of the cell, so this AUC is higher than the AUC of the hard cases above. The number of effective events
is the number of events of equal weight that would be equally precise."""


def section(evaluation: Evaluation) -> str:
    """Return the section; empty if the hard cells were not asked for."""
    if not evaluation.hard_cells:
        return ""
    head = [
        "cell",
        "true events",
        "generated",
        "effective",
        *(f"{t}, {s}" for t in TITLES.values() for s in ("generated", "floor")),
    ]
    rows = [_row(cell) for cell in evaluation.hard_cells]
    reasons = [f"<li>{html.escape(line)}</li>" for cell in evaluation.hard_cells for line in _reasons(cell)]
    absent = f"<p>Numbers that are absent, and why:</p><ul class='absent'>{''.join(reasons)}</ul>" if reasons else ""
    return f"<h2>Hard cells</h2><p>{NOTE}</p>" + table(head, rows) + absent


def _row(cell: CellFigures) -> str:
    effective = min(cell.effective["true"], cell.effective[GENERATED])
    cells = [td(html.escape(cell.name), "name"), td(f"{cell.events['true']:,}"), td(f"{cell.events[GENERATED]:,}")]
    cells.append(td(f"{effective:,.0f}"))
    for name in IN_CELLS:
        for sample in (GENERATED, NULL):
            number = cell.numbers[sample][name]
            kind = "absent" if isinstance(number, Missing) else ""
            cells.append(td(show(number), kind))
    return "".join(cells)


def _reasons(cell: CellFigures) -> list[str]:
    numbers = {name: cell.numbers[GENERATED][name] for name in IN_CELLS}
    return [f"{cell.name}, {TITLES[name]}: {n.reason}" for name, n in numbers.items() if isinstance(n, Missing)]
