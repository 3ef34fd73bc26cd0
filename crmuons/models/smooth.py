"""The smooth further features of a muon, such as its direction: their density, given its energy, radius and event."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from crmuons.models.extra import MOST_SHARED, draw_normal_score, gaussians, mix_shared
from crmuons.models.formulas import SLOPE

WIDTH = 32
COMPONENTS = 4  # One for the middle, others for tails and for what hides in a ring (across the radius, given along it).


class SmoothFeatures(nn.Module):
    """Densities of the columns of the smooth further features, trained by their likelihood.

    The density of a muon's columns is a product over them: each is a mixture of Gaussians, given the condition, the columns
    of energy and radius, and the columns before it. Given their energies and radii, the muons of an event are
    nearly independent. What they share beyond (the height of the shower) is a correlation of each column's quantiles: a
    Gaussian copula, which leaves the density of a muon as it is, and is learned from pairs of muons.

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
        self.shared = nn.Linear(5, len(self.order))
        nn.init.zeros_(self.shared.weight)
        nn.init.constant_(self.shared.bias, -4.0)  # A correlation of 0.02 at the start of a training.

    def loss(
        self, columns: Float[Tensor, "muons columns"], condition: Float[Tensor, "muons 5"]
    ) -> Float[Tensor, " muons"]:
        """Return the negative log likelihood of each muon's further columns, without the constant of the Gaussians."""
        return self._losses_and_scores(columns, condition)[0]

    def pair_loss(
        self, columns: Float[Tensor, "2*pairs columns"], condition: Float[Tensor, "2*pairs 5"], same: Tensor
    ) -> Float[Tensor, " 2*pairs"]:
        """Return `loss`, and for pairs of one event also the negative log likelihood of the copula, half for each muon.

        Args:
            columns: of the first muons of all pairs, then of the second ones.
            condition: of their events.
            same: 1 for each pair of two muons of one event, else 0 [pairs].
        """
        losses, scores = self._losses_and_scores(columns, condition)
        first, second = scores.chunk(2, dim=1)
        correlation = self.correlation(condition[: len(same)]).t()
        rest = 1 - correlation.square()
        # The logarithm of the density of two normal scores over that of independent ones.
        squares = correlation.square() * (first.square() + second.square()) - 2 * correlation * first * second
        of_pairs = (0.5 * rest.log() + 0.5 * squares / rest).sum(0) * same
        return losses + 0.5 * torch.cat([of_pairs, of_pairs])

    def correlation(self, condition: Float[Tensor, "events 5"]) -> Float[Tensor, "events further"]:
        """Return the correlation of each drawn column within an event."""
        return MOST_SHARED * torch.sigmoid(self.shared(condition))

    def _losses_and_scores(self, columns: Tensor, condition: Tensor) -> tuple[Tensor, Tensor]:
        """Return the loss of each muon, and the normal scores of its columns' quantiles, without a gradient [further, muons]."""
        # unbind and stack, because a list of numbers as an index is copied to the device.
        energy, radius, *further = columns.unbind(1)
        ordered = [further[number] for number in self.order]
        inputs = torch.cat([condition, torch.stack([energy, radius, *ordered], dim=1)], dim=1)
        losses, scores = [], []
        for before, values in enumerate(ordered):
            logits, means, log_spreads = gaussians(self._outputs(before, inputs[:, : 7 + before]))
            distances, log_weights = (values - means) * (-log_spreads).exp(), logits.log_softmax(0)
            losses.append(-torch.logsumexp(log_weights - 0.5 * distances.square() - log_spreads, dim=0))
            with torch.no_grad():
                below = (log_weights.exp() * torch.special.ndtr(distances)).sum(0)
                scores.append(torch.special.ndtri(below.clamp(1e-6, 1 - 1e-6)))
        return torch.stack(losses).sum(0), torch.stack(scores)

    def draw(
        self,
        columns: Float[Tensor, "muons 2"],
        condition: Float[Tensor, "muons 5"],
        normal: Float[Tensor, "muons 2*further"],
        shared: Float[Tensor, "muons 2*further"],
    ) -> Float[Tensor, "muons columns"]:
        """Return the columns of energy, radius and, drawn from normal numbers of muons and of events, all further ones."""
        correlation, number = self.correlation(condition), len(self.order)
        mixed = mix_shared(normal, shared, torch.cat([correlation, correlation], dim=1))
        drawn: list[Tensor] = []
        for before in range(number):
            inputs = torch.cat([condition, columns, *(column[:, None] for column in drawn)], dim=1)
            drawn.append(draw_normal_score(self._outputs(before, inputs), mixed[:, before], mixed[:, number + before]))
        further = [drawn[self.order.index(at)] for at in range(number)]
        return torch.cat([columns, torch.stack(further, dim=1)], dim=1)

    def _outputs(self, number: int, inputs: Tensor) -> Tensor:
        """Return the outputs of a network [outputs, muons]: sums over rows of six numbers are slow the other way round."""
        *hidden, last = self.networks[number].children()
        assert isinstance(last, nn.Linear)
        for layer in hidden:
            inputs = layer(inputs)
        return torch.addmm(last.bias[:, None], last.weight, inputs.t())
