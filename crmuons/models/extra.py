"""Further features of a muon, as columns of the networks and as levels to draw: a part of bundles.py, see exported.py.

Training, generation and exports call it. It needs only Python 3.8, torch and numpy.

Angles and delays fall by four decades from 10 GeV to 100 TeV, and the surface energy is never below the energy. If these
numbers were the columns, only the networks' precision could keep such limits. Scaled columns depend little on the energy.
Let e be the geometric mean of the energies at the depth and at the surface, or the energy at the depth if the energy at the
surface is no feature:

- a direction becomes a transverse momentum, e dir;
- a delay becomes e sqrt(t), which is the transverse momentum times the root of a path (with a minus sign, if t < 0);
- the surface energy becomes the loss, log10((E_surface - E) / (E + 700 GeV)): exp(b X) - 1 if no loss fluctuated.
"""

import torch
from torch import Tensor

DIRECTION = ("dir_x", "dir_y")
SURFACE = "energy_surface_gev"
DELAY = "t_ns"
SCALED = (DELAY, *DIRECTION)
CRITICAL_GEV = 700.0  # Ionisation and radiation take equal shares there: a / b of dE/dX = a + b E in ice.
LEAST_LOSS_GEV = 1e-3  # Keeps the logarithm finite if there is no loss, as at the surface.
# Limits of the log widths of a column's Gaussians, in sigma. A feature with one value would make them narrower for ever.
LOG_SPREADS = (-6.0, 2.0)
# Drawn columns end here, half a sigma beyond the outermost knot. Without this limit, the slope beyond the knot gave surface
# energies of 10^9 GeV.
LARGEST_SCORE = 5.0
# Largest correlation of a column within an event. With a correlation of 1, the likelihood would have no bound.
MOST_SHARED = 0.99


class ExtraFeatures:
    """The features of a muon beyond energy_gev, x_m, y_m, and the columns that the networks make of them.

    Args:
        declared: name and kind of each.
        scaled: whether columns are scaled by the energy, see above; columns of older models are not.

    Attributes:
        names: the names.
        smooth, discrete: numbers of the features that are columns, and of the features with a probability for each value.
        order: numbers of the columns in the order in which a density draws them (models/smooth.py).
    """

    def __init__(self, declared: "list[tuple[str, str]]", scaled: bool = False) -> None:
        self.scaled = scaled
        self.names, self.kinds = [name for name, _ in declared], [kind for _, kind in declared]
        self.smooth = [at for at, kind in enumerate(self.kinds) if kind != "discrete"]
        self.discrete = [at for at, kind in enumerate(self.kinds) if kind == "discrete"]
        both = all(name in self.names for name in DIRECTION)
        # Numbers of the two columns of a direction. The networks learn its parts along and across the radius.
        self.direction = [self.smooth.index(self.names.index(name)) for name in DIRECTION] if both else []
        self.surface = self.smooth.index(self.names.index(SURFACE)) if SURFACE in self.names else None
        # The surface energy comes first, because it scales the others. The delay comes last: angles determine the delay, but
        # a delay would leave a ring of possible angles.
        rank = {SURFACE: 0, **dict.fromkeys(DIRECTION, 1), DELAY: 3}
        self.order = sorted(range(len(self.smooth)), key=lambda number: rank.get(self.names[self.smooth[number]], 2))

    def to_columns(self, muons: Tensor) -> "list[Tensor]":
        """Return the columns of muons in physical units [muons, numbers]."""
        columns = [_log_if(self.kinds[at], muons[:, 3 + at]) for at in self.smooth]
        if self.direction:
            radius = torch.hypot(muons[:, 1], muons[:, 2]).clamp(min=1e-30)
            self._turn(columns, muons[:, 1] / radius, -muons[:, 2] / radius)
        if self.scaled:
            energy = muons[:, 0]
            if self.surface is not None:
                surface = muons[:, 3 + self.names.index(SURFACE)]
                lost = (surface - energy).clamp(min=LEAST_LOSS_GEV)
                columns[self.surface] = torch.log10(lost / (energy + CRITICAL_GEV))
                energy = (energy * surface).sqrt()
            for number, name in self._scaled():
                column = columns[number]
                columns[number] = energy * (column.sign() * column.abs().sqrt() if name == DELAY else column)
        return columns

    def from_columns(self, columns: "list[Tensor]", energy_gev: Tensor, azimuth_rad: Tensor) -> "list[Tensor]":
        """Invert `to_columns`, for muons of these energies at some azimuths."""
        columns = [_power_if(self.kinds[at], column) for at, column in zip(self.smooth, columns)]  # noqa: B905
        if self.scaled:
            energy = energy_gev
            if self.surface is not None:
                surface = energy_gev + columns[self.surface] * (energy_gev + CRITICAL_GEV)
                columns[self.surface], energy = surface, (energy_gev * surface).sqrt()
            for number, name in self._scaled():
                column = columns[number] / energy
                columns[number] = column * column.abs() if name == DELAY else column
        if self.direction:
            self._turn(columns, torch.cos(azimuth_rad), torch.sin(azimuth_rad))
            along, across = (columns[at] for at in self.direction)
            # Beyond the outermost knots the length may exceed 1. ONNX has no hypot.
            length = (along * along + across * across).sqrt().clamp(min=1.0)
            for at in self.direction:
                columns[at] = columns[at] / length
        return columns

    def _scaled(self) -> "list[tuple[int, str]]":
        """Return the number and the name of each column that the energy multiplies."""
        return [(number, self.names[at]) for number, at in enumerate(self.smooth) if self.names[at] in SCALED]

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
    return levels.index_select(0, _draw_number(logits, uniform))


def gaussians(outputs: Tensor) -> "tuple[Tensor, Tensor, Tensor]":
    """Return log weights (up to a constant), means and log widths [k, muons] of Gaussians, from outputs [3 k, muons]."""
    logits, means, log_spreads = outputs.chunk(3)
    # The means differ at the start of a training; otherwise all Gaussians would learn the same.
    offsets = torch.linspace(-1, 1, len(logits), device=outputs.device)[:, None]
    return logits, 2 * means + offsets, log_spreads.clamp(*LOG_SPREADS)


def draw_normal_score(outputs: Tensor, uniform: Tensor, normal: Tensor) -> Tensor:
    """Draw a column [muons] from mixtures of Gaussians: a uniform number chooses a Gaussian, which scales a normal number."""
    logits, means, log_spreads = gaussians(outputs)
    chosen = _draw_number(logits, uniform)[None]
    values = means.gather(0, chosen)[0] + log_spreads.gather(0, chosen)[0].exp() * normal
    return values.clamp(-LARGEST_SCORE, LARGEST_SCORE)


def _draw_number(logits: Tensor, uniform: Tensor) -> Tensor:
    below = logits.softmax(0).cumsum(0)
    return (uniform > below).sum(0).clamp_(max=len(logits) - 1)
