"""The set networks by hand: the penalised critic without double backward, and both networks on tensors written in place.

LeakyReLU is piecewise linear. With its slopes frozen the critic is a linear map of (muons x, event context, 1), and so:

1. The forward pass gives the scores s and the slopes.
2. The adjoint pass, seeded with ds = 1, gives the input gradient g = ds/dx and, behind every linear layer, a signal D.
3. A loss that weighs scores by a = dloss/ds and gradients by v = dloss/dg pulls on a layer's weight with D^T z, where z is
   what the frozen map makes of the input (a x + v, a event, a) in front of that layer: the derivative of a s + v g in the
   weight, both terms from one pass.

That is four matrix products a weight, where autograd's double backward takes six or more. The generator's backward pass is
its adjoint pass with the signal from the critic as seed, and z what the forward pass left.

Everything runs in the dtype of the events' context: bfloat16 under autocast.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import leaky_relu_, linear

from crmuons.baseline_generator import draw
from crmuons.baseline_passes import BaselinePasses
from crmuons.models.gradients.linearized import Weights, sloped, sloped_
from crmuons.models.networks import SLOPE, BaselineCritic, BaselineGenerator, Critic, Generator, SetCritic, SetGenerator
from crmuons.models.ragged import Ragged


def scores_and_norms(critic: Critic, features: Tensor, condition: Tensor, ragged: Ragged) -> tuple[Tensor, Tensor]:
    """Score and squared gradient norm of each event: the numbers of `losses.gradient_norms`.

    Differentiable once: in the critic's weights and in the condition; the scores in the features also.
    """
    event = critic.context(condition) if isinstance(critic, SetCritic) else _primaries(condition)
    result: tuple[Tensor, Tensor] = _Scores.apply(critic, ragged, features, event, *_beyond_context(critic))  # type: ignore[no-untyped-call]
    return result


def scores(critic: Critic, features: Tensor, condition: Tensor, ragged: Ragged) -> Tensor:
    """Score of each event, differentiable in weights, condition and features."""
    if isinstance(critic, SetCritic):
        return scores_and_norms(critic, features, condition, ragged)[0]
    event = _primaries(condition)
    result: Tensor = _BaselineScores.apply(critic, ragged, features, event, *critic.parameters())  # type: ignore[no-untyped-call]
    return result


def _primaries(condition: Tensor) -> Tensor:
    """What the baseline critic knows of the events, in the dtype of its passes."""
    kind = condition.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else condition.dtype
    return condition[:, :4].to(dtype)


def generate(
    generator: Generator, condition: Tensor, shower_noise: Tensor, muon_noise: Tensor, ragged: Ragged
) -> Tensor:
    """The muon features that `generator(...)` gives, differentiable once in the weights and in the condition."""
    if isinstance(generator, BaselineGenerator):
        generate = _generate_baseline if torch.is_grad_enabled() else draw
        return generate(generator, torch.cat([condition, shower_noise], dim=1), muon_noise, ragged)
    event = generator.context(torch.cat([condition, shower_noise], dim=1))
    result: Tensor = _Muons.apply(generator, ragged, muon_noise, event, *_beyond_context(generator))  # type: ignore[no-untyped-call]
    return result


def _generate_baseline(generator: BaselineGenerator, given: Tensor, muon_noise: Tensor, ragged: Ragged) -> Tensor:
    """The first layer of a muon's 256 + 16 inputs, its 256 columns of the event's context once an event."""
    context = generator.context(given)
    weight, bias = generator.local[0].parameters()
    of_context, of_noise = weight.split([context.shape[1], muon_noise.shape[1]], dim=1)
    hidden = ragged.spread(linear(context, of_context, bias)) + linear(muon_noise, of_noise)
    result: Tensor = generator.local[1:](hidden)
    return result


def _beyond_context(network: nn.Module) -> list[Tensor]:
    return [parameter for name, parameter in network.named_parameters() if not name.startswith("context.")]


class _Scores(torch.autograd.Function):
    """Scores [events] and squared norms [events] from features, the events' context and the weights beyond it."""

    @staticmethod
    def forward(
        ctx: Any, critic: Critic, ragged: Ragged, features: Tensor, event: Tensor, *weights: Tensor
    ) -> tuple[Tensor, Tensor]:
        del weights  # The critic's own; given for autograd to know them.
        ctx.set_materialize_grads(False)
        passes: _SetCritic | BaselinePasses
        if isinstance(critic, SetCritic):
            passes = _SetCritic(critic, ragged, event.dtype)
        else:
            passes = BaselinePasses(critic, ragged, event.dtype)
        ctx.passes, ctx.features, ctx.event = passes, features.to(event.dtype), event
        scores = ctx.passes.forward(ctx.features, event)
        ctx.gradient = ctx.passes.adjoint()
        precise = ctx.gradient.to(torch.promote_types(event.dtype, torch.float32))
        squared = ragged.sum((precise**2).sum(dim=1, keepdim=True))[:, 0]
        return scores, squared

    @staticmethod
    def backward(ctx: Any, d_scores: Tensor | None, d_norms: Tensor | None) -> tuple[Tensor | None, ...]:
        ragged, event = ctx.passes.ragged, ctx.event
        share = event.new_zeros(len(event), 1) if d_scores is None else d_scores[:, None]
        d_features = ragged.spread(share) * ctx.gradient if ctx.needs_input_grad[2] else None
        if not any(ctx.needs_input_grad[3:]):
            return (None, None, d_features, *(None for _ in ctx.needs_input_grad[3:]))
        muons = ragged.spread(share) * ctx.features
        if d_norms is not None:
            weight = (2 * d_norms)[:, None].to(event.dtype)
            muons += ragged.spread(weight) * ctx.gradient
        gradients = ctx.passes.weight_gradients(muons, share * event, share)
        d_event = share * ctx.passes.d_event if ctx.needs_input_grad[3] else None
        return None, None, d_features, d_event, *gradients


