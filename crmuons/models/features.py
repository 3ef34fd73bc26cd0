"""Physical units to what the networks see, and back.

First step, the published normalisation ("network space"): a primary becomes log10(E/PeV), cos zenith, log10(mass/GeV) and
the slant depth in km; a muon becomes log10(E/PeV), x/500 m, y/500 m. Second step, fitted on training data and saved with the
model: primaries are standardised; muons are turned to (log energy, log radius) and mapped to a normal distribution by their
quantiles. Azimuth is uniform in the data (the field's converters draw it), so it is drawn and not learned.
"""

import io

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from crmuons.data.events import EventArrays
from crmuons.models.standalone import (
    GEV_PER_PEV,
    METRES_PER_LENGTH,
    RADIUS_OFFSET_M,
    muon_from_network,
    muons_from_polar,
    piecewise_linear,
    primary_to_network,
    standardised_log_counts,
)

NUM_QUANTILES = 257
MIN_MUONS = 100  # Fewer muons do not fix 257 quantiles; below this a fit means nothing.
MUONS_BEYOND = 5  # Of the sample, beyond the last knot on either side: an extreme value alone places no knot.
MAX_SCORE = 4.5  # Seven muons in a million lie outside.


def muon_to_network(muons: Float[Tensor, "muons 3"]) -> Float[Tensor, "muons 3"]:
    """energy_gev, x_m, y_m -> log10(E/PeV), x/500 m, y/500 m."""
    energy = torch.log10(muons[:, :1] / GEV_PER_PEV)  # 1 GeV .. 1 EeV becomes -6 .. 3.
    return torch.cat([energy, muons[:, 1:] / METRES_PER_LENGTH], dim=1)


class Features(nn.Module):
    """The fitted second step: buffers that are saved with the networks.

    Attributes:
        num_muon_features: 2 (log energy, log radius; the set model) or 3 (network space; the baseline).
    """

    # How many events and muons the fit saw, and the range of the primaries, lowest and highest.
    primary_mean: Tensor
    primary_std: Tensor
    primary_range: Tensor
    log_count_mean: Tensor
    log_count_std: Tensor
    knots: Tensor
    scores: Tensor
    muon_mean: Tensor
    muon_std: Tensor

    def __init__(self, *, cartesian: bool = False) -> None:
        super().__init__()
        self.cartesian = cartesian
        self.num_muon_features = 3 if cartesian else 2
        for name, shape in (("primary_mean", (4,)), ("primary_std", (4,)), ("primary_range", (2, 4))):
            self.register_buffer(name, torch.ones(shape))
        self.register_buffer("log_count_mean", torch.zeros(()))
        self.register_buffer("log_count_std", torch.ones(()))
        self.register_buffer("muon_mean", torch.zeros(3))
        self.register_buffer("muon_std", torch.ones(3))
        self.register_buffer("knots", torch.arange(2 * NUM_QUANTILES, dtype=torch.float32).reshape(2, -1))
        self.register_buffer("scores", _normal_scores(MIN_MUONS))

    def fit(self, events: EventArrays) -> "Features":
        """Set the statistics from a sample of training events.

        Raises:
            ValueError: if the sample has fewer than MIN_MUONS muons, which fix no quantiles.
        """
        if len(events.muons) < MIN_MUONS:
            msg = (
                f"the sample of {len(events.counts)} training events has {len(events.muons)} muons, and the features need "
                f"{MIN_MUONS}: are nearly all events empty, or is the data set too small?"
            )
            raise ValueError(msg)
        physical = torch.from_numpy(np.array(events.primaries))
        primaries = primary_to_network(physical)
        self.primary_mean.copy_(primaries.mean(0))
        self.primary_std.copy_(_spread(primaries))
        self.primary_range.copy_(torch.stack([physical.amin(0), physical.amax(0)]))
        log_counts = torch.log10(torch.from_numpy(events.counts[events.counts > 0]).float())
        self.log_count_mean.copy_(log_counts.mean())
        self.log_count_std.copy_(_spread(log_counts))
        muons = torch.from_numpy(np.array(events.muons))
        network = muon_to_network(muons)
        self.muon_mean.copy_(network.mean(0))
        self.muon_std.copy_(_spread(network))
        self.scores.copy_(_normal_scores(len(muons)))
        for knots, values in zip(self.knots, _polar(muons).unbind(1), strict=True):
            knots.copy_(_quantiles(values, self.scores))
        return self

    def condition(self, primaries: Float[Tensor, "events 4"]) -> Float[Tensor, "events 4"]:
        """Standardised primaries."""
        return (primary_to_network(primaries) - self.primary_mean) / self.primary_std

    def log_count(self, counts: Int64[Tensor, " events"]) -> Float[Tensor, "events 1"]:
        """Standardised log10 N of events that have muons."""
        return standardised_log_counts(counts, self.log_count_mean, self.log_count_std)

    def muons(self, muons: Float[Tensor, "muons 3"]) -> Float[Tensor, "muons features"]:
        """What the critic sees of each muon."""
        if self.cartesian:
            return (muon_to_network(muons) - self.muon_mean) / self.muon_std
        columns = _polar(muons).unbind(1)
        mapped = [_interpolate(x, knots, self.scores) for x, knots in zip(columns, self.knots, strict=True)]
        return torch.stack(mapped, dim=1)

    def to_muons(
        self, features: Float[Tensor, "muons features"], azimuth_rad: Float[Tensor, " muons"]
    ) -> Float[Tensor, "muons 3"]:
        """The inverse of `muons`, with an azimuth for each muon (which the three-feature form carries itself)."""
        if self.cartesian:
            return muon_from_network(features * self.muon_std + self.muon_mean)
        energy, radius = (
            _interpolate(x, self.scores, knots) for x, knots in zip(features.unbind(1), self.knots, strict=True)
        )
        return muons_from_polar(energy, radius, azimuth_rad)


