"""A row of the comparison: a figure of the data, its reference, and the verdict."""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

AGREES, HIGH, LOW, OUTSIDE, SHOWN = "agrees", "high", "low", "outside what this data covers", "not judged"
CERTAIN = 2.0  # A figure is high or low if it differs by more than this number of combined standard errors.
LEAST_COVERED = 0.95  # Smallest share of nature's muons whose primaries the data must hold.
MOST_ERROR = 0.25  # With a larger relative statistical error, a row has no verdict.
UNKNOWN = 0.03  # A row has a warning if a larger share of its muons is from primaries that a model was not trained on.


@dataclass(frozen=True)
class Reference:
    """A published value.

    Attributes:
        value: the reference.
        error: its standard error.
        source: who published it.
        judged: whether a difference means something; false for a reference in another medium, for example.
    """

    value: float
    error: float
    source: str
    judged: bool = True


@dataclass(frozen=True)
class Row:
    """A figure of the data and its reference.

    Attributes:
        quantity: what is compared; a section of the report.
        label: where, such as a depth or an angle.
        position: the place as a number, for the figures.
        value, error: value of the data and its statistical error; None if the data have none.
        reference, reference_error: published value and its error.
        source: source of the reference.
        verdict: AGREES, HIGH, LOW, OUTSIDE or SHOWN.
        note: the reason for OUTSIDE, or a warning.
    """

    quantity: str
    label: str
    position: float
    value: float | None
    error: float | None
    reference: float
    reference_error: float
    source: str
    verdict: str
    note: str = ""

    @property
    def ratio(self) -> float | None:
        """Return the figure over the reference."""
        return None if self.value is None else self.value / self.reference

    @property
    def ratio_error(self) -> float | None:
        """Return the statistical error of the ratio."""
        return None if self.error is None else self.error / self.reference

    def to_json(self) -> dict[str, Any]:
        """Return the row for JSON."""
        return asdict(self) | {"ratio": self.ratio}


def make_row(
    where: tuple[str, str, float],
    measured: tuple[float, float] | None,
    reference: Reference,
    *,
    covered: float = 1.0,
    unknown: float = 0.0,
    lacking: str = "",
) -> Row:
    """Return a row with its verdict.

    Args:
        where: quantity, label and position.
        measured: value and statistical error; None if there are no events.
        reference: the published value.
        covered: share of the muons in nature whose primaries the data hold.
        unknown: share of the muons from primaries that the model was not trained on.
        lacking: reason why the data cannot be compared here. It replaces all other reasons.
    """
    value, error = measured or (None, None)
    notes = [f"{unknown:.0%} of it is from primaries that the model was not trained on"] if unknown > UNKNOWN else []
    if lacking:
        verdict, notes = OUTSIDE, [lacking]
    elif value is None or error is None:
        verdict, notes = OUTSIDE, ["no events there"]
    elif covered < LEAST_COVERED:
        verdict = OUTSIDE
        notes.insert(0, f"the data's primaries and muons make {covered:.0%} of it")
    elif error > MOST_ERROR * abs(value) or value == 0:
        verdict = OUTSIDE
        notes.insert(0, "too few events" if value == 0 else f"too few events: the error is {error / value:.0%}")
    else:
        verdict = _judge(value, error, reference)
    return Row(*where, value, error, reference.value, reference.error, reference.source, verdict, "; ".join(notes))


def _judge(value: float, error: float, reference: Reference) -> str:
    if not reference.judged:
        return SHOWN
    excess = (value - reference.value) / np.hypot(error, reference.error)
    if abs(excess) <= CERTAIN:
        return AGREES
    return HIGH if excess > 0 else LOW
