"""The baseline critic's passes by hand. Its maximum over an event's muons is frozen like a slope: the muon that had it stays."""

import torch
from torch import Tensor
from torch.nn.functional import leaky_relu_, linear

from crmuons.frozen import Weights, sloped, sloped_
from crmuons.models import SLOPE, BaselineCritic
from crmuons.ragged import Ragged


class BaselinePasses:
    """One batch through the baseline critic; see passes.py, whose names these are. `event` is the primary."""

    def __init__(self, critic: BaselineCritic, ragged: Ragged, dtype: torch.dtype) -> None:
        self.weights, self.ragged = Weights.of(critic, dtype), ragged

    def forward(self, features: Tensor, event: Tensor) -> Tensor:
        """Scores of the events."""
        w = self.weights
        of_event, of_muon = self._first(event)
        rows = self.ragged.spread(linear(event, of_event, w["local.0.bias"]))
        self.hidden = leaky_relu_(rows.addmm_(features, of_muon.T), SLOPE)
        local = linear(self.hidden, w["local.2.weight"], w["local.2.bias"])
        self.highest = self.ragged.argmax(local)
        pooled = torch.cat([local.gather(0, self.highest), event], dim=1)
        self.one = leaky_relu_(linear(pooled, w["decision.0.weight"], w["decision.0.bias"]), SLOPE)
        self.two = leaky_relu_(linear(self.one, w["decision.2.weight"], w["decision.2.bias"]), SLOPE)
        return linear(self.two, w["out.weight"], w["out.bias"])[:, 0]

    def adjoint(self) -> Tensor:
        """The scores' gradient in the features."""
        w = self.weights
        self.d_two = sloped(w["out.weight"].expand_as(self.two), self.two)
        self.d_one = sloped_(self.d_two @ w["decision.2.weight"], self.one)
        channels = self.highest.shape[1]
        self.d_highest, d_event = (self.d_one @ w["decision.0.weight"]).tensor_split([channels], dim=1)
        self.d_local = self.hidden.new_zeros(len(self.hidden), channels).scatter_(0, self.highest, self.d_highest)
        self.d_hidden = sloped_(self.d_local @ w["local.2.weight"], self.hidden)
        self.d_rows = self.ragged.sum(self.d_hidden)
        of_event, of_muon = self._first(d_event)
        self.d_event = d_event + self.d_rows @ of_event
        return self.d_hidden @ of_muon

    def weight_gradients(self, features: Tensor, event: Tensor, share: Tensor) -> list[Tensor]:
        """D^T z of every weight, in their order."""
        w = self.weights
        of_event, of_muon = self._first(event)
        rows = self.ragged.spread((share * w["local.0.bias"]).addmm_(event, of_event.T))
        hidden = sloped_(rows.addmm_(features, of_muon.T), self.hidden)
        local = (hidden @ w["local.2.weight"].T).gather(0, self.highest) + share * w["local.2.bias"]
        pooled = torch.cat([local, event], dim=1)
        one = sloped_((share * w["decision.0.bias"]).addmm_(pooled, w["decision.0.weight"].T), self.one)
        two = sloped_((share * w["decision.2.bias"]).addmm_(one, w["decision.2.weight"].T), self.two)
        return [
            *(torch.cat([self.d_rows.T @ event, self.d_hidden.T @ features], dim=1), (self.d_rows.T @ share)[:, 0]),
            *(self.d_local.T @ hidden, (self.d_highest.T @ share)[:, 0]),
            *(self.d_one.T @ pooled, (self.d_one.T @ share)[:, 0]),
            *(self.d_two.T @ one, (self.d_two.T @ share)[:, 0]),
            *(two.sum(0, keepdim=True), share.sum(0)),
        ]

    def _first(self, event: Tensor) -> tuple[Tensor, Tensor]:
        """The first layer's weights of the event's and of the muon's numbers."""
        weight = self.weights["local.0.weight"]
        return weight[:, : event.shape[1]], weight[:, event.shape[1] :]
