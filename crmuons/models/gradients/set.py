"""Gradients of the set networks, written by hand."""

import torch
from torch import Tensor
from torch.nn.functional import leaky_relu_, linear

from crmuons.models.gradients.linearized import Weights, leaky_relu_grad, leaky_relu_grad_
from crmuons.models.networks import SLOPE, SetCritic, SetGenerator
from crmuons.models.ragged import Ragged


class SetCriticPass:
    """One batch through the critic beyond its context; keeps slopes and signals."""

    def __init__(self, critic: SetCritic, ragged: Ragged, dtype: torch.dtype) -> None:
        self.weights, self.ragged = Weights.of(critic, dtype), ragged
        self.sets = _Sets(self.weights, len(critic.layers), ragged)
        self.scale = ragged.divisors.sqrt().to(dtype)

    def forward(self, features: Tensor, event: Tensor) -> Tensor:
        w = self.weights
        muons, event = self.sets.forward(features, event)
        pooled = torch.cat([self.ragged.mean(muons), event], dim=1)
        self.hidden = leaky_relu_(linear(pooled, w["head.0.weight"], w["head.0.bias"]).mul_(self.scale), SLOPE)
        return linear(self.hidden, w["head.2.weight"], w["head.2.bias"])[:, 0]

    def adjoint(self) -> Tensor:
        """The scores' gradient in the features."""
        w, ragged = self.weights, self.ragged
        self.d_hidden = leaky_relu_grad(w["head.2.weight"].expand_as(self.hidden), self.hidden).mul_(self.scale)
        d_pooled, d_event = (self.d_hidden @ w["head.0.weight"]).chunk(2, dim=1)
        d_muons = ragged.broadcast(d_pooled / ragged.divisors.to(d_pooled.dtype))
        d_features, self.d_event = self.sets.adjoint(d_muons, d_event)
        return d_features

    def weight_gradients(self, features: Tensor, event: Tensor, share: Tensor) -> list[Tensor]:
        """D^T z for the weights beyond the context, in their order.

        Args:
            features: z of the muons.
            event: z of the events' context.
            share: what takes the place of the 1 that multiplies a bias [events, 1].
        """
        w = self.weights
        muons, event, gradients = self.sets.frozen(features, event, share)
        pooled = torch.cat([self.ragged.mean(muons), event], dim=1)
        hidden = (share * w["head.0.bias"]).addmm_(pooled, w["head.0.weight"].T)
        hidden = leaky_relu_grad_(hidden.mul_(self.scale), self.hidden)
        head = [self.d_hidden.T @ pooled, (self.d_hidden.T @ share)[:, 0], hidden.sum(0, keepdim=True), share.sum(0)]
        return gradients + head


class GeneratorPass:
    """One batch through the generator beyond its context."""

    def __init__(self, generator: SetGenerator, ragged: Ragged, dtype: torch.dtype) -> None:
        self.weights = Weights.of(generator, dtype)
        self.sets = _Sets(self.weights, len(generator.layers), ragged)

    def forward(self, noise: Tensor, event: Tensor) -> Tensor:
        self.muons, self.event = self.sets.forward(noise, event)
        return linear(self.muons, self.weights["out.weight"], self.weights["out.bias"])

    def backward(self, d_features: Tensor) -> tuple[Tensor, list[Tensor]]:
        """The pull on the events' context, and on the weights in their order."""
        d_muons = d_features @ self.weights["out.weight"]
        _, d_event = self.sets.adjoint(d_muons, torch.zeros_like(self.event))
        return d_event, [*self.sets.gradients(), d_features.T @ self.muons, d_features.sum(0)]


