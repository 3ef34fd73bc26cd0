"""Draw the further features of muons from their densities and probabilities: a part of bundles.py, see exported.py.

It has the networks of models/smooth.py and models/discrete.py, written for generation. It needs only Python 3.8, torch
and numpy.
"""

from typing import Any

import torch
from torch import Tensor, addmm, stack
from torch.nn.functional import leaky_relu_, silu

from crmuons.models.extra import MOST_SHARED, ExtraFeatures, draw_level, draw_normal_score
from crmuons.models.formulas import SLOPE


class Drawing:
    """The networks that further features are drawn with, as functions of their weights.

    Args:
        declared: name and kind of each further feature.
        weights: weights of all networks by name.

    Attributes:
        extra: the features.
        levels: values of each discrete feature.
        smooth: number of columns that are drawn; 0 if the generator makes them.
        noise: names of the numbers that `draw` takes: `uniform`, `normal` and `shared`, as far as needed.
    """

    def __init__(self, declared: "list[tuple[str, str]]", weights: "dict[str, Tensor]") -> None:
        self.extra = ExtraFeatures(declared, "features.extra_scaled" in weights)
        self.weights = weights
        self.levels = [weights[f"features.levels_{number}"] for number in range(len(self.extra.discrete))]
        self.smooth = len(self.extra.order) if "features.extra_drawn" in weights else 0
        self.noise = ("uniform", "normal", "shared") if self.smooth else ("uniform",) if self.levels else ()

    def numbers(self, events: int, muons: int, kwargs: "dict[str, Any]") -> "tuple[Tensor, ...]":
        """Draw the random numbers for `draw`.

        `uniform` [muons, discrete features + k] is for the discrete features and then the k drawn columns; `normal`
        [muons, k] and `shared` [events, k], both normal, are for the drawn columns.
        """
        if not self.noise:
            return ()
        uniform = torch.rand(muons, len(self.levels) + self.smooth, **kwargs)
        if not self.smooth:
            return (uniform,)
        return uniform, torch.randn(muons, self.smooth, **kwargs), torch.randn(events, self.smooth, **kwargs)

    def draw(
        self, features: Tensor, condition: Tensor, event: Tensor, numbers: "tuple[Tensor, ...]"
    ) -> "tuple[list[Tensor], list[Tensor]]":
        """Return the columns of the smooth features, and the values of the discrete ones.

        Args:
            features: what the generator made [features, muons].
            condition: standardised primaries and log10 N of the events.
            event: event of each muon.
            numbers: the random numbers that `numbers` draws.
        """
        columns = list(features.unbind(0))
        drawn: list[Tensor] = []  # Python does not evaluate this annotation, so 3.8 accepts it.
        mixed = self._mixed(condition, event, *numbers[1:]) if self.smooth else []
        for place in range(self.smooth):
            name = f"smooth.networks.{place}"
            hidden = leaky_relu_(self._first(name, [*columns, *drawn], condition, event), SLOPE)
            hidden = addmm(self.weights[f"{name}.2.bias"], hidden, self.weights[f"{name}.2.weight"].t())
            outputs = self._last(f"{name}.4", leaky_relu_(hidden, SLOPE))
            drawn.append(draw_normal_score(outputs, numbers[0][:, len(self.levels) + place], mixed[place]))
        columns += [drawn[self.extra.order.index(number)] for number in range(self.smooth)]
        return columns[2:], self._draw_levels(columns, condition, event, numbers[0]) if self.levels else []

    def _mixed(self, condition: Tensor, event: Tensor, normal: Tensor, shared: Tensor) -> "list[Tensor]":
        """Return normal numbers [k, muons] that correlate within events."""
        logits = addmm(self.weights["smooth.shared.bias"], condition, self.weights["smooth.shared.weight"].t())
        correlation = MOST_SHARED * torch.sigmoid(logits)
        of_events = torch.cat([(1 - correlation).sqrt(), correlation.sqrt() * shared], dim=1)
        own, common = of_events.index_select(0, event).t().chunk(2)
        return list((normal.t() * own + common).unbind(0))

    def _draw_levels(
        self, columns: "list[Tensor]", condition: Tensor, event: Tensor, uniform: Tensor
    ) -> "list[Tensor]":
        logits = self._last("discrete.network.2", silu(self._first("discrete.network", columns, condition, event)))
        parts = logits.split([len(levels) for levels in self.levels])
        return [
            draw_level(part, levels, uniform[:, at])
            for at, (part, levels) in enumerate(zip(parts, self.levels))  # noqa: B905  # for Python 3.8
        ]

    def _first(self, name: str, columns: "list[Tensor]", condition: Tensor, event: Tensor) -> Tensor:
        """Return the first layer of a network [muons, width] for columns of the muons and the condition of their events."""
        weight, bias = self.weights[f"{name}.0.weight"], self.weights[f"{name}.0.bias"]
        of_event = addmm(bias, condition, weight[:, :5].t()).index_select(0, event)
        return of_event.addmm_(stack(columns).t(), weight[:, 5:].t())

    def _last(self, name: str, hidden: Tensor) -> Tensor:
        """Return the outputs of a network [outputs, muons], transposed: a softmax along rows of two would take 0.2 us."""
        return addmm(self.weights[f"{name}.bias"][:, None], self.weights[f"{name}.weight"], hidden.t())
