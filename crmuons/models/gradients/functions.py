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

from crmuons.models.gradients.set import GeneratorPass, SetCriticPass
from crmuons.models.networks import Critic, Generator, SetCritic, SetGenerator
from crmuons.models.ragged import Ragged


def scores_and_sq_grad_norms(
    critic: Critic, features: Tensor, condition: Tensor, ragged: Ragged
) -> tuple[Tensor, Tensor]:
    """Score and squared gradient norm of each event: the numbers of `losses.gradient_norms`.

    Differentiable once: in the critic's weights and in the condition.
    """
    if not isinstance(critic, SetCritic):
        return _by_autograd(critic, features, condition, ragged)
    return _by_hand(critic, features, condition, ragged)


def scores(critic: Critic, features: Tensor, condition: Tensor, ragged: Ragged) -> Tensor:
    """Score of each event, differentiable in weights, condition and features."""
    if not isinstance(critic, SetCritic):
        result: Tensor = critic(features, condition, ragged)
        return result
    return _by_hand(critic, features, condition, ragged)[0]


def generator_forward(
    generator: Generator, condition: Tensor, shower_noise: Tensor, muon_noise: Tensor, ragged: Ragged
) -> Tensor:
    """The muon features that `generator(...)` gives, differentiable once in the weights and in the condition."""
    result: Tensor
    if not isinstance(generator, SetGenerator):
        result = generator(condition, shower_noise, muon_noise, ragged)
        return result
    event = generator.context(torch.cat([condition, shower_noise], dim=1))
    result = _Muons.apply(generator, ragged, muon_noise, event, *_beyond_context(generator))  # type: ignore[no-untyped-call]
    return result


def _by_hand(critic: SetCritic, features: Tensor, condition: Tensor, ragged: Ragged) -> tuple[Tensor, Tensor]:
    result: tuple[Tensor, Tensor] = _Scores.apply(  # type: ignore[no-untyped-call]
        critic, ragged, features, critic.context(condition), *_beyond_context(critic)
    )
    return result


def _by_autograd(critic: Critic, features: Tensor, condition: Tensor, ragged: Ragged) -> tuple[Tensor, Tensor]:
    """Differentiate twice: `create_graph` keeps the graph of the gradient itself."""
    features = features.detach().requires_grad_()
    scores = critic(features, condition, ragged)
    (gradient,) = torch.autograd.grad(scores.sum(), features, create_graph=True)
    return scores, ragged.sum((gradient**2).sum(dim=1, keepdim=True))[:, 0]


def _beyond_context(network: nn.Module) -> list[Tensor]:
    return [parameter for name, parameter in network.named_parameters() if not name.startswith("context.")]


class _Scores(torch.autograd.Function):
    """Scores [events] and squared norms [events] from features, the events' context and the weights beyond it."""

    @staticmethod
    def forward(
        ctx: Any, critic: SetCritic, ragged: Ragged, features: Tensor, event: Tensor, *weights: Tensor
    ) -> tuple[Tensor, Tensor]:
        del weights  # The critic's own; given for autograd to know them.
        ctx.set_materialize_grads(False)
        ctx.passes, ctx.features, ctx.event = (
            SetCriticPass(critic, ragged, event.dtype),
            features.to(event.dtype),
            event,
        )
        scores = ctx.passes.forward(ctx.features, event)
        ctx.gradient = ctx.passes.adjoint()
        precise = ctx.gradient.to(torch.promote_types(event.dtype, torch.float32))
        squared = ragged.sum((precise**2).sum(dim=1, keepdim=True))[:, 0]
        return scores, squared

    @staticmethod
    def backward(ctx: Any, d_scores: Tensor | None, d_norms: Tensor | None) -> tuple[Tensor | None, ...]:
        ragged, event = ctx.passes.ragged, ctx.event
        share = event.new_zeros(len(event), 1) if d_scores is None else d_scores[:, None]
        d_features = ragged.broadcast(share) * ctx.gradient if ctx.needs_input_grad[2] else None
        if not any(ctx.needs_input_grad[3:]):
            return (None, None, d_features, *(None for _ in ctx.needs_input_grad[3:]))
        muons = ragged.broadcast(share) * ctx.features
        if d_norms is not None:
            weight = (2 * d_norms)[:, None].to(event.dtype)
            muons += ragged.broadcast(weight) * ctx.gradient
        gradients = ctx.passes.weight_gradients(muons, share * event, share)
        d_event = share * ctx.passes.d_event if ctx.needs_input_grad[3] else None
        return None, None, d_features, d_event, *gradients


class _Muons(torch.autograd.Function):
    """Muon features from noise, the events' context and the weights beyond it."""

    @staticmethod
    def forward(
        ctx: Any, generator: SetGenerator, ragged: Ragged, noise: Tensor, event: Tensor, *weights: Tensor
    ) -> Tensor:
        del weights
        ctx.passes = GeneratorPass(generator, ragged, event.dtype)
        return ctx.passes.forward(noise.to(event.dtype), event)

    @staticmethod
    def backward(ctx: Any, d_features: Tensor) -> tuple[Tensor | None, ...]:
        d_event, gradients = ctx.passes.backward(d_features)
        return None, None, None, d_event, *gradients