class _BaselineScores(torch.autograd.Function):
    """Scores [events] alone, of the baseline critic: three products a weight, where those with norms take four."""

    @staticmethod
    def forward(
        ctx: Any, critic: BaselineCritic, ragged: Ragged, features: Tensor, event: Tensor, *weights: Tensor
    ) -> Tensor:
        del weights
        ctx.passes = BaselinePasses(critic, ragged, event.dtype)
        return ctx.passes.forward(features.to(event.dtype), event)

    @staticmethod
    def backward(ctx: Any, d_scores: Tensor) -> tuple[Tensor | None, ...]:
        passes, needed = ctx.passes, ctx.needs_input_grad
        passes.signals(d_scores[:, None])
        gradients = passes.gradients(passes.values) if any(needed[4:]) else [None] * len(needed[4:])
        return (
            *(None, None, passes.d_features if needed[2] else None, passes.d_event if needed[3] else None),
            *gradients,
        )


class _Muons(torch.autograd.Function):
    """Muon features from noise, the events' context and the weights beyond it."""

    @staticmethod
    def forward(
        ctx: Any, generator: SetGenerator, ragged: Ragged, noise: Tensor, event: Tensor, *weights: Tensor
    ) -> Tensor:
        del weights
        ctx.passes = _Generator(generator, ragged, event.dtype)
        return ctx.passes.forward(noise.to(event.dtype), event)

    @staticmethod
    def backward(ctx: Any, d_features: Tensor) -> tuple[Tensor | None, ...]:
        d_event, gradients = ctx.passes.backward(d_features)
        return None, None, None, d_event, *gradients


