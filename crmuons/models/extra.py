"""Further features of a muon, as columns of the networks and as levels to draw: a part of bundles.py, see exported.py.

Training, generation and exports call it. Python 3.8, torch and numpy alone.
"""

import torch
from torch import Tensor

DIRECTION = ("dir_x", "dir_y")


class ExtraFeatures:
    """The features of a muon beyond energy_gev, x_m, y_m, and the columns that the networks make of them.

    Args:
        declared: name and kind of each.

    Attributes:
        names: the names.
        smooth, discrete: numbers of those that are columns, and of those that are drawn from a probability.
    """

    def __init__(self, declared: "list[tuple[str, str]]") -> None:
        self.names, self.kinds = [name for name, _ in declared], [kind for _, kind in declared]
        self.smooth = [at for at, kind in enumerate(self.kinds) if kind != "discrete"]
        self.discrete = [at for at, kind in enumerate(self.kinds) if kind == "discrete"]
        both = all(name in self.names for name in DIRECTION)
        # The columns of a direction, whose parts along and across the radius are learned.
        self.direction = [self.smooth.index(self.names.index(name)) for name in DIRECTION] if both else []

    def to_columns(self, muons: Tensor) -> "list[Tensor]":
        """Return the columns of muons in physical units [muons, numbers]."""
        columns = [_log_if(self.kinds[at], muons[:, 3 + at]) for at in self.smooth]
        if self.direction:
            radius = torch.hypot(muons[:, 1], muons[:, 2]).clamp(min=1e-30)
            self._turn(columns, muons[:, 1] / radius, -muons[:, 2] / radius)
        return columns

    def from_columns(self, columns: "list[Tensor]", azimuth_rad: Tensor) -> "list[Tensor]":
        """Invert `to_columns`, for muons at some azimuths."""
        columns = [_power_if(self.kinds[at], column) for at, column in zip(self.smooth, columns)]  # noqa: B905
        if self.direction:
            self._turn(columns, torch.cos(azimuth_rad), torch.sin(azimuth_rad))
            along, across = (columns[at] for at in self.direction)
            # Beyond the outermost knots it may exceed 1. No hypot: ONNX has none.
            length = (along * along + across * across).sqrt().clamp(min=1.0)
            for at in self.direction:
                columns[at] = columns[at] / length
        return columns

    def _turn(self, columns: "list[Tensor]", cos: Tensor, sin: Tensor) -> None:
        first, second = self.direction
        x, y = columns[first], columns[second]
        columns[first], columns[second] = x * cos - y * sin, x * sin + y * cos


def _log_if(kind: str, values: Tensor) -> Tensor:
    return torch.log10(values) if kind == "positive" else values


def _power_if(kind: str, values: Tensor) -> Tensor:
    return torch.pow(10, values) if kind == "positive" else values


def draw_level(logits: Tensor, levels: Tensor, uniform: Tensor) -> Tensor:
    """Draw one of the levels [k] for each muon, with the probabilities of logits [k, muons], from uniform numbers."""
    below = logits.softmax(0).cumsum(0)
    number = (uniform > below).sum(0).clamp_(max=len(levels) - 1)
    return levels.index_select(0, number)
