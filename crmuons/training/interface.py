"""The interface between the training loop and the services around it."""

from pathlib import Path
from typing import Literal, Protocol

from crmuons.models.bundle_model import BundleModel

Metrics = dict[str, float]
Outcome = Literal["finished", "interrupted"]


class LoopServices(Protocol):
    """The methods that the loop calls. `services.py` implements them."""

    def report(self, values: Metrics, step: int, saved: Path | None) -> None:
        """Receive metrics of a step, and the checkpoint if one was saved. All ranks call it at the same steps."""

    def validate(self, model: BundleModel, step: int) -> Metrics:
        """Return the metrics of a model on held-out events, among them "score"; called on rank 0."""

    def should_stop(self) -> bool:
        """Return whether the run was asked to stop, as far as this rank sees."""

    def model_metadata(self, step: int) -> dict[str, object]:
        """Return the content of model.json for a step; called on rank 0."""

    def on_step(self, step: int) -> None:
        """Take note that `step` steps are done; called before the first step and after each step."""
