"""The smooth further features of a muon, such as its direction: their density, given its energy, radius and event."""

from collections.abc import Iterator, Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from crmuons.models.extra import MOST_SHARED, draw_normal_score, gaussians
from crmuons.models.formulas import SLOPE

WIDTH = 32
COMPONENTS = 4  # One for the middle, others for tails and for rings: across the radius, given the part along it.


class SmoothFeatures(nn.Module):
    """Densities of the columns of the smooth further features, trained by their likelihood.

    The density of a muon's columns is a product over them: each is a mixture of Gaussians, given the condition, the columns
    of energy and radius, and the columns before it. Given their energies and radii, the muons of an event are nearly
    independent. They also share the height of the shower. Therefore the normal numbers that the Gaussians of a column scale
    are correlated within an event. The correlation is learned from pairs of muons, because it does not change the density of
    a single muon.

    Args:
        order: numbers of the columns after energy and radius, in the order in which they are drawn.
    """

    def __init__(self, order: Sequence[int]) -> None:
        super().__init__()
        self.order = list(order)
        # LeakyReLU, because SiLU would take 33 ns a muon and column, a quarter of the whole time. 7: the standardised primary
        # (4), log10 N, energy and radius.
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
        losses = []
        for log_weights, distances in self._mixtures(columns, condition):
            losses.append(-torch.logsumexp(log_weights - 0.5 * distances.square(), dim=0))
        return torch.stack(losses).sum(0)

    def pair_loss(
        self, columns: Float[Tensor, "2*pairs columns"], condition: Float[Tensor, "2*pairs 5"], same: Tensor
    ) -> Float[Tensor, " 2*pairs"]:
        """Return the negative log likelihood of pairs of muons, half of it for each muon.

        Args:
            columns: columns of the first muons of all pairs, then of the second muons.
            condition: condition of their events.
            same: whether the two muons of a pair are in one event [pairs]; if not, the pair loss equals `loss`.
        """
        correlations = (self.correlation(condition[: len(same)]) * same[:, None]).unbind(1)
        losses = []
        for (log_weights, distances), correlation in zip(self._mixtures(columns, condition), correlations, strict=True):
            # Every Gaussian of the first muon with every Gaussian of the second, [k, k, pairs].
            first, second = distances[:, None, : len(same)], distances[None, :, len(same) :]
            weights = log_weights[:, None, : len(same)] + log_weights[None, :, len(same) :]
            rest = 1 - correlation.square()
            squares = first.square() + second.square() - 2 * correlation * first * second
            of_pairs = torch.logsumexp((weights - 0.5 * squares / rest).flatten(0, 1), dim=0) - 0.5 * rest.log()
            losses.append(-0.5 * of_pairs)
        of_muons = torch.stack(losses).sum(0)
        return torch.cat([of_muons, of_muons])

    def correlation(self, condition: Float[Tensor, "events 5"]) -> Float[Tensor, "events further"]:
        """Return the correlation of each drawn column within an event."""
        return MOST_SHARED * torch.sigmoid(self.shared(condition))

    def _mixtures(self, columns: Tensor, condition: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield, for each column in the order drawn, the log of weight / width, and the distance / width, of its Gaussians.

        Both are [k, muons].
        """
        # unbind and stack, because an index that is a list of numbers would be copied to the device.
        energy, radius, *further = columns.unbind(1)
        ordered = [further[number] for number in self.order]
        inputs = torch.cat([condition, torch.stack([energy, radius, *ordered], dim=1)], dim=1)
        for before, values in enumerate(ordered):
            logits, means, log_spreads = gaussians(self._outputs(before, inputs[:, : 7 + before]))
            yield logits.log_softmax(0) - log_spreads, (values - means) * (-log_spreads).exp()

    def draw(
        self,
        columns: Float[Tensor, "muons 2"],
        condition: Float[Tensor, "muons 5"],
        uniform: Float[Tensor, "muons further"],
        normal: Float[Tensor, "muons further"],
        shared: Float[Tensor, "muons further"],
    ) -> Float[Tensor, "muons columns"]:
        """Return the columns of energy and radius, and all further columns, drawn from the given random numbers."""
        correlation, number = self.correlation(condition), len(self.order)
        mixed = (1 - correlation).sqrt() * normal + correlation.sqrt() * shared
        drawn: list[Tensor] = []
        for before in range(number):
            inputs = torch.cat([condition, columns, *(column[:, None] for column in drawn)], dim=1)
            drawn.append(draw_normal_score(self._outputs(before, inputs), uniform[:, before], mixed[:, before]))
        further = [drawn[self.order.index(at)] for at in range(number)]
        return torch.cat([columns, torch.stack(further, dim=1)], dim=1)

    def _outputs(self, number: int, inputs: Tensor) -> Tensor:
        """Return the outputs of a network [outputs, muons]. Transposed, because sums over short rows are slow."""
        *hidden, last = self.networks[number].children()
        assert isinstance(last, nn.Linear)
        for layer in hidden:
            inputs = layer(inputs)
        return torch.addmm(last.bias[:, None], last.weight, inputs.t())
