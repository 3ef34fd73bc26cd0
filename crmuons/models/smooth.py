"""The smooth further features of a muon, such as its direction: their density, given its energy, radius and event."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from crmuons.models.extra import draw_normal_score, gaussians
from crmuons.models.formulas import SLOPE

WIDTH = 32
COMPONENTS = 4  # One for the middle, others for tails and for what hides in a ring (across the radius, given along it).


class SmoothFeatures(nn.Module):
    """Densities of the columns of the smooth further features, trained by their likelihood.

    The density of a muon's columns is a product over them: each is a mixture of Gaussians, given the condition, the columns
    of energy and radius, and the columns before it. Given their energies and radii, the muons of an event are
    nearly independent, so a critic of whole events adds noise and little else.

    Args:
        order: the numbers of the columns behind those of energy and radius, in the order in which they are drawn.
    """

    def __init__(self, order: Sequence[int]) -> None:
        super().__init__()
        self.order = list(order)
        # LeakyReLU, because SiLU takes 33 ns a muon and column, a quarter of the whole. 7: the standardised primary, log10 N,
        # energy and radius.
        self.networks = nn.ModuleList(
            nn.Sequential(
                nn.Linear(7 + before, WIDTH),
                nn.LeakyReLU(SLOPE),
                nn.Linear(WIDTH, WIDTH),
                nn.LeakyReLU(SLOPE),
                nn.Linear(WIDTH, 3 * COMPONENTS),
            )
            for before in range(len(self.order))
        )

    def loss(
        self, columns: Float[Tensor, "muons columns"], condition: Float[Tensor, "muons 5"]
    ) -> Float[Tensor, " muons"]:
        """Return the negative log likelihood of each muon's further columns, without the constant of the Gaussians."""
        # unbind and stack, because a list of numbers as an index is copied to the device.
        energy, radius, *further = columns.unbind(1)
        ordered = [further[number] for number in self.order]
        inputs = torch.cat([condition, torch.stack([energy, radius, *ordered], dim=1)], dim=1)
        losses = []
        for before, values in enumerate(ordered):
            logits, means, log_spreads = gaussians(self._outputs(before, inputs[:, : 7 + before]))
            exponents = -0.5 * ((values - means) * (-log_spreads).exp()).square()
            losses.append(-torch.logsumexp(logits.log_softmax(0) + exponents - log_spreads, dim=0))
        return torch.stack(losses).sum(0)

    def draw(
        self,
        columns: Float[Tensor, "muons 2"],
        condition: Float[Tensor, "muons 5"],
        uniform: Float[Tensor, "muons further"],
        normal: Float[Tensor, "muons further"],
    ) -> Float[Tensor, "muons columns"]:
        """Return the columns of energy, radius and, drawn from uniform and normal numbers, all further ones."""
        drawn: list[Tensor] = []
        for before in range(len(self.order)):
            inputs = torch.cat([condition, columns, *(column[:, None] for column in drawn)], dim=1)
            drawn.append(draw_normal_score(self._outputs(before, inputs), uniform[:, before], normal[:, before]))
        further = [drawn[self.order.index(number)] for number in range(len(self.order))]
        return torch.cat([columns, torch.stack(further, dim=1)], dim=1)

    def _outputs(self, number: int, inputs: Tensor) -> Tensor:
        """Return the outputs of a network [outputs, muons]: sums over rows of six numbers are slow the other way round."""
        *hidden, last = self.networks[number].children()
        assert isinstance(last, nn.Linear)
        for layer in hidden:
            inputs = layer(inputs)
        return torch.addmm(last.bias[:, None], last.weight, inputs.t())
