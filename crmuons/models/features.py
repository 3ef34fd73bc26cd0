"""Convert physical units to the networks' inputs and back, in two steps.

The first step is the published normalisation ("network space"). A primary becomes log10(E/PeV), cos zenith,
log10(mass/GeV) and the slant depth in km; a muon becomes log10(E/PeV), x/500 m, y/500 m.

The second step is fitted on training data and saved with the model. Primaries are standardised. For the set model,
muons become (log energy, log radius), and quantiles map each of the two to a normal distribution. The azimuth is
uniform in the data, because the field's converters draw it; generation draws it too, and the networks do not learn it.

Further features (data/features.py) become more columns of the same kind: a quantile map of log10 of a positive feature,
and of the value of any other; models/extra.py scales some of them by the energy. A direction (dir_x, dir_y) is first
turned by the muon's azimuth. Then its part along the radius grows with the radius, and neither part depends on the
azimuth. `models.smooth` has the density of these columns. Discrete features are no columns: `models.discrete` has their
probabilities. `declaration` lists the features, so that the weights alone define the model.
"""

import io
from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa
import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from crmuons.data.events import EventArrays
from crmuons.data.features import BASE, FEATURES_KEY, MuonFeature, declared, metadata_of
from crmuons.models.extra import ExtraFeatures
from crmuons.models.formulas import (
    GEV_PER_PEV,
    METRES_PER_LENGTH,
    RADIUS_OFFSET_M,
    muon_from_network,
    muons_from_polar,
    primary_to_network,
    standardised_log_counts,
)
from crmuons.models.quantiles import NUM_QUANTILES, interpolate, normal_scores, quantiles

MOST_LEVELS = 64  # Largest number of levels of a discrete feature; each level is an output of the network.
MIN_MUONS = 100  # Fewer muons do not determine 257 quantiles.


def muon_to_network(muons: Float[Tensor, "muons numbers"]) -> Float[Tensor, "muons 3"]:
    """Convert energy_gev, x_m, y_m to log10(E/PeV), x/500 m, y/500 m."""
    energy = torch.log10(muons[:, :1] / GEV_PER_PEV)  # 1 GeV .. 1 EeV becomes -6 .. 3.
    return torch.cat([energy, muons[:, 1:3] / METRES_PER_LENGTH], dim=1)