class _Sets:
    """What both networks share: the embedding of muons and event, and the set layers."""

    def __init__(self, weights: Weights, num_layers: int, ragged: Ragged) -> None:
        self.weights, self.ragged = weights, ragged
        self.layers = [_Layer(weights.part(f"layers.{i}"), ragged) for i in range(num_layers)]

    def forward(self, features: Tensor, event: Tensor) -> tuple[Tensor, Tensor]:
        self.inputs = features, event
        w = self.weights
        rows = linear(event, w["embed_event.weight"], w["embed_event.bias"] + w["embed.bias"])
        self.embedded = leaky_relu_(self.ragged.broadcast(rows).addmm_(features, w["embed.weight"].T), SLOPE)
        muons = self.embedded
        for layer in self.layers:
            muons, event = layer.forward(muons, event)
        return muons, event

    def adjoint(self, d_muons: Tensor, d_event: Tensor) -> tuple[Tensor, Tensor]:
        """Signals behind muons and events to those in front; takes d_muons over."""
        for layer in reversed(self.layers):
            d_muons, d_event = layer.adjoint(d_muons, d_event)
        self.d_embedded = leaky_relu_grad_(d_muons, self.embedded)
        self.d_rows = self.ragged.sum(self.d_embedded)
        w = self.weights
        return self.d_embedded @ w["embed.weight"], d_event + self.d_rows @ w["embed_event.weight"]

    def frozen(self, features: Tensor, event: Tensor, share: Tensor) -> tuple[Tensor, Tensor, list[Tensor]]:
        """z through the map with frozen slopes, and D^T z of every weight on its way."""
        gradients = self._embedding_gradients(features, event, share)
        w = self.weights
        rows = (share * (w["embed_event.bias"] + w["embed.bias"])).addmm_(event, w["embed_event.weight"].T)
        muons = leaky_relu_grad_(self.ragged.broadcast(rows).addmm_(features, w["embed.weight"].T), self.embedded)
        for layer in self.layers:
            muons, event, more = layer.frozen(muons, event, share)
            gradients += more
        return muons, event, gradients

    def gradients(self) -> list[Tensor]:
        """D^T z of every weight, z being what the forward pass had."""
        share = torch.ones_like(self.inputs[1][:, :1])
        layers = [gradient for layer in self.layers for gradient in layer.gradients(layer.inputs, share)]
        return self._embedding_gradients(*self.inputs, share) + layers

    def _embedding_gradients(self, features: Tensor, event: Tensor, share: Tensor) -> list[Tensor]:
        d_bias = (self.d_rows.T @ share)[:, 0]
        return [self.d_embedded.T @ features, d_bias, self.d_rows.T @ event, d_bias]


class _Layer:
    """A SetLayer's passes."""

    def __init__(self, weights: Weights, ragged: Ragged) -> None:
        self.weights, self.ragged = weights, ragged

    def forward(self, muons: Tensor, event: Tensor) -> tuple[Tensor, Tensor]:
        w, ragged = self.weights, self.ragged
        mean = ragged.mean(muons)
        bias = w["pool.bias"] + w["event.bias"]
        self.pooled = leaky_relu_(linear(mean, w["pool.weight"], bias).addmm_(event, w["event.weight"].T), SLOPE)
        later = event + self.pooled
        rows = ragged.broadcast(linear(later, w["event_to_muon.weight"], w["event_to_muon.bias"]))
        self.mixed = leaky_relu_(rows.addmm_(muons, w["muon.weight"].T), SLOPE)
        self.out = leaky_relu_(linear(self.mixed, w["out.weight"], w["out.bias"]), SLOPE)
        self.inputs = muons, mean, event, later, self.mixed
        return muons + self.out, later

    def adjoint(self, d_muons: Tensor, d_event: Tensor) -> tuple[Tensor, Tensor]:
        w, ragged = self.weights, self.ragged
        self.d_out = leaky_relu_grad(d_muons, self.out)
        self.d_mixed = leaky_relu_grad_(self.d_out @ w["out.weight"], self.mixed)
        self.d_rows = ragged.sum(self.d_mixed)
        d_event = torch.addmm(d_event, self.d_rows, w["event_to_muon.weight"])
        self.d_pooled = leaky_relu_grad(d_event, self.pooled)
        d_mean = self.d_pooled @ w["pool.weight"] / ragged.divisors.to(d_event.dtype)
        d_muons = d_muons.addmm_(self.d_mixed, w["muon.weight"]).add_(ragged.broadcast(d_mean))
        return d_muons, d_event.addmm_(self.d_pooled, w["event.weight"])

    def frozen(self, muons: Tensor, event: Tensor, share: Tensor) -> tuple[Tensor, Tensor, list[Tensor]]:
        w, ragged = self.weights, self.ragged
        mean = ragged.mean(muons)
        pooled = (share * (w["pool.bias"] + w["event.bias"])).addmm_(mean, w["pool.weight"].T)
        later = event + leaky_relu_grad_(pooled.addmm_(event, w["event.weight"].T), self.pooled)
        rows = (share * w["event_to_muon.bias"]).addmm_(later, w["event_to_muon.weight"].T)
        mixed = leaky_relu_grad_(ragged.broadcast(rows).addmm_(muons, w["muon.weight"].T), self.mixed)
        gradients = self.gradients((muons, mean, event, later, mixed), share)
        out = leaky_relu_grad_(ragged.broadcast(share * w["out.bias"]).addmm_(mixed, w["out.weight"].T), self.out)
        return muons.add_(out), later, gradients

    def gradients(self, inputs: tuple[Tensor, ...], share: Tensor) -> list[Tensor]:
        """D^T z of the layer's weights, in their order, for the z that `forward` keeps as inputs."""
        muons, mean, event, later, mixed = inputs
        d_pooled, d_rows = self.d_pooled.T, self.d_rows.T
        d_bias = (d_pooled @ share)[:, 0]
        return [
            *(d_pooled @ mean, d_bias, d_pooled @ event, d_bias),
            *(d_rows @ later, (d_rows @ share)[:, 0], self.d_mixed.T @ muons),
            *(self.d_out.T @ mixed, (self.ragged.sum(self.d_out).T @ share)[:, 0]),
        ]
