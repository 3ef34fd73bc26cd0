"""The baseline critic's passes by hand, with events of one muon apart.

The maximum over one muon is that muon, so for such an event the layers before and behind the maximum are one linear map. The
two weights are multiplied once, [128 x 128] by [128 x 64], and not for each event: half of the arithmetic where most events have
one muon. For the others the maximum is frozen like a slope: the muon that had it stays, and muons that share it share the signal.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import leaky_relu_, linear

from crmuons.models.gradients.linearized import Weights, leaky_relu_grad, leaky_relu_grad_
from crmuons.models.networks import SLOPE, PredecessorCritic
from crmuons.models.ragged import Ragged

PRIMARY = 4  # Numbers of a primary; in front of a muon's own ones.


class Values(NamedTuple):
    """What is in front of each layer, events of one muon first.

    Attributes:
        share: what takes the place of the 1 that multiplies a bias.
        muons: primary, share and features of each muon.
        hidden: of each muon.
        single, several: in front of the decision, hidden numbers or maxima, then primary and share.
        one, two: in the decision.
    """

    share: Tensor
    muons: Tensor
    hidden: Tensor
    single: Tensor
    several: Tensor
    one: Tensor
    two: Tensor


class BaselinePasses:
    """One batch through the baseline critic; see passes.py, whose names these are. `event` is the primary."""

    def __init__(self, critic: PredecessorCritic, ragged: Ragged, dtype: torch.dtype) -> None:
        self.weights = w = Weights.of(critic, dtype)
        self.ragged, self.layout = ragged, ragged.singletons_first
        self.of_highest, self.of_event = w["decision.0.weight"].split([len(w["local.2.bias"]), PRIMARY], dim=1)
        self.of_one = self.of_highest @ w["local.2.weight"]  # Through the maximum of one muon.

    def forward(self, features: Tensor, event: Tensor) -> Tensor:
        """Scores of the events."""
        ones = torch.ones_like(event[:, :1])
        self.values = self._pass(features, event, ones, lambda _, values: leaky_relu_(values, SLOPE), self._highest)
        scores = linear(self.values.two, self.weights["out.weight"], self.weights["out.bias"])[:, 0]
        return torch.empty_like(scores).index_copy_(0, self.layout.events, scores)

    def signals(self, seed: Tensor) -> None:
        """What comes back to each layer where a score pulls by its seed [events, 1]."""
        w, singles, values = self.weights, self.layout.num_single, self.values
        self.seed = seed.index_select(0, self.layout.events)
        self.d_two = leaky_relu_grad(self.seed * w["out.weight"], values.two)
        self.d_one = leaky_relu_grad_(self.d_two @ w["decision.2.weight"], values.one)
        d_highest = (self.d_one[singles:] @ self.of_highest) / self.holders
        self.d_local = self.layout.several.broadcast(d_highest).mul_(self.holds)
        self.d_hidden = torch.empty_like(values.hidden)
        torch.mm(self.d_one[:singles], self.of_one, out=self.d_hidden[:singles])
        torch.mm(self.d_local, w["local.2.weight"], out=self.d_hidden[singles:])
        leaky_relu_grad_(self.d_hidden, values.hidden)

    def adjoint(self) -> Tensor:
        """The scores' gradient in the features."""
        self.signals(torch.ones_like(self.values.share))
        return self.d_features

    @property
    def d_features(self) -> Tensor:
        """The signals in front of the muons."""
        gradient = self.d_hidden @ self.weights["local.0.weight"][:, PRIMARY:]
        return torch.empty_like(gradient).index_copy_(0, self.layout.muons, gradient)

    @property
    def d_event(self) -> Tensor:
        """The signals in front of the primaries."""
        d_hidden = torch.empty_like(self.d_hidden).index_copy_(0, self.layout.muons, self.d_hidden)
        d_one = torch.empty_like(self.d_one).index_copy_(0, self.layout.events, self.d_one)
        return d_one @ self.of_event + self.ragged.sum(d_hidden) @ self.weights["local.0.weight"][:, :PRIMARY]

    def weight_gradients(self, features: Tensor, event: Tensor, share: Tensor) -> list[Tensor]:
        """D^T z of every weight, in their order."""
        frozen = self._pass(
            features,
            event,
            share,
            lambda name, values: leaky_relu_grad_(values, getattr(self.values, name)),
            self._frozen_highest,
        )
        return self.gradients(frozen)

    def gradients(self, z: Values) -> list[Tensor]:
        """D^T z of every weight, in their order, for what was in front of the layers."""
        w, singles = self.weights, self.layout.num_single
        # MKL takes a fifth of the time for a narrow matrix from the left.
        of_muons = (z.muons.T @ self.d_hidden).T
        of_one, of_event = (self.d_one[:singles].T @ z.single).tensor_split([z.hidden.shape[1]], dim=1)
        of_highest, more = (self.d_one[singles:].T @ z.several).tensor_split([self.of_highest.shape[1]], dim=1)
        of_event = of_event + more
        bias = of_event[:, PRIMARY]
        of_highest = (of_highest + of_one @ w["local.2.weight"].T).addr_(bias, w["local.2.bias"])
        return [
            *(torch.cat([of_muons[:, :PRIMARY], of_muons[:, PRIMARY + 1 :]], dim=1), of_muons[:, PRIMARY]),
            *(self.d_local.T @ z.hidden[singles:] + self.of_highest.T @ of_one, self.of_highest.T @ bias),
            *(torch.cat([of_highest, of_event[:, :PRIMARY]], dim=1), bias),
            *(self.d_two.T @ z.one, (self.d_two.T @ z.share)[:, 0]),
            *(self.seed.T @ z.two, (self.seed.T @ z.share)[:, 0]),
        ]

    def _pass(
        self,
        features: Tensor,
        event: Tensor,
        share: Tensor,
        bend: Callable[[str, Tensor], Tensor],
        pool: Callable[[Tensor], Tensor],
    ) -> Values:
        w, layout, singles = self.weights, self.layout, self.layout.num_single
        event = torch.cat([event, share], dim=1).index_select(0, layout.events)
        of_muons = torch.cat([event[:singles], layout.several.broadcast(event[singles:])])
        muons = torch.cat([of_muons, features.index_select(0, layout.muons)], dim=1)
        first, bias = w["local.0.weight"], w["local.0.bias"][:, None]
        hidden = bend("hidden", muons @ torch.cat([first[:, :PRIMARY], bias, first[:, PRIMARY:]], dim=1).T)
        highest = pool(hidden[singles:] @ w["local.2.weight"].T)
        single = torch.cat([hidden[:singles], event[:singles]], dim=1)
        several = torch.cat([highest, event[singles:]], dim=1)
        bias = torch.addmv(w["decision.0.bias"], self.of_highest, w["local.2.bias"])[:, None]  # Passes any maximum.
        one = highest.new_empty(len(event), len(bias))
        torch.mm(single, torch.cat([self.of_one, self.of_event, bias], dim=1).T, out=one[:singles])
        torch.mm(several, torch.cat([self.of_highest, self.of_event, bias], dim=1).T, out=one[singles:])
        one, share = bend("one", one), event[:, PRIMARY:]
        two = bend("two", (share * w["decision.2.bias"]).addmm_(one, w["decision.2.weight"].T))
        return Values(share, muons, hidden, single, several, one, two)

    def _highest(self, local: Tensor) -> Tensor:
        """The maxima; notes who holds them, in place of what they held."""
        several = self.layout.several
        rows = several.event_of_muon[:, None].expand_as(local)
        highest = local.new_empty(len(several.counts), local.shape[1])
        highest.scatter_reduce_(0, rows, local, "amax", include_self=False)
        self.holds = local.ge_(several.broadcast(highest))
        self.holders = several.sum(self.holds)
        return highest

    def _frozen_highest(self, local: Tensor) -> Tensor:
        return self.layout.several.sum(local.mul_(self.holds)) / self.holders
