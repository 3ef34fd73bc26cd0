"""Formulas of generation that the trained model calls too: a part of bundles.py, see exported.py.

It needs only Python 3.8, torch and numpy.
"""

import math

import numpy as np
import torch
from torch import Tensor

SLOPE = 0.2  # LeakyReLU: piecewise linear, so that the critic's second derivatives stay bounded.
MAX_SHAPE = 1e4  # A negative binomial of larger shape is a Poisson distribution to 0.01 % of its variance at N = 1.
MAX_COUNT = 2.0**53  # Far outside the trained range N may exceed every integer type.
GEV_PER_PEV = 1e6
METRES_PER_LENGTH = 500.0
METRES_PER_KM = 1000.0
RADIUS_OFFSET_M = 1e-3  # log10(r + 1 mm) is finite for a muon on the axis.
RANGE_MARGIN = 0.01  # The training ranges come from a sample; they are widened by this share of their widths.


def primary_to_network(primaries: Tensor) -> Tensor:
    """Convert energy_gev, zenith_rad, mass_gev, depth_m to log10(E/PeV), cos zenith, log10(mass/GeV), depth/km."""
    energy, zenith, mass, depth = primaries.unbind(1)
    columns = [torch.log10(energy / GEV_PER_PEV), torch.cos(zenith), torch.log10(mass), depth / METRES_PER_KM]
    return torch.stack(columns, dim=1)


def muon_from_network(network: Tensor) -> Tensor:
    """Convert log10(E/PeV), x/500 m, y/500 m to energy_gev, x_m, y_m."""
    return torch.cat([10 ** network[:, :1] * GEV_PER_PEV, network[:, 1:] * METRES_PER_LENGTH], dim=1)


def muons_from_polar(log_energy: Tensor, log_radius: Tensor, azimuth_rad: Tensor) -> Tensor:
    """Convert log10(E/GeV), log10((r + RADIUS_OFFSET_M)/m) and the azimuth to energy_gev, x_m, y_m [muons, 3]."""
    radius_m = torch.pow(10, log_radius).sub_(RADIUS_OFFSET_M).clamp_(min=0)
    columns = [torch.pow(10, log_energy), torch.cos(azimuth_rad).mul_(radius_m), torch.sin(azimuth_rad).mul_(radius_m)]
    return torch.stack(columns, dim=1)


def piecewise_linear(x: Tensor, interval: Tensor, xs: Tensor, ys: Tensor) -> Tensor:
    """Interpolate between knots (xs, ys), given the interval of each x; the outer slopes continue beyond the ends."""
    slopes = (ys[1:] - ys[:-1]) / (xs[1:] - xs[:-1])
    steps = (x - xs.index_select(0, interval)).mul_(slopes.index_select(0, interval))
    return steps.add_(ys.index_select(0, interval))


def standardised_log_counts(counts: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Return the standardised log10 N [events, 1]; an event without muons counts as N = 1."""
    return ((torch.log10(counts.clamp(min=1).to(mean.dtype)) - mean) / std)[:, None]


def mixture_parameters(outputs: Tensor) -> "tuple[Tensor, Tensor, Tensor]":
    """Convert network outputs [events, 3 k] to log weights, log means and shapes [events, k], in double precision."""
    weights, log_means, shapes = outputs.double().chunk(3, dim=1)
    offsets = torch.linspace(-0.5, 0.5, weights.shape[1], dtype=torch.float64, device=outputs.device)
    shape = MAX_SHAPE * torch.sigmoid(shapes - math.log(MAX_SHAPE / 4))  # About 4 at the start of a training.
    return weights.log_softmax(1), 3 * log_means + offsets, shape


def sample_mixture(log_weights: Tensor, log_means: Tensor, shapes: Tensor, source: "torch.Generator | None") -> Tensor:
    """Draw N [events] from a mixture of negative binomials: a component, its gamma factor, then a Poisson number."""
    # This gives the same numbers as torch.multinomial, to the last bit, without its checks, which read the device twice.
    weights = log_weights.exp()
    chosen = (weights / torch.empty_like(weights).exponential_(generator=source)).argmax(1, keepdim=True)
    shape, mean = shapes.gather(1, chosen)[:, 0], log_means.gather(1, chosen)[:, 0].exp()
    factor = torch._standard_gamma(shape, generator=source) / shape
    return torch.poisson((mean * factor).clamp(max=MAX_COUNT), generator=source).long()


def round_counts(log_counts: Tensor) -> Tensor:
    """Convert log10(N + 1) to the nearest N."""
    return (10**log_counts - 1).round().clamp(min=0, max=MAX_COUNT).long()


def outside_ranges(primaries: np.ndarray, ranges: np.ndarray) -> np.ndarray:
    """Tell which primaries [events, 4] lie outside widened ranges [2, 4], in log10 of energy and mass."""
    values, limits = primaries.astype(np.float64), ranges.astype(np.float64)
    for array in (values, limits):
        array[:, [0, 2]] = np.log10(array[:, [0, 2]])
    low, high = limits
    slack = RANGE_MARGIN * (high - low) + 1e-6 * np.maximum(np.abs(low), np.abs(high))  # Rounding of single precision.
    return np.asarray(((values < low - slack) | (values > high + slack)).any(axis=1))
