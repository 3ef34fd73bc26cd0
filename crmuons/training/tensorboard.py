"""Write metrics and weights of a run as TensorBoard event files (tracking.tensorboard)."""

import importlib.util
from pathlib import Path

from torch.nn import Module

from crmuons import config
from crmuons.training.loop import Metrics


def check_installed(settings: config.Config) -> None:
    """Check that TensorBoard is installed if the run needs it.

    Raises:
        ValueError: if it is not, naming the package to install.
    """
    if settings.tracking.tensorboard and importlib.util.find_spec("tensorboard") is None:
        msg = (
            "tracking.tensorboard=true needs the package tensorboard, which is not installed: "
            "pip install 'crmuons[tensorboard]'"
        )
        raise ValueError(msg)


class Board:
    """Writes every metric as a scalar, and at each validation the weights of a model as histograms.

    Args:
        directory: directory of the event files; files of earlier attempts stay.
        model: the model.
        step: the step from which the run continues; TensorBoard hides later steps of earlier attempts.
    """

    def __init__(self, directory: Path, model: Module, step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter  # noqa: PLC0415  # an extra

        self.model = model
        self.writer = SummaryWriter(str(directory), purge_step=step + 1 if step else None)

    def __call__(self, values: Metrics, step: int, _saved: Path | None) -> None:
        """Write a report and flush it, so that nothing is lost if the run is killed."""
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)
        if "validation/score" in values:
            for name, weights in self.model.named_parameters():
                self.writer.add_histogram(f"weights/{name}", weights, step)  # device sync
        self.writer.flush()

    def close(self) -> None:
        """Close the event file."""
        self.writer.close()
