"""Generator and critic of variable-size sets of muons, conditional on the primary and on N."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from crmuons.config import Model
from crmuons.models.formulas import SLOPE
from crmuons.models.ragged import Ragged


class SetLayer(nn.Module):
    """One exchange between the muons of an event, at a cost linear in N.

    The mean over the muons updates the event's state, then the state updates every muon; both updates are residual.
    This is the layer of EPiC-GAN (arXiv:2301.08128) with only the mean and no sum, because N is part of the condition.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.pool = nn.Linear(width, width)
        self.event = nn.Linear(width, width)
        self.event_to_muon = nn.Linear(width, width)
        # No bias is needed here: the bias of `event_to_muon` is added to the same numbers.
        self.muon = nn.Linear(width, width, bias=False)
        self.out = nn.Linear(width, width)
        self.act = nn.LeakyReLU(SLOPE)

    def forward(
        self, muons: Float[Tensor, "muons width"], event: Float[Tensor, "events width"], ragged: Ragged
    ) -> tuple[Float[Tensor, "muons width"], Float[Tensor, "events width"]]:
        # Residual: a gradient reaches the first layer whatever the number of layers.
        event = event + self.act(self.pool(ragged.mean(muons)) + self.event(event))
        mixed = self.act(self.muon(muons) + ragged.broadcast(self.event_to_muon(event)))
        return muons + self.act(self.out(mixed)), event


class SetNetwork(nn.Module):
    """The part that generator and critic share: embeddings of muons and events, and the layers that mix them."""

    def __init__(self, event_inputs: int, muon_inputs: int, width: int, layers: int) -> None:
        super().__init__()
        # A seed draws the initial weights in this order, and optimizers number their states by it: keep it.
        self.act = nn.LeakyReLU(SLOPE)
        self.context = nn.Sequential(nn.Linear(event_inputs, width), self.act, nn.Linear(width, width), self.act)
        # Both biases are added to the same numbers. One would be enough, but saved models hold both.
        self.embed = nn.Linear(muon_inputs, width)
        self.embed_event = nn.Linear(width, width)
        self.layers = nn.ModuleList(SetLayer(width) for _ in range(layers))

    def mix(
        self, muons: Float[Tensor, "muons muon_inputs"], event: Float[Tensor, "events event_inputs"], ragged: Ragged
    ) -> tuple[Float[Tensor, "muons width"], Float[Tensor, "events width"]]:
        """Return the states of muons and events after all layers."""
        event = self.context(event)
        muons = self.act(self.embed(muons) + ragged.broadcast(self.embed_event(event)))
        for layer in self.layers:
            muons, event = layer(muons, event, ragged)
        return muons, event


class SetGenerator(SetNetwork):
    """Generator of muon features from the noise of the shower and of each muon."""

    def __init__(self, model: Model, num_features: int) -> None:
        super().__init__(5 + model.shower_latents, model.muon_latents, model.width, model.layers)
        self.shower_latents, self.muon_latents = model.shower_latents, model.muon_latents
        self.out = nn.Linear(model.width, num_features)

    def forward(
        self,
        condition: Float[Tensor, "events 5"],
        shower_noise: Float[Tensor, "events s"],
        muon_noise: Float[Tensor, "muons m"],
        ragged: Ragged,
    ) -> Float[Tensor, "muons features"]:
        muons, _ = self.mix(muon_noise, torch.cat([condition, shower_noise], dim=1), ragged)
        result: Tensor = self.out(muons)
        return result


class SetCritic(SetNetwork):
    """Critic that gives each event one unbounded score.

    The first layer of the head is multiplied by sqrt(N), so that it compares the mean over an event's muons with its
    expectation in units of the mean's statistical error. The mean of a thousand muons varies by 1/30 of what one muon
    varies by; without the factor the critic would judge a large bundle as coarsely as a single muon.
    """

    def __init__(self, model: Model, num_features: int) -> None:
        width = model.width
        # 5: the standardised primary (4) and log10 N.
        super().__init__(5, num_features, width, model.critic_layers)
        self.head = nn.Sequential(nn.Linear(2 * width, width), self.act, nn.Linear(width, 1))

    def forward(
        self, features: Float[Tensor, "muons features"], condition: Float[Tensor, "events 5"], ragged: Ragged
    ) -> Float[Tensor, " events"]:
        muons, event = self.mix(features, condition, ragged)
        # An event without muons, a dummy of a padded batch, counts as N = 1, so that its score is finite.
        deviation = self.head[0](torch.cat([ragged.mean(muons), event], dim=1)) * ragged.divisors.sqrt()
        # No sigmoid or other bound: only differences of a Wasserstein critic's scores have a meaning.
        result: Tensor = self.head[1:](deviation)[:, 0]
        return result


class PredecessorGenerator(nn.Module):
    """The predecessor's generator: it computes a context of the event, then each muon by itself."""

    def __init__(self, num_features: int) -> None:
        super().__init__()
        # Sizes and activations are the predecessor's, for comparisons; no setting changes them.
        self.shower_latents, self.muon_latents = 32, 16
        self.context = nn.Sequential(nn.Linear(5 + 32, 128), nn.ReLU(), nn.Linear(128, 256), nn.LayerNorm(256))
        self.local = nn.Sequential(
            nn.Linear(256 + 16, 128), nn.ReLU(), nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, num_features)
        )

    def forward(
        self,
        condition: Float[Tensor, "events 5"],
        shower_noise: Float[Tensor, "events s"],
        muon_noise: Float[Tensor, "muons m"],
        ragged: Ragged,
    ) -> Float[Tensor, "muons features"]:
        context = ragged.broadcast(self.context(torch.cat([condition, shower_noise], dim=1)))
        result: Tensor = self.local(torch.cat([context, muon_noise], dim=1))
        return result


class PredecessorCritic(nn.Module):
    """The predecessor's critic: features of each muon and its primary, the maximum over the muons, then a score."""

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.local = nn.Sequential(nn.Linear(4 + num_features, 64), nn.LeakyReLU(SLOPE), nn.Linear(64, 128))
        self.decision = nn.Sequential(
            nn.Linear(128 + 4, 128), nn.LeakyReLU(SLOPE), nn.Linear(128, 64), nn.LeakyReLU(SLOPE)
        )
        self.out = nn.Linear(64, 1)

    def forward(
        self, features: Float[Tensor, "muons features"], condition: Float[Tensor, "events 5"], ragged: Ragged
    ) -> Float[Tensor, " events"]:
        # The predecessor's critic does not see N.
        primaries = condition[:, :4]
        local = self.local(torch.cat([ragged.broadcast(primaries), features], dim=1))
        highest = ragged.max(local)
        result: Tensor = self.out(self.decision(torch.cat([highest, primaries], dim=1)))[:, 0]
        return result


Generator = SetGenerator | PredecessorGenerator
Critic = SetCritic | PredecessorCritic


def build_networks(model: Model, num_features: int) -> tuple[Generator, Critic]:
    """Return the generator and the critic that the settings name."""
    if model.kind == "predecessor":
        return PredecessorGenerator(num_features), PredecessorCritic(num_features)
    return SetGenerator(model, num_features), SetCritic(model, num_features)