class _SetCritic:
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
        self.d_hidden = sloped(w["head.2.weight"].expand_as(self.hidden), self.hidden).mul_(self.scale)
        d_pooled, d_event = (self.d_hidden @ w["head.0.weight"]).chunk(2, dim=1)
        d_muons = ragged.spread(d_pooled / ragged.divisors.to(d_pooled.dtype))
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
        hidden = sloped_(hidden.mul_(self.scale), self.hidden)
        head = [self.d_hidden.T @ pooled, (self.d_hidden.T @ share)[:, 0], hidden.sum(0, keepdim=True), share.sum(0)]
        return gradients + head


class _Generator:
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
        self.embedded = leaky_relu_(self.ragged.spread(rows).addmm_(features, w["embed.weight"].T), SLOPE)
        muons = self.embedded
        for layer in self.layers:
            muons, event = layer.forward(muons, event)
        return muons, event

    def adjoint(self, d_muons: Tensor, d_event: Tensor) -> tuple[Tensor, Tensor]:
        """Signals behind muons and events to those in front; takes d_muons over."""
        for layer in reversed(self.layers):
            d_muons, d_event = layer.adjoint(d_muons, d_event)
        self.d_embedded = sloped_(d_muons, self.embedded)
        self.d_rows = self.ragged.sum(self.d_embedded)
        w = self.weights
        return self.d_embedded @ w["embed.weight"], d_event + self.d_rows @ w["embed_event.weight"]

    def frozen(self, features: Tensor, event: Tensor, share: Tensor) -> tuple[Tensor, Tensor, list[Tensor]]:
        """z through the map with frozen slopes, and D^T z of every weight on its way."""
        gradients = self._embedding_gradients(features, event, share)
        w = self.weights
        rows = (share * (w["embed_event.bias"] + w["embed.bias"])).addmm_(event, w["embed_event.weight"].T)
        muons = sloped_(self.ragged.spread(rows).addmm_(features, w["embed.weight"].T), self.embedded)
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
        rows = ragged.spread(linear(later, w["event_to_muon.weight"], w["event_to_muon.bias"]))
        self.mixed = leaky_relu_(rows.addmm_(muons, w["muon.weight"].T), SLOPE)
        self.out = leaky_relu_(linear(self.mixed, w["out.weight"], w["out.bias"]), SLOPE)
        self.inputs = muons, mean, event, later, self.mixed
        return muons + self.out, later

    def adjoint(self, d_muons: Tensor, d_event: Tensor) -> tuple[Tensor, Tensor]:
        w, ragged = self.weights, self.ragged
        self.d_out = sloped(d_muons, self.out)
        self.d_mixed = sloped_(self.d_out @ w["out.weight"], self.mixed)
        self.d_rows = ragged.sum(self.d_mixed)
        d_event = torch.addmm(d_event, self.d_rows, w["event_to_muon.weight"])
        self.d_pooled = sloped(d_event, self.pooled)
        d_mean = self.d_pooled @ w["pool.weight"] / ragged.divisors.to(d_event.dtype)
        d_muons = d_muons.addmm_(self.d_mixed, w["muon.weight"]).add_(ragged.spread(d_mean))
        return d_muons, d_event.addmm_(self.d_pooled, w["event.weight"])

    def frozen(self, muons: Tensor, event: Tensor, share: Tensor) -> tuple[Tensor, Tensor, list[Tensor]]:
        w, ragged = self.weights, self.ragged
        mean = ragged.mean(muons)
        pooled = (share * (w["pool.bias"] + w["event.bias"])).addmm_(mean, w["pool.weight"].T)
        later = event + sloped_(pooled.addmm_(event, w["event.weight"].T), self.pooled)
        rows = (share * w["event_to_muon.bias"]).addmm_(later, w["event_to_muon.weight"].T)
        mixed = sloped_(ragged.spread(rows).addmm_(muons, w["muon.weight"].T), self.mixed)
        gradients = self.gradients((muons, mean, event, later, mixed), share)
        out = sloped_(ragged.spread(share * w["out.bias"]).addmm_(mixed, w["out.weight"].T), self.out)
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
