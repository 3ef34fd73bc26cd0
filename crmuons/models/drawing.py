"""Draw the further features of muons from their densities and probabilities: a part of bundles.py, see exported.py.

The networks of models/smooth.py and models/discrete.py, written for generation. Python 3.8, torch and numpy alone.
"""

from torch import Tensor, addmm, stack
from torch.nn.functional import leaky_relu_, silu

from crmuons.models.extra import ExtraFeatures, draw_level, draw_normal_score
from crmuons.models.formulas import SLOPE


class Drawing:
    """The networks that further features are drawn with, as functions of their weights.

    Args:
        declared: name and kind of each further feature.
        weights: weights of all networks by name.

    Attributes:
        extra: the features.
        levels: values of each discrete feature.
        uniforms, normals: how many uniform and normal numbers each muon takes. The uniform ones are for the discrete
            features first.
    """

    def __init__(self, declared: "list[tuple[str, str]]", weights: "dict[str, Tensor]") -> None:
        self.extra = ExtraFeatures(declared, "features.extra_scaled" in weights)
        self.weights = weights
        self.levels = [weights[f"features.levels_{number}"] for number in range(len(self.extra.discrete))]
        self.normals = len(self.extra.order) if "features.extra_drawn" in weights else 0  # Or the generator makes them.
        self.uniforms = len(self.levels) + self.normals

    def draw(
        self, features: Tensor, condition: Tensor, event: Tensor, numbers: "tuple[Tensor, ...]"
    ) -> "tuple[list[Tensor], list[Tensor]]":
        """Return the columns of the smooth features, and the values of the discrete ones.

        Args:
            features: what the generator made [features, muons].
            condition: standardised primaries and log10 N of the events.
            event: event of each muon.
            numbers: uniform, then normal numbers [muons, numbers], as far as there are any.
        """
        columns = list(features.unbind(0))
        drawn: list[Tensor] = []  # Python does not evaluate it, so 3.8 accepts it.
        for place in range(self.normals):
            name = f"smooth.networks.{place}"
            hidden = leaky_relu_(self._first(name, [*columns, *drawn], condition, event), SLOPE)
            hidden = addmm(self.weights[f"{name}.2.bias"], hidden, self.weights[f"{name}.2.weight"].t())
            outputs = self._last(f"{name}.4", leaky_relu_(hidden, SLOPE))
            drawn.append(draw_normal_score(outputs, numbers[0][:, len(self.levels) + place], numbers[1][:, place]))
        if self.normals:
            columns += [drawn[self.extra.order.index(number)] for number in range(self.normals)]
        return columns[2:], self._draw_levels(columns, condition, event, numbers)

    def _draw_levels(
        self, columns: "list[Tensor]", condition: Tensor, event: Tensor, numbers: "tuple[Tensor, ...]"
    ) -> "list[Tensor]":
        if not self.levels:
            return []
        logits = self._last("discrete.network.2", silu(self._first("discrete.network", columns, condition, event)))
        parts = logits.split([len(levels) for levels in self.levels])
        return [
            draw_level(part, levels, numbers[0][:, at])
            for at, (part, levels) in enumerate(zip(parts, self.levels))  # noqa: B905  # for Python 3.8
        ]

    def _first(self, name: str, columns: "list[Tensor]", condition: Tensor, event: Tensor) -> Tensor:
        """Return the first layer of a network [muons, width] for columns of the muons and the condition of their events."""
        weight, bias = self.weights[f"{name}.0.weight"], self.weights[f"{name}.0.bias"]
        of_event = addmm(bias, condition, weight[:, :5].t()).index_select(0, event)
        return of_event.addmm_(stack(columns).t(), weight[:, 5:].t())

    def _last(self, name: str, hidden: Tensor) -> Tensor:
        """Return the outputs of a network [outputs, muons], as `StandaloneModel._set`: a softmax along rows of two takes 0.2 us."""
        return addmm(self.weights[f"{name}.bias"][:, None], self.weights[f"{name}.weight"], hidden.t())
