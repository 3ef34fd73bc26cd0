"""Losses of generator and critic. The unit of loss is the event; every function returns one number per event."""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import softplus

from crmuons.models.networks import Critic
from crmuons.models.ragged import Ragged


def critic_loss(
    real: Float[Tensor, " events"], fake: Float[Tensor, " events"], kind: str = "wasserstein"
) -> Float[Tensor, " events"]:
    """What the critic minimises.

    wasserstein: fake - real (Arjovsky et al. 2017, arXiv:1701.07875, eq. 3). relativistic: softplus(fake - real)
    (Jolicoeur-Martineau 2018, arXiv:1807.00734), real and fake paired by their primary.
    """
    return fake - real if kind == "wasserstein" else softplus(fake - real)


def generator_loss(
    real: Float[Tensor, " events"] | None, fake: Float[Tensor, " events"], kind: str = "wasserstein"
) -> Float[Tensor, " events"]:
    """What the generator minimises; the Wasserstein loss needs no real score."""
    if kind == "wasserstein":
        return -fake
    assert real is not None
    return softplus(real - fake)


def gradient_norms(
    critic: Critic, features: Float[Tensor, "muons features"], condition: Float[Tensor, "events 5"], ragged: Ragged
) -> tuple[Float[Tensor, " events"], Float[Tensor, " events"]]:
    """Scores of the events, and the squared norm of each score's gradient in its muons.

    The norm is over all muons of an event (Gulrajani et al. 2017, arXiv:1704.00028): a shift of N muons alike counts sqrt(N)
    times that of one, as it stands out sqrt(N) times as clearly from the muons' own scatter.
    """
    features = features.detach().requires_grad_()
    scores = critic(features, condition, ragged)
    (gradient,) = torch.autograd.grad(scores.sum(), features, create_graph=True)
    squared = ragged.sum((gradient**2).sum(dim=1, keepdim=True))[:, 0]
    return scores, squared


def one_centred_penalty(squared_norms: Float[Tensor, " events"]) -> Float[Tensor, " events"]:
    """(norm - 1)^2, to be taken on interpolates (Gulrajani et al. 2017, arXiv:1704.00028, eq. 3)."""
    return (torch.sqrt(squared_norms + 1e-12) - 1) ** 2


def interpolate(
    real: Float[Tensor, "muons features"],
    fake: Float[Tensor, "muons features"],
    share: Float[Tensor, " events"],
    ragged: Ragged,
) -> Float[Tensor, "muons features"]:
    """Points between real and fake muons, paired within an event, with one share per event."""
    weight = ragged.broadcast(share[:, None])
    return weight * real + (1 - weight) * fake
