"""The model that users get: features, multiplicity and generator in one module."""

from collections.abc import Sequence

import torch
from jaxtyping import Float32, Int64
from torch import Tensor, nn

from crmuons import config
from crmuons.models import multiplicity, networks
from crmuons.models.discrete import DiscreteFeatures
from crmuons.models.features import Features
from crmuons.models.ragged import Ragged
from crmuons.models.smooth import SmoothFeatures


class BundleModel(nn.Module):
    """Everything that generation needs, saved and averaged as one module."""

    def __init__(self, settings: config.Model, features: Features | None = None) -> None:
        super().__init__()
        self.features = features if features is not None else Features(cartesian=settings.kind == "predecessor")
        self.multiplicity = multiplicity.build_multiplicity(settings)
        self.generator, _ = networks.build_networks(settings, self.features.num_muon_features)
        levels = [len(values) for values in self.features.levels]
        layout = self.features.layout
        # These come last, so that a seed draws the same other weights with and without them.
        self.discrete = DiscreteFeatures(2 + len(layout.smooth), levels) if levels else None
        self.smooth = SmoothFeatures(layout.order) if self.features.drawn else None

    def condition(self, primaries: Float32[Tensor, "events 4"], counts: Int64[Tensor, " events"]) -> Tensor:
        """Return the condition of generator and critic [events, 5]: the standardised primary and log10 N."""
        return torch.cat([self.features.condition(primaries), self.features.log_count(counts)], dim=1)

    def latents(self, ragged: Ragged, source: torch.Generator | None) -> tuple[Tensor, Tensor]:
        """Draw latent variables of the showers [events, s] and of the muons [muons, m]."""
        events, muons, device = len(ragged.counts), len(ragged.event_of_muon), ragged.counts.device
        shower = torch.randn(events, self.generator.shower_latents, generator=source, device=device)
        return shower, torch.randn(muons, self.generator.muon_latents, generator=source, device=device)

    @torch.no_grad()
    def sample_counts(
        self, primaries: Float32[Tensor, "events 4"], source: torch.Generator | None = None
    ) -> Int64[Tensor, " events"]:
        """Draw the number of muons of each primary."""
        return self.multiplicity.sample(self.features.condition(primaries), source)


class Ensemble(nn.Module):
    """Several trained models as one, saved as one module; models/ensemble.py draws from it.

    Raises:
        ValueError: if there is only one member, or the members' muons have different features.
    """

    def __init__(self, members: Sequence[BundleModel]) -> None:
        super().__init__()
        if len(members) < 2:
            msg = f"an ensemble of {len(members)}: expected two members or more; one model is used as it is"
            raise ValueError(msg)
        first, *others = (model.features.muon_features for model in members)
        for number, other in enumerate(others, 1):
            if other != first:
                theirs, ours = (", ".join(feature.name for feature in found) for found in (other, first))
                msg = f"the muons of member {number} have other features ({theirs}) than the muons of member 0 ({ours}); give models of the same data.features"
                raise ValueError(msg)
        self.members = nn.ModuleList(members)

    def each(self) -> list[BundleModel]:
        """Return the members."""
        return [member for member in self.members if isinstance(member, BundleModel)]

    @property
    def features(self) -> Features:
        """Return the features of the first member; all members have the same numbers of a muon."""
        return self.each()[0].features


def members_of(model: "BundleModel | Ensemble") -> list[BundleModel]:
    """Return the members of an ensemble, or a model itself as the only one."""
    return model.each() if isinstance(model, Ensemble) else [model]
