"""Hand-written passes of the set networks; functions.py derives the equations.

Each class runs three passes over its part of a network: `forward`, a backward pass that keeps the upstream gradient of
each linear layer, and for the critic `linearized`, which takes the tangent through the same layers with the slopes of
`forward`. Names: d_x is the derivative of the score (for the generator, of the loss) in x; a tangent has the name of
the quantity that it replaces.
"""

import torch
from torch import Tensor
from torch.nn.functional import leaky_relu_, linear

from crmuons.models.formulas import SLOPE
from crmuons.models.gradients.linearized import Weights
from crmuons.models.networks import SetCritic, SetGenerator
from crmuons.models.ragged import Ragged
from crmuons.models.segments import leaky_relu_grad, leaky_relu_grad_, linear_leaky


class SetCriticPass:
    """One batch through a SetCritic, from the events' context to the scores."""

    def __init__(self, critic: SetCritic, ragged: Ragged, dtype: torch.dtype) -> None:
        self.weights, self.ragged = Weights.from_network(critic, dtype), ragged
        self.trunk = _Trunk(self.weights, len(critic.layers), ragged)
        # See SetCritic: deviations of the mean in units of its statistical error.
        self.scale = ragged.root_divisors.to(dtype)

    def forward(self, features: Tensor, event: Tensor) -> Tensor:
        """Return the scores [events], and keep the activations."""
        w = self.weights
        muons, event = self.trunk.forward(features, event)
        # In the order of the critic's own head: its first weight has the columns of the mean first.
        self.pooled = torch.cat([self.ragged.mean(muons), event], dim=1)
        self.hidden = leaky_relu_(linear(self.pooled, w["head.0.weight"], w["head.0.bias"]).mul_(self.scale), SLOPE)
        return linear(self.hidden, w["head.2.weight"], w["head.2.bias"])[:, 0]

    def input_gradient(self) -> Tensor:
        """Return each score's gradient in the features [muons, features], and keep the upstream gradients."""
        # The pass starts from dscore/dscore = 1 in every event: the last layer's weights are the gradient in its inputs.
        self._backward(self.weights["head.2.weight"].expand_as(self.hidden))
        return self.trunk.input_gradient()

    def backward(self, d_scores: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Return the loss's gradients in the events' context, and in the weights after it in the critic's order.

        Args:
            d_scores: dloss/dscore [events, 1], where the loss depends on the scores alone.
        """
        self._backward(d_scores * self.weights["head.2.weight"])
        head = (self.d_hidden.T @ self.pooled, self.d_hidden.sum(0), d_scores.T @ self.hidden, d_scores.sum(0))
        return self.d_event, [*self.trunk.weight_gradients(), *head]

    def _backward(self, d_hidden: Tensor) -> None:
        """Take the gradient in the head's hidden numbers back to the inputs, and keep the upstream gradients."""
        ragged = self.ragged
        self.d_hidden = leaky_relu_grad(d_hidden, self.hidden).mul_(self.scale)
        d_pooled, d_event = (self.d_hidden @ self.weights["head.0.weight"]).chunk(2, dim=1)
        # The mean divides by N, and so does its gradient, which is the same for all muons of the event.
        d_muons = ragged.broadcast(d_pooled / ragged.divisors.to(d_pooled.dtype))
        self.d_event = self.trunk.backward(d_muons, d_event)

    def weight_gradients(self, features: Tensor, event: Tensor, bias_coefficient: Tensor) -> list[Tensor]:
        """Return the loss's gradients in the weights after the context, in the order of the critic's parameters.

        Args:
            features: tangent of the muon features [muons, features].
            event: tangent of the events' context [events, width].
            bias_coefficient: dloss/dscore [events, 1].
        """
        w = self.weights
        muons, event, gradients = self.trunk.linearized(features, event, bias_coefficient)
        pooled = torch.cat([self.ragged.mean(muons), event], dim=1)
        hidden = (bias_coefficient * w["head.0.bias"]).addmm_(pooled, w["head.0.weight"].T)
        hidden = leaky_relu_grad_(hidden.mul_(self.scale), self.hidden)
        d_first = self.d_hidden.T @ pooled, (self.d_hidden.T @ bias_coefficient)[:, 0]
        # The last layer's upstream gradient is 1, so its weights' gradient is the plain sum of its tangents.
        return [*gradients, *d_first, hidden.sum(0, keepdim=True), bias_coefficient.sum(0)]


class GeneratorPass:
    """One batch through a SetGenerator, from the events' context to the muon features."""

    def __init__(self, generator: SetGenerator, ragged: Ragged, dtype: torch.dtype) -> None:
        self.weights = Weights.from_network(generator, dtype)
        self.trunk = _Trunk(self.weights, len(generator.layers), ragged)

    def forward(self, noise: Tensor, event: Tensor) -> Tensor:
        """Return the muon features [muons, features], and keep the activations."""
        self.muons, self.event = self.trunk.forward(noise, event)
        return linear(self.muons, self.weights["out.weight"], self.weights["out.bias"])

    def backward(self, grad_output: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Return the loss's gradients in the events' context, and in the weights after it in the generator's order."""
        d_muons = grad_output @ self.weights["out.weight"]
        d_event = self.trunk.backward(d_muons, torch.zeros_like(self.event))
        # In the order of the module's parameters: `apply` returns one gradient for each of its arguments.
        return d_event, [*self.trunk.weight_gradients(), grad_output.T @ self.muons, grad_output.sum(0)]


class _Trunk:
    """The common part of generator and critic: the embedding of muons and event, and the set layers."""

    def __init__(self, weights: Weights, num_layers: int, ragged: Ragged) -> None:
        self.weights, self.ragged = weights, ragged
        self.layers = [_Layer(weights.submodule(f"layers.{i}"), ragged) for i in range(num_layers)]

    def forward(self, features: Tensor, event: Tensor) -> tuple[Tensor, Tensor]:
        self.inputs = features, event
        w = self.weights
        # Both biases are added to the events' rows, which are fewer than the muons.
        rows = linear(event, w["embed_event.weight"], w["embed_event.bias"] + w["embed.bias"])
        self.embedded = linear_leaky(features, w["embed.weight"], rows, self.ragged.event_of_muon)
        muons = self.embedded
        for layer in self.layers:
            muons, event = layer.forward(muons, event)
        return muons, event

    def backward(self, d_muons: Tensor, d_event: Tensor) -> Tensor:
        """Return the gradient in the events' context, from gradients in the outputs; overwrites d_muons."""
        for layer in reversed(self.layers):
            d_muons, d_event = layer.backward(d_muons, d_event)
        # The output has the sign of the input, so the input need not be kept.
        self.d_embedded = leaky_relu_grad_(d_muons, self.embedded)
        self.d_rows = self.ragged.sum(self.d_embedded)
        return d_event + self.d_rows @ self.weights["embed_event.weight"]

    def input_gradient(self) -> Tensor:
        """Return the gradient in the features of the muons, after `backward`."""
        return self.d_embedded @ self.weights["embed.weight"]

    def linearized(
        self, features: Tensor, event: Tensor, bias_coefficient: Tensor
    ) -> tuple[Tensor, Tensor, list[Tensor]]:
        """Take the tangent through all layers; return it, and the loss's gradients in the weights."""
        gradients = self._embedding_gradients(features, event, bias_coefficient)
        w = self.weights
        bias = w["embed_event.bias"] + w["embed.bias"]
        rows = (bias_coefficient * bias).addmm_(event, w["embed_event.weight"].T)
        # The tangent uses the slopes of `forward`: with its own slopes it would go through another network.
        muons = linear_leaky(features, w["embed.weight"], rows, self.ragged.event_of_muon, self.embedded)
        for layer in self.layers:
            muons, event, layer_gradients = layer.linearized(muons, event, bias_coefficient)
            gradients += layer_gradients
        return muons, event, gradients

    def weight_gradients(self) -> list[Tensor]:
        """Return the gradients of ordinary backpropagation: the tangents are the inputs of the forward pass."""
        # 1 for each event: in an ordinary backward pass, the tangent is the forward pass, with its biases.
        bias_coefficient = torch.ones_like(self.inputs[1][:, :1])
        of_layers = [
            gradient for layer in self.layers for gradient in layer.weight_gradients(layer.inputs, bias_coefficient)
        ]
        return self._embedding_gradients(*self.inputs, bias_coefficient) + of_layers

    def _embedding_gradients(self, features: Tensor, event: Tensor, bias_coefficient: Tensor) -> list[Tensor]:
        d_bias = (self.d_rows.T @ bias_coefficient)[:, 0]  # Both biases add to the same rows.
        return [self.d_embedded.T @ features, d_bias, self.d_rows.T @ event, d_bias]


class _Layer:
    """One SetLayer."""

    def __init__(self, weights: Weights, ragged: Ragged) -> None:
        self.weights, self.ragged = weights, ragged

    def forward(self, muons: Tensor, event: Tensor) -> tuple[Tensor, Tensor]:
        w, ragged = self.weights, self.ragged
        mean = ragged.mean(muons)
        bias = w["pool.bias"] + w["event.bias"]
        self.pooled = leaky_relu_(linear(mean, w["pool.weight"], bias).addmm_(event, w["event.weight"].T), SLOPE)
        updated = event + self.pooled
        rows = linear(updated, w["event_to_muon.weight"], w["event_to_muon.bias"])
        self.mixed = linear_leaky(muons, w["muon.weight"], rows, ragged.event_of_muon)
        self.out = leaky_relu_(linear(self.mixed, w["out.weight"], w["out.bias"]), SLOPE)
        # Ordinary backpropagation uses these as tangents; with a penalty, `linearized` computes others.
        self.inputs = muons, mean, event, updated, self.mixed
        return muons + self.out, updated

    def backward(self, d_muons: Tensor, d_event: Tensor) -> tuple[Tensor, Tensor]:
        """Take gradients in the outputs to gradients in the inputs; overwrites d_muons."""
        w, ragged = self.weights, self.ragged
        self.d_out = leaky_relu_grad(d_muons, self.out)
        self.d_mixed = leaky_relu_grad_(self.d_out @ w["out.weight"], self.mixed)
        # All muons of an event got the same row, so the gradient of the row is the sum over them.
        self.d_rows = ragged.sum(self.d_mixed)
        d_event = torch.addmm(d_event, self.d_rows, w["event_to_muon.weight"])
        self.d_pooled = leaky_relu_grad(d_event, self.pooled)
        d_mean = self.d_pooled @ w["pool.weight"] / ragged.divisors.to(d_event.dtype)
        # In place: the old value is the residual path's gradient, the first of three terms.
        d_muons = d_muons.addmm_(self.d_mixed, w["muon.weight"]).add_(ragged.broadcast(d_mean))
        return d_muons, d_event.addmm_(self.d_pooled, w["event.weight"])

    def linearized(self, muons: Tensor, event: Tensor, bias_coefficient: Tensor) -> tuple[Tensor, Tensor, list[Tensor]]:
        """Take the tangent through the layer; return it and the loss's gradients in the weights. Overwrites `muons`."""
        w, ragged = self.weights, self.ragged
        mean = ragged.mean(muons)
        pooled = (bias_coefficient * (w["pool.bias"] + w["event.bias"])).addmm_(mean, w["pool.weight"].T)
        # The slopes of `forward`, not of the tangent: the tangent goes through linear layers.
        updated = event + leaky_relu_grad_(pooled.addmm_(event, w["event.weight"].T), self.pooled)
        rows = (bias_coefficient * w["event_to_muon.bias"]).addmm_(updated, w["event_to_muon.weight"].T)
        mixed = linear_leaky(muons, w["muon.weight"], rows, ragged.event_of_muon, self.mixed)
        # This must come before the line that overwrites `muons`, which is one of these tangents.
        gradients = self.weight_gradients((muons, mean, event, updated, mixed), bias_coefficient)
        # The bias is the same for all muons of an event, so it goes through the row of the event, times a.
        out = linear_leaky(mixed, w["out.weight"], bias_coefficient * w["out.bias"], ragged.event_of_muon, self.out)
        return muons.add_(out), updated, gradients

    def weight_gradients(self, tangents: tuple[Tensor, ...], bias_coefficient: Tensor) -> list[Tensor]:
        """Return the gradients in the layer's weights, in their order. `tangents` has the order of `self.inputs`."""
        muons, mean, event, updated, mixed = tangents
        d_pooled, d_rows = self.d_pooled.T, self.d_rows.T
        d_bias = (d_pooled @ bias_coefficient)[:, 0]  # Both biases add to the same sum.
        return [
            *(d_pooled @ mean, d_bias, d_pooled @ event, d_bias),
            *(d_rows @ updated, (d_rows @ bias_coefficient)[:, 0], self.d_mixed.T @ muons),
            *(self.d_out.T @ mixed, (self.ragged.sum(self.d_out).T @ bias_coefficient)[:, 0]),
        ]
