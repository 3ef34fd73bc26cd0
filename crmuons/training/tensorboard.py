"""The run's metrics and weights as TensorBoard's event files, for those who have the habit (tracking.tensorboard)."""

import importlib.util
from pathlib import Path

from torch.nn import Module

from crmuons import config
from crmuons.training.loop import Metrics


def check_installed(settings: config.Config) -> None:
    """Refuse a run that is to write event files, before it starts, where they cannot be written.

    Raises:
        ValueError: saying what to install.
    """
    if settings.tracking.tensorboard and importlib.util.find_spec("tensorboard") is None:
        msg = "tracking.tensorboard=true needs the package tensorboard, which is not installed: pip install 'crmuons[tensorboard]'"
        raise ValueError(msg)


class Board:
    """Takes what the loop reports: every metric as a scalar, and at each validation the weights as histograms.

    Args:
        directory: of the event files; those of earlier attempts stay.
        model: whose weights are shown.
        step: from which the run goes on; what an earlier attempt wrote of later ones is hidden.
    """

    def __init__(self, directory: Path, model: Module, step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter  # noqa: PLC0415  # an extra

        self.model = model
        self.writer = SummaryWriter(str(directory), purge_step=step + 1 if step else None)

    def __call__(self, values: Metrics, step: int, _saved: Path | None) -> None:
        """Write what was reported, at once: a killed run leaves all of it."""
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)
        if "validation/score" in values:
            for name, weights in self.model.named_parameters():
                self.writer.add_histogram(f"weights/{name}", weights, step)  # device sync
        self.writer.flush()

    def close(self) -> None:
        """End the event file."""
        self.writer.close()
