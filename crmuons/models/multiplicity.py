"""The number of muons N at the detector: its distribution given the primary."""

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from crmuons.config import Model
from crmuons.models.formulas import mixture_parameters, round_counts, sample_mixture


class MixtureMultiplicity(nn.Module):
    """A mixture of negative binomials, trained by its exact likelihood.

    A gamma-distributed shower factor times Poisson counting gives a negative binomial, and thinning by a cut keeps its
    shape parameter. The mixture covers departures from that, such as light and heavy first interactions.
    """

    def __init__(self, width: int, components: int) -> None:
        super().__init__()
        self.components = components
        self.network = nn.Sequential(
            nn.Linear(4, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, 3 * components)
        )

    def parameters_of(
        self, condition: Float[Tensor, "events 4"]
    ) -> tuple[Float[Tensor, "events k"], Float[Tensor, "events k"], Float[Tensor, "events k"]]:
        """Return log weights, log means and shapes of the components."""
        return mixture_parameters(self.network(condition))

    def log_prob(
        self, condition: Float[Tensor, "events 4"], counts: Int64[Tensor, " events"]
    ) -> Float[Tensor, " events"]:
        """Return ln P(N | primary), in double precision: in single precision, the difference of the lgamma terms is lost."""
        log_weights, log_means, shapes = self.parameters_of(condition)
        # lgamma(N + r) - lgamma(N + 1) is a difference of numbers near N ln N; float32 keeps only seven of their digits.
        n = counts.double()[:, None]
        # ln P(N) = ln C(N + r - 1, N) + N ln(mu / (mu + r)) + r ln(r / (mu + r)), with mean mu and shape r.
        # The ratios are differences of logarithms: r / (mu + r) would round to 1 for a nearly Poissonian component.
        log_total = torch.logaddexp(log_means, shapes.log())
        log_binomial = torch.lgamma(n + shapes) - torch.lgamma(shapes) - torch.lgamma(n + 1)
        log_component = log_binomial + n * (log_means - log_total) + shapes * (shapes.log() - log_total)
        return torch.logsumexp(log_weights + log_component, dim=1)

    def loss(self, condition: Float[Tensor, "events 4"], counts: Int64[Tensor, " events"]) -> Float[Tensor, " events"]:
        """Return the negative log likelihood of each event."""
        return -self.log_prob(condition, counts)

    def sample(
        self, condition: Float[Tensor, "events 4"], generator: torch.Generator | None = None
    ) -> Int64[Tensor, " events"]:
        """Draw N for each event."""
        return sample_mixture(*self.parameters_of(condition), generator)


class RegressorMultiplicity(nn.Module):
    """The predecessor's regression of log10(N + 1) by least squares, rounded. N has no shower-to-shower spread."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.network = nn.Sequential(
            nn.Linear(4, width), nn.ReLU(), nn.Linear(width, 2 * width), nn.ReLU(), nn.Linear(2 * width, 1)
        )

    def loss(self, condition: Float[Tensor, "events 4"], counts: Int64[Tensor, " events"]) -> Float[Tensor, " events"]:
        """Return the squared error of log10(N + 1) of each event."""
        return (self.network(condition)[:, 0] - torch.log10(counts.float() + 1)) ** 2

    def sample(
        self, condition: Float[Tensor, "events 4"], generator: torch.Generator | None = None
    ) -> Int64[Tensor, " events"]:
        """Return the rounded regression: always the same N for the same primary."""
        del generator
        return round_counts(self.network(condition)[:, 0])


Multiplicity = MixtureMultiplicity | RegressorMultiplicity


def build_multiplicity(model: Model) -> Multiplicity:
    """Return the multiplicity model that the settings name."""
    if model.multiplicity == "mixture":
        return MixtureMultiplicity(model.multiplicity_width, model.multiplicity_components)
    return RegressorMultiplicity(model.multiplicity_width // 2)