def fit_to_file(events: EventArrays) -> bytes:
    """Fit features to events; returns the content of a file that `load_state_dict` takes."""
    content = io.BytesIO()
    torch.save(Features().fit(events).state_dict(), content)
    return content.getvalue()


def _polar(muons: Tensor) -> Tensor:
    radius_m = torch.hypot(muons[:, 1], muons[:, 2])
    return torch.stack([torch.log10(muons[:, 0]), torch.log10(radius_m + RADIUS_OFFSET_M)], dim=1)


def _normal_scores(muons: int) -> Tensor:
    """The knots' places in the normal distribution: evenly spaced, so that the tails are mapped as finely as the middle.

    Knots at equal probabilities end at 2.9 sigma, and the two muons in a thousand beyond are then mapped by one slope.
    """
    end = min(MAX_SCORE, -float(torch.special.ndtri(torch.tensor(MUONS_BEYOND / muons, dtype=torch.float64))))
    return torch.linspace(-end, end, NUM_QUANTILES)


def _quantiles(values: Tensor, scores: Tensor) -> Tensor:
    """The values at the normal scores' probabilities, kept apart where values repeat."""
    knots = np.quantile(values.double().numpy(), torch.special.ndtr(scores.double()).numpy())
    # Two units of float32's rounding at least: neighbours that round to one value would have an infinite slope.
    least = max(1e-4 * (knots[-1] - knots[0]) / NUM_QUANTILES, 2 * np.finfo(np.float32).eps * np.abs(knots).max(), 1e-9)
    ramp = least * np.arange(NUM_QUANTILES)
    return torch.from_numpy(np.maximum.accumulate(knots - ramp) + ramp).float()


def _spread(values: Tensor) -> Tensor:
    """Standard deviation; 1 for a quantity that does not vary, which is then a constant 0."""
    spread = values.std(0, correction=0)  # Of the sample: a single value has none, and no warning.
    return torch.where(spread > 1e-6, spread, torch.ones_like(spread))


def _interpolate(x: Tensor, xs: Tensor, ys: Tensor) -> Tensor:
    """Piecewise linear through (xs, ys), continued beyond the ends with the last slopes."""
    left = (torch.searchsorted(xs, x.detach().contiguous()) - 1).clamp(0, xs.shape[0] - 2)
    return piecewise_linear(x, left, xs, ys)
