"""The headline figures, the bars that they have to reach, and whether they do."""

import math
from dataclasses import dataclass

from crmuons.evaluation.evaluate import Evaluation
from crmuons.evaluation.metrics.distances import Missing, Number
from crmuons.evaluation.reference import FLOOR, GENERATED

AT_FLOOR, PASS, UNDECIDED, MISSED, NOT_APPLICABLE = "at the floor", "meets the bar", "undecided", "misses the bar", "—"
CERTAIN = 2.0  # Standard errors beyond the bar from which on it is missed.


@dataclass(frozen=True)
class Headline:
    """A figure of the first table.

    Attributes:
        name: of the figure.
        title: what it is called for people.
        limit: it meets the bar up to this value; None if the bar is set beyond the floor.
        beyond: it meets the bar up to this much beyond the floor; None if the bar is an absolute one, or there is none.
        aim: it is at the floor up to this much beyond it.
    """

    name: str
    title: str
    limit: float | None = None
    beyond: float | None = None
    aim: float | None = None


# W1/sigma falls with the number of events, so its bar is set beyond the floor: 0.022 where the floor is 0.0135.
HEADLINES = (
    Headline("auc_bundles", "AUC, boosting on bundle summaries + primary + N", limit=0.54, aim=0.01),
    Headline("auc_muons", "AUC, set classifier on the muons + primary + N", limit=0.58, aim=0.02),
    Headline("auc_multiplicity", "AUC, boosting on primary + N alone", limit=0.51, aim=0.005),
    Headline("score", "mean W1/σ over ten quantities", beyond=0.0085, aim=0.0025),
    Headline("worst_cell", "worst |mean N ratio − 1| of a cell, beyond its error", limit=0.05, aim=0.02),
    Headline("pit", "multiplicity: distance of the PIT from uniform"),
    Headline(
        "pit_worst_cell", "multiplicity: the same in the worst cell of (log E, mass, cos zenith, depth), times √n"
    ),
    Headline("mean_muons_ratio", "mean N, ratio to the truth"),
    Headline("log_multiplicity_variance_ratio", "variance of log10(N + 1), ratio to the truth"),
    Headline("empty_share_difference", "P(N = 0), difference from the truth"),
    Headline("sliced_w1", "sliced W1 of the joint features"),
    Headline("fpd", "FPD of the joint features"),
    Headline("kpd", "KPD of the joint features"),
)


def judge(evaluation: Evaluation, headline: Headline) -> str:
    """AT_FLOOR, PASS, MISSED, UNDECIDED (beyond the bar, but by less than chance may do), or NOT_APPLICABLE (no bar, or no number)."""
    number, floor = (evaluation.numbers[who][headline.name] for who in (GENERATED, FLOOR))
    if isinstance(number, Missing) or isinstance(floor, Missing) or headline.aim is None:
        return NOT_APPLICABLE
    # Chance alone takes a perfect generator beyond the floor by a standard deviation now and then.
    if number.value <= floor.value + max(headline.aim, floor.error or 0):
        return AT_FLOOR
    limit = headline.limit if headline.limit is not None else floor.value + (headline.beyond or 0)
    if number.value <= limit:
        return PASS
    error = math.hypot(number.error or 0, floor.error or 0)
    return UNDECIDED if number.value <= limit + CERTAIN * error else MISSED


def describe_bar(headline: Headline, floor: Number) -> str:
    """The bar in words."""
    if headline.limit is not None:
        return f"≤ {headline.limit:g}"
    if headline.beyond is None or isinstance(floor, Missing):
        return ""
    return f"≤ {floor.value + headline.beyond:.4f} (floor + {headline.beyond:g})"


def show(number: Number) -> str:
    """A number with as many digits as its error warrants (two of the error's); four decimals where it has none."""
    if isinstance(number, Missing):
        return "absent"
    if not number.error or not math.isfinite(number.value):
        return f"{number.value:.4f}" if abs(number.value) >= 1e-3 else f"{number.value:.2g}"
    decimals = max(0, 1 - math.floor(math.log10(number.error)))
    if decimals > 6:
        return f"{number.value:.2g} ± {number.error:.1g}"
    return f"{number.value:.{decimals}f} ± {number.error:.{decimals}f}"