class Features(nn.Module):
    """The fitted second step. Its statistics are buffers, saved with the networks.

    Args:
        cartesian: use network space with three standardised features, as the predecessor's networks do.
        extra: features of a muon beyond energy_gev, x_m, y_m.
        scaled: whether their columns are scaled by the energy (models/extra.py); columns of older models are not.
        drawn: whether they are drawn from a density (models/smooth.py); older models make them with the generator.

    Raises:
        ValueError: if there are further features for the predecessor's networks.

    Attributes:
        num_muon_features: number of features that the generator makes for a muon: 2 (log energy and log radius, for the set
            model), and one for each further feature that is neither discrete nor drawn; or 3 (network space, for the
            predecessor).
        drawn: whether the columns after these are drawn from a density; False if there are no such columns.
        extra: the further features.
        levels: the values of each discrete feature in the training data.
        primary_range: lowest and highest value of each quantity of the primaries [2, 4], in physical units.
        scores: normal scores of the quantiles [257].
        training_showers: number of the training showers; None if a sample cannot hold all of them. It is not a statistic of
            the model: it belongs to a run, and saved models do not have it.
        knots: quantiles of log10(E/GeV) and log10(radius + 1 mm) at the scores [2, 257].
    """

    primary_mean: Tensor
    primary_std: Tensor
    primary_range: Tensor
    log_count_mean: Tensor
    log_count_std: Tensor
    knots: Tensor
    scores: Tensor
    muon_mean: Tensor
    muon_std: Tensor
    extra_knots: Tensor

    def __init__(
        self,
        *,
        cartesian: bool = False,
        extra: Sequence[MuonFeature] = (),
        scaled: bool = True,
        drawn: bool = True,
    ) -> None:
        super().__init__()
        if cartesian and extra:
            msg = "model.kind=predecessor knows energy_gev, x_m, y_m alone; leave data.features out, or use model.kind=set"
            raise ValueError(msg)
        self.cartesian, self.extra = cartesian, tuple(extra)
        self.training_showers: int | None = None
        self.layout = ExtraFeatures(
            [(feature.name, feature.kind) for feature in self.extra], scaled and bool(self.extra)
        )
        self.drawn = drawn and bool(self.layout.smooth)
        self.num_muon_features = 3 if cartesian else 2 if self.drawn else 2 + len(self.layout.smooth)
        for name, shape in (("primary_mean", (4,)), ("primary_std", (4,)), ("primary_range", (2, 4))):
            self.register_buffer(name, torch.ones(shape))
        self.register_buffer("log_count_mean", torch.zeros(()))
        self.register_buffer("log_count_std", torch.ones(()))
        self.register_buffer("muon_mean", torch.zeros(3))
        self.register_buffer("muon_std", torch.ones(3))
        # Any increasing numbers will do until `fit` or a checkpoint sets the knots: no slope may be infinite.
        self.register_buffer("knots", torch.arange(2 * NUM_QUANTILES, dtype=torch.float32).reshape(2, -1))
        self.register_buffer("scores", normal_scores(MIN_MUONS))
        if self.extra:
            self.register_buffer("declaration", _packed(self.extra))
            if scaled:
                self.register_buffer("extra_scaled", torch.ones(()))
            if self.drawn:
                self.register_buffer("extra_drawn", torch.ones(()))
            rows = len(self.layout.smooth)
            knots = torch.arange(rows * NUM_QUANTILES, dtype=torch.float32).reshape(rows, NUM_QUANTILES)
            self.register_buffer("extra_knots", knots)
            for number in range(len(self.layout.discrete)):
                self.register_buffer(f"levels_{number}", torch.zeros(1))

    @classmethod
    def of_state(cls, state: Mapping[str, Tensor], *, cartesian: bool) -> "Features":
        """Return features with the declaration and levels of this state, so that `load_state_dict` accepts it."""
        extra = _unpacked(state["declaration"]) if "declaration" in state else ()
        ways = {"scaled": "extra_scaled" in state, "drawn": "extra_drawn" in state}
        features = cls(cartesian=cartesian, extra=extra, **ways)
        for name, values in state.items():
            if name.startswith("levels_"):
                features.register_buffer(name, torch.zeros_like(values))
        return features

    @property
    def levels(self) -> list[Tensor]:
        """Return the values of each discrete feature."""
        return [getattr(self, f"levels_{number}") for number in range(len(self.layout.discrete))]

    @property
    def muon_features(self) -> tuple[MuonFeature, ...]:
        """Return all numbers of a muon in physical units."""
        return (*BASE, *self.extra)

    def fit(self, events: EventArrays) -> "Features":
        """Set the statistics from a sample of training events, and return self.

        Raises:
            ValueError: if the sample has fewer than MIN_MUONS muons, or numbers that are too large to average.
        """
        if len(events.muons) < MIN_MUONS:
            msg = (
                f"the sample of {len(events.counts)} training events has {len(events.muons)} muons, and the features "
                f"need {MIN_MUONS}: are nearly all events empty, or is the data set too small?"
            )
            raise ValueError(msg)
        # Copied: torch warns of arrays that cannot be written, such as views of Arrow's memory.
        physical = torch.from_numpy(np.array(events.primaries))
        primaries = primary_to_network(physical)
        self.primary_mean.copy_(primaries.mean(0))
        self.primary_std.copy_(_spread(primaries))
        self.primary_range.copy_(torch.stack([physical.amin(0), physical.amax(0)]))
        # Generator and critic see no event without muons, so N = 0 is no part of their statistics.
        log_counts = torch.log10(torch.from_numpy(events.counts[events.counts > 0]).float())
        self.log_count_mean.copy_(log_counts.mean())
        self.log_count_std.copy_(_spread(log_counts))
        muons = torch.from_numpy(np.array(events.muons))
        network = muon_to_network(muons)
        self.muon_mean.copy_(network.mean(0))
        self.muon_std.copy_(_spread(network))
        # The scores before the knots: a larger sample reaches further into the tails.
        self.scores.copy_(normal_scores(len(muons)))
        for knots, values in zip(self.knots, _polar(muons).unbind(1), strict=True):
            knots.copy_(quantiles(values, self.scores))
        if self.extra:
            self._fit_extra(muons)
        if not all(values.isfinite().all() for values in self.state_dict().values() if values.is_floating_point()):
            largest = [f"{values.abs().max():.2g}" for values in (physical[:, 3], muons[:, 1], muons[:, 2])]
            msg = (
                f"the events hold numbers that are too large to average: depth_m reaches {largest[0]}, x_m {largest[1]} and "
                f"y_m {largest[2]}; correct the files, or leave these events out"
            )
            raise ValueError(msg)
        return self

    def _fit_extra(self, muons: Tensor) -> None:
        for knots, values in zip(self.extra_knots, self.layout.to_columns(muons), strict=True):
            knots.copy_(quantiles(values, self.scores))
        for number, at in enumerate(self.layout.discrete):
            levels = torch.unique(muons[:, 3 + at])
            if len(levels) > MOST_LEVELS:
                feature = self.extra[at]
                msg = (
                    f"'{feature.name}' is declared as discrete and has {len(levels)} values in the sample, at most "
                    f"{MOST_LEVELS}; declare it as signed or positive"
                )
                raise ValueError(msg)
            self.register_buffer(f"levels_{number}", levels)

    def condition(self, primaries: Float[Tensor, "events 4"]) -> Float[Tensor, "events 4"]:
        """Return the standardised primaries."""
        return (primary_to_network(primaries) - self.primary_mean) / self.primary_std

    def log_count(self, counts: Int64[Tensor, " events"]) -> Float[Tensor, "events 1"]:
        """Return the standardised log10 N of events that have muons."""
        return standardised_log_counts(counts, self.log_count_mean, self.log_count_std)

    def muons(self, muons: Float[Tensor, "muons numbers"]) -> Float[Tensor, "muons features"]:
        """Return the features of each muon that the generator makes and the critic sees: the columns that are not drawn."""
        return self.columns(muons, further=not self.drawn)

    def columns(self, muons: Float[Tensor, "muons numbers"], *, further: bool = True) -> Float[Tensor, "muons columns"]:
        """Return all columns of each muon: energy and radius, and with `further` the smooth further features."""
        if self.cartesian:
            return (muon_to_network(muons) - self.muon_mean) / self.muon_std
        columns = _polar(muons).unbind(1)
        mapped = [interpolate(x, knots, self.scores) for x, knots in zip(columns, self.knots, strict=True)]
        if self.extra and further:
            further_columns = zip(self.layout.to_columns(muons), self.extra_knots, strict=True)
            mapped += [interpolate(x, knots, self.scores) for x, knots in further_columns]
        return torch.stack(mapped, dim=1)

    def level_numbers(self, muons: Float[Tensor, "muons numbers"]) -> list[Int64[Tensor, " muons"]]:
        """Return, for each discrete feature, the number of each muon's value among the levels; the nearest one."""
        return [
            (muons[:, 3 + at, None] - levels).abs().argmin(dim=1)
            for at, levels in zip(self.layout.discrete, self.levels, strict=True)
        ]

    def to_muons(
        self, features: Float[Tensor, "muons features"], azimuth_rad: Float[Tensor, " muons"]
    ) -> Float[Tensor, "muons smooth"]:
        """Invert `columns`, given an azimuth for each muon. Cartesian features contain it and ignore the argument.

        Discrete features are left out.
        """
        if self.cartesian:
            return muon_from_network(features * self.muon_std + self.muon_mean)
        log_energy, log_radius = (
            interpolate(x, self.scores, knots) for x, knots in zip(features.unbind(1)[:2], self.knots, strict=True)
        )
        muons = muons_from_polar(log_energy, log_radius, azimuth_rad)
        if not self.extra:
            return muons
        further = zip(features.unbind(1)[2:], self.extra_knots, strict=True)
        mapped = [interpolate(x, self.scores, knots) for x, knots in further]
        columns = self.layout.from_columns(mapped, muons[:, 0], azimuth_rad)
        return torch.cat([muons, *(column[:, None] for column in columns)], dim=1)


