"""The interface of a tracker, without MLflow, so that ranks and runs without tracking need not load it."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol

import numpy as np
from jaxtyping import Float32

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Status = Literal["FINISHED", "FAILED", "KILLED"]
SCORE = "validation/score"  # The metric by which runs are compared.


class AnyTracker(Protocol):
    """Interface of `Tracker`, which logs a run to MLflow, and of `NullTracker`, which does nothing."""

    @property
    def run_id(self) -> str | None: ...
    @property
    def unsent(self) -> int: ...
    def metrics(self, values: Mapping[str, float], step: int) -> None: ...
    def figure(self, figure: "Figure", name: str, step: int | None = None) -> None: ...
    def artifact(self, path: Path, folder: str = "") -> None: ...
    def model(self, directory: Path, primaries: Float32[np.ndarray, "primaries 4"]) -> None: ...
    def tags(self, values: Mapping[str, str]) -> None: ...
    def finish(self, status: Status) -> None: ...


class NullTracker:
    """The tracker of a run without tracking."""

    run_id: str | None = None
    unsent = 0

    def metrics(self, values: Mapping[str, float], step: int) -> None:
        """Do nothing."""

    def figure(self, figure: "Figure", name: str, step: int | None = None) -> None:
        """Do nothing."""

    def artifact(self, path: Path, folder: str = "") -> None:
        """Do nothing."""

    def model(self, directory: Path, primaries: Float32[np.ndarray, "primaries 4"]) -> None:
        """Do nothing."""

    def tags(self, values: Mapping[str, str]) -> None:
        """Do nothing."""

    def finish(self, status: Status) -> None:
        """Do nothing."""
