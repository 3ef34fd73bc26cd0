"""The reference step: a plain WGAN step with the structure and layer sizes of the predecessor, written independently.

It pays the costs that our step avoids. Empty events go through every network. Real and fake muons are scored
separately. The generator runs its multiplicity model each time. The critic pools with a scatter over an expanded index.
Every update reads its loss. Its networks differ from models/networks.py: the generator has LeakyReLU, and N is a plain
log10(N + 1).
"""

from itertools import pairwise

import torch
from torch import Tensor, nn

from crmuons.models.eager_optimizers import SGD

NO_MUON = -1e9  # The scatter leaves this value for an event without muons.


class ReferenceGenerator(nn.Module):
    """Layer sizes: multiplicity 4-64-128-64-1, context 37-128-256 with LayerNorm, each muon 272-128-64-3."""

    def __init__(self) -> None:
        super().__init__()
        self.multiplicity = _dense(4, 64, 128, 64, 1)
        self.context = nn.Sequential(_dense(37, 128, 256), nn.LayerNorm(256))
        self.muon = _dense(272, 128, 64, 3)

    def forward(self, primaries: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
        """Return muons of the events [muons, 3], and the predicted log10(N + 1) [events]."""
        log_counts = self.multiplicity(primaries)[:, 0]
        inputs = [primaries, torch.log10(counts[:, None] + 1.0), torch.randn(len(counts), 32, device=counts.device)]
        context = self.context(torch.cat(inputs, dim=1))
        context = torch.repeat_interleave(context, counts, dim=0)
        return self.muon(torch.cat([context, torch.randn(len(context), 16, device=counts.device)], dim=1)), log_counts


class ReferenceCritic(nn.Module):
    """Layer sizes: each muon with its primary 7-64-128, then the maximum by scatter, then 132-128-64-1."""

    def __init__(self) -> None:
        super().__init__()
        self.muon, self.decision = _dense(7, 64, 128), _dense(132, 128, 64, 1)

    def forward(self, primaries: Tensor, muons: Tensor, event: Tensor) -> Tensor:
        """Return the scores [events]."""
        local = self.muon(torch.cat([primaries[event], muons], dim=1))
        highest = torch.full((len(primaries), 128), NO_MUON, device=muons.device)
        highest = highest.scatter_reduce(0, event[:, None].expand_as(local), local, "amax")
        highest = torch.where(highest > NO_MUON / 2, highest, torch.zeros_like(highest))
        return self.decision(torch.cat([highest, primaries], dim=1))[:, 0]


class ReferenceStep:
    """A step: some critic updates and one generator update, all on one batch.

    Args:
        lambda_gp: weight of the gradient penalty (Gulrajani et al. 2017, arXiv:1704.00028, eq. 3); 0 for none.
        n_critic: number of critic updates.
        device: device of the networks.
    """

    def __init__(self, lambda_gp: float, n_critic: int, device: torch.device) -> None:
        self.lambda_gp, self.n_critic = lambda_gp, n_critic
        self.generator, self.critic = ReferenceGenerator().to(device), ReferenceCritic().to(device)
        self.optimizers = [SGD(network.parameters(), 1e-4, momentum=0.5) for network in (self.generator, self.critic)]

    def __call__(self, primaries: Tensor, counts: Tensor, muons: Tensor) -> list[float]:
        """Take a step on standardised primaries [events, 4] and muons [muons, 3], and return its losses."""
        event = torch.repeat_interleave(torch.arange(len(counts), device=counts.device), counts)
        critic_losses = [
            self._move(1, self._critic_loss(primaries, counts, muons, event)) for _ in range(self.n_critic)
        ]
        fake, log_counts = self.generator(primaries, counts)
        error = ((log_counts - torch.log10(counts + 1.0)) ** 2).mean()
        return [*critic_losses, self._move(0, error - self.critic(primaries, fake, event).mean())]

    def _critic_loss(self, primaries: Tensor, counts: Tensor, muons: Tensor, event: Tensor) -> Tensor:
        with torch.no_grad():
            fake, _ = self.generator(primaries, counts)
        loss = self.critic(primaries, fake, event).mean() - self.critic(primaries, muons, event).mean()
        return loss + self.lambda_gp * self._penalty(primaries, muons, fake, event) if self.lambda_gp else loss

    def _penalty(self, primaries: Tensor, real: Tensor, fake: Tensor, event: Tensor) -> Tensor:
        share = torch.rand(len(primaries), 1, device=real.device)[event]
        points = (share * real + (1 - share) * fake).requires_grad_()
        scores = self.critic(primaries, points, event)
        (gradient,) = torch.autograd.grad(scores.sum(), points, create_graph=True)
        squared = torch.zeros(len(primaries), device=real.device).index_add(0, event, (gradient**2).sum(1))
        return ((torch.sqrt(squared + 1e-12) - 1) ** 2).mean()

    def _move(self, number: int, loss: Tensor) -> float:
        for optimizer in self.optimizers:
            optimizer.zero_grad()
        loss.backward()
        self.optimizers[number].step()
        return loss.item()


def _dense(*widths: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for width, following in pairwise(widths):
        layers += [nn.Linear(width, following), nn.LeakyReLU(0.2)]
    return nn.Sequential(*layers[:-1])