def fit_to_file(events: EventArrays, extra: Sequence[MuonFeature] = ()) -> bytes:
    """Fit features to events, and return their state dict as the content of a file that `torch.load` reads."""
    content = io.BytesIO()
    torch.save(Features(extra=extra).fit(events).state_dict(), content)
    return content.getvalue()


def _packed(features: Sequence[MuonFeature]) -> Tensor:
    """Return a declaration as bytes, so that it travels with the weights."""
    return torch.frombuffer(bytearray(metadata_of((*BASE, *features))[FEATURES_KEY]), dtype=torch.uint8).clone()


def _unpacked(declaration: Tensor) -> tuple[MuonFeature, ...]:
    text = bytes(declaration.tolist())
    return declared(pa.schema([], {FEATURES_KEY: text}), "the model")[len(BASE) :]


def _polar(muons: Tensor) -> Tensor:
    """Convert energy_gev, x_m, y_m to log10(E/GeV), log10(radius + 1 mm)."""
    # The offset of 1 mm keeps the logarithm finite for a muon on the shower axis.
    radius_m = torch.hypot(muons[:, 1], muons[:, 2])
    return torch.stack([torch.log10(muons[:, 0]), torch.log10(radius_m + RADIUS_OFFSET_M)], dim=1)


def _spread(values: Tensor) -> Tensor:
    """Return the standard deviation, or 1 for a quantity that does not vary: it becomes a constant 0."""
    spread = values.std(0, correction=0)  # Divide by n, not n - 1: a single value gives 0.
    return torch.where(spread > 1e-6, spread, torch.ones_like(spread))
