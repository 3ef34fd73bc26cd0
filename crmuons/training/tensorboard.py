"""Write metrics and weights of a run as TensorBoard event files (tracking.tensorboard)."""

import importlib.util
from pathlib import Path

import numpy as np
from torch.nn import Module

from crmuons import config
from crmuons.data import schema
from crmuons.data.events import EventArrays
from crmuons.models.formulas import RADIUS_OFFSET_M
from crmuons.training.interface import Metrics


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
    """Write metrics as scalars, and at each validation weights of a model and distributions of events as histograms.

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

    def events(self, truth: EventArrays, generated: EventArrays, step: int) -> None:
        """Write the distributions of held-out primaries, and of true and generated N and muons, as histograms.

        Energies, masses and radii are logarithmic. N is log10(N + 1), so that empty events are seen.
        """
        for name, values in zip(schema.PRIMARY_FEATURES, truth.primaries.T, strict=True):
            logarithmic = name in {"energy_gev", "mass_gev"}
            label = f"log10_{name}" if logarithmic else name
            self.writer.add_histogram(f"primaries/{label}", np.log10(values) if logarithmic else values, step)
        for kind, events in (("true", truth), ("generated", generated)):
            self.writer.add_histogram(f"{kind}/log10_num_muons_plus_1", np.log10(events.counts + 1.0), step)
            if len(events.muons):  # TensorBoard refuses a histogram of nothing.
                energy, x, y = events.muons[:, :3].T.astype(np.float64)
                radius = np.hypot(x, y) + RADIUS_OFFSET_M
                self.writer.add_histogram(f"{kind}/muon_log10_energy_gev", np.log10(energy), step)
                self.writer.add_histogram(f"{kind}/muon_log10_radius_m", np.log10(radius), step)

    def close(self) -> None:
        """Close the event file."""
        self.writer.close()
