"""The discrete features of a muon, such as its charge: their probabilities, given its other features and its event."""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

WIDTH = 32


class DiscreteFeatures(nn.Module):
    """Probabilities of the levels of each discrete feature, trained by their likelihood.

    A generator's output is smooth, so a critic would easily distinguish its values from the levels. The levels of an
    event's muons are independent, given their other features.

    Args:
        num_features: other features of a muon.
        levels: number of levels of each discrete feature.
    """

    def __init__(self, num_features: int, levels: Sequence[int]) -> None:
        super().__init__()
        self.levels = list(levels)
        # 5: the standardised primary and log10 N.
        self.network = nn.Sequential(nn.Linear(5 + num_features, WIDTH), nn.SiLU(), nn.Linear(WIDTH, sum(levels)))

    def loss(
        self,
        features: Float[Tensor, "muons features"],
        condition: Float[Tensor, "muons 5"],
        numbers: Sequence[Int64[Tensor, " muons"]],
    ) -> Float[Tensor, "muons 1"]:
        """Return the negative log likelihood of each muon's levels, given by their numbers."""
        parts = self.network(torch.cat([condition, features], dim=1)).split(self.levels, dim=1)
        pairs = zip(parts, numbers, strict=True)
        losses = [nn.functional.cross_entropy(logits, number, reduction="none") for logits, number in pairs]
        return torch.stack(losses, dim=1).sum(dim=1, keepdim=True)
