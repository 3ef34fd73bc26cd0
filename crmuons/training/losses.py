"""Losses of generator and critic. Every function returns one number per event."""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import softplus

from crmuons.models.ragged import Ragged


def critic_loss(
    real: Float[Tensor, " events"], fake: Float[Tensor, " events"], kind: str = "wasserstein"
) -> Float[Tensor, " events"]:
    """Return what the critic minimises, per event.

    wasserstein: fake - real (Arjovsky et al. 2017, arXiv:1701.07875, eq. 3). relativistic: softplus(fake - real)
    (Jolicoeur-Martineau 2018, arXiv:1807.00734), where a real and a fake event have the same primary.
    """
    # softplus is bounded below: once the critic separates a pair, its gradient vanishes and no longer drives the
    # scores.
    return fake - real if kind == "wasserstein" else softplus(fake - real)


def generator_loss(
    real: Float[Tensor, " events"] | None, fake: Float[Tensor, " events"], kind: str = "wasserstein"
) -> Float[Tensor, " events"]:
    """Return what the generator minimises, per event; the Wasserstein loss needs no real scores."""
    if kind == "wasserstein":
        # The real scores do not depend on the generator, so they drop out of its gradient.
        return -fake
    assert real is not None
    return softplus(real - fake)


def one_centred_penalty(squared_norms: Float[Tensor, " events"]) -> Float[Tensor, " events"]:
    """Return (norm - 1)^2, for norms on interpolates (Gulrajani et al. 2017, arXiv:1704.00028, eq. 3)."""
    # The derivative of the root is infinite at 0: one event with a flat score would make all weights NaN.
    return (torch.sqrt(squared_norms + 1e-12) - 1) ** 2


def interpolate(
    real: Float[Tensor, "muons features"],
    fake: Float[Tensor, "muons features"],
    share: Float[Tensor, " events"],
    ragged: Ragged,
) -> Float[Tensor, "muons features"]:
    """Return points between real and fake muons, paired within an event, with one share per event."""
    weight = ragged.broadcast(share[:, None])
    return weight * real + (1 - weight) * fake
