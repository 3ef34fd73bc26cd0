"""What a training asks of a tracker, without MLflow: ranks that track nothing, and runs without tracking, do not import it."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol

import numpy as np
from jaxtyping import Float32

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Status = Literal["FINISHED", "FAILED", "KILLED"]


class AnyTracker(Protocol):
    """What a run says of itself: a `Tracker` sends it to MLflow, a `NullTracker` nowhere."""

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
    """The tracker of a run that is not tracked."""

    run_id: str | None = None
    unsent = 0

    def metrics(self, values: Mapping[str, float], step: int) -> None:
        """Nothing."""

    def figure(self, figure: "Figure", name: str, step: int | None = None) -> None:
        """Nothing."""

    def artifact(self, path: Path, folder: str = "") -> None:
        """Nothing."""

    def model(self, directory: Path, primaries: Float32[np.ndarray, "primaries 4"]) -> None:
        """Nothing."""

    def tags(self, values: Mapping[str, str]) -> None:
        """Nothing."""

    def finish(self, status: Status) -> None:
        """Nothing."""
