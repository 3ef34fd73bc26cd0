"""Acceptance criteria: the headline figures, their bars, and the verdicts."""

import math
from dataclasses import dataclass

from crmuons.evaluation.evaluate import Evaluation
from crmuons.evaluation.metrics.distances import Missing, Number
from crmuons.evaluation.reference import GENERATED, NULL

AT_FLOOR, PASS, UNDECIDED, MISSED, NOT_APPLICABLE = "at the floor", "meets the bar", "undecided", "misses the bar", "—"
CERTAIN = 2.0  # A bar is missed if the figure is more than this many standard errors above it.


@dataclass(frozen=True)
class Headline:
    """A figure of the first table.

    Attributes:
        name: name of the figure.
        title: title for people.
        max_value: the bar as an absolute value; None if it is relative to the floor, or there is none.
        max_excess: the bar as an excess over the floor; None if it is absolute, or there is none.
        floor_tolerance: the largest excess over the floor that counts as "at the floor"; None if there is no bar.
    """

    name: str
    title: str
    max_value: float | None = None
    max_excess: float | None = None
    floor_tolerance: float | None = None


# W1/sigma falls with the number of events, so its bar is relative to the floor: 0.0268 if the floor is 0.0183.
HEADLINES = (
    Headline("auc_bundles", "AUC, boosting on bundle summaries + primary + N", max_value=0.54, floor_tolerance=0.01),
    Headline("auc_muons", "AUC, set classifier on the muons + primary + N", max_value=0.58, floor_tolerance=0.02),
    Headline("auc_multiplicity", "AUC, boosting on primary + N alone", max_value=0.51, floor_tolerance=0.005),
    Headline("score", "mean W1/σ over ten quantities", max_excess=0.0085, floor_tolerance=0.0025),
    Headline("worst_cell", "worst cell: |ratio of mean N − 1| minus its error", max_value=0.05, floor_tolerance=0.02),
    Headline("pit", "distance of the PIT of N from uniform"),
    Headline("pit_worst_cell", "worst cell: √n × distance of the PIT of N from uniform"),
    Headline("mean_muons_ratio", "mean N, generated / true"),
    Headline("log_multiplicity_variance_ratio", "variance of log10(N + 1), generated / true"),
    Headline("empty_share_difference", "P(N = 0), generated − true"),
    Headline("sliced_w1", "sliced W1 of bundle and primary"),
    Headline("fpd", "FPD of bundle and primary"),
    Headline("kpd", "KPD of bundle and primary"),
    Headline("nearer_to_training", "share of bundles nearer to training than to held-out ones"),
)


def judge(evaluation: Evaluation, headline: Headline) -> str:
    """Return the verdict on a figure.

    It is AT_FLOOR, PASS, MISSED, UNDECIDED (above the bar by less than CERTAIN errors), or NOT_APPLICABLE (no bar, or a
    number is missing).
    """
    number, null = (evaluation.numbers[sample][headline.name] for sample in (GENERATED, NULL))
    if isinstance(number, Missing) or isinstance(null, Missing) or headline.floor_tolerance is None:
        return NOT_APPLICABLE
    # By chance, a perfect generator may lie one standard deviation above the floor.
    if number.value <= null.value + max(headline.floor_tolerance, null.error or 0):
        return AT_FLOOR
    bar = headline.max_value if headline.max_value is not None else null.value + (headline.max_excess or 0)
    if number.value <= bar:
        return PASS
    error = math.hypot(number.error or 0, null.error or 0)
    return UNDECIDED if number.value <= bar + CERTAIN * error else MISSED


def describe_bar(headline: Headline, null: Number) -> str:
    """Return the bar as text; empty if there is none."""
    if headline.max_value is not None:
        return f"≤ {headline.max_value:g}"
    if headline.max_excess is None or isinstance(null, Missing):
        return ""
    return f"≤ {null.value + headline.max_excess:.4f} (floor + {headline.max_excess:g})"


def show(number: Number) -> str:
    """Return a number as text, with two digits of its error, or with four decimals if it has no error."""
    if isinstance(number, Missing):
        return "absent"
    if not number.error or not math.isfinite(number.value):
        return f"{number.value:.4f}" if abs(number.value) >= 1e-3 else f"{number.value:.2g}"
    decimals = max(0, 1 - math.floor(math.log10(number.error)))
    if decimals > 6:
        return f"{number.value:.2g} ± {number.error:.1g}"
    return f"{number.value:.{decimals}f} ± {number.error:.{decimals}f}"
