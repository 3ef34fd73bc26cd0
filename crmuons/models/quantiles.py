"""Maps of a quantity to a normal distribution: quantiles at normal scores, and lines between them."""

import numpy as np
import torch
from torch import Tensor

from crmuons.models.formulas import piecewise_linear

# 256 intervals. Saved models hold knots of this shape, so another number would need new models.
NUM_QUANTILES = 257
MUONS_BEYOND = 5  # Muons of the sample beyond the outermost knot on each side: no single extreme value sets a knot.
MAX_SCORE = 4.5  # The outermost knots in sigma; seven muons in a million lie outside.


def normal_scores(muons: int) -> Tensor:
    """Return the normal scores of the knots. They are evenly spaced, so that the tails get as many knots as the middle.

    Knots at equal probabilities would end at 2.9 sigma. One slope on each side would then map all muons beyond, which are
    two in a thousand on each side.
    """
    # For a small sample the knots end earlier, where MUONS_BEYOND of its muons are expected beyond them.
    end = min(MAX_SCORE, -float(torch.special.ndtri(torch.tensor(MUONS_BEYOND / muons, dtype=torch.float64))))
    return torch.linspace(-end, end, NUM_QUANTILES)


def quantiles(values: Tensor, scores: Tensor) -> Tensor:
    """Return the quantiles at the normal scores' probabilities, strictly increasing even if values repeat."""
    knots = np.quantile(values.double().numpy(), torch.special.ndtr(scores.double()).numpy())
    # Steps have at least two units of float32's rounding: knots that round to the same value have an infinite slope.
    least = max(1e-4 * (knots[-1] - knots[0]) / NUM_QUANTILES, 2 * np.finfo(np.float32).eps * np.abs(knots).max(), 1e-9)
    # Subtract a ramp, make the rest not decrease, and add the ramp again: then every step is `least` or more.
    ramp = least * np.arange(NUM_QUANTILES)
    return torch.from_numpy(np.maximum.accumulate(knots - ramp) + ramp).float()


def interpolate(x: Tensor, xs: Tensor, ys: Tensor) -> Tensor:
    """Interpolate linearly between the knots (xs, ys); the outer slopes continue beyond the ends."""
    # The choice of the interval has no derivative. searchsorted warns about values that are not contiguous.
    left = (torch.searchsorted(xs, x.detach().contiguous()) - 1).clamp(0, xs.shape[0] - 2)
    return piecewise_linear(x, left, xs, ys)
