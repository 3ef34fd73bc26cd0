"""Forward passes of generator and critic for the training step, with hand-written gradients for the set networks.

The critic's loss contains the squared norm of a gradient, so training needs a derivative of a derivative. LeakyReLU is
piecewise linear, which makes this cheaper than autograd's double backward. Write a layer l of the critic for one event:

    z_l = W_l h_(l-1) + b_l,    h_l = M_l z_l,    h_0 = x = (muon features, event context),

with M_l diagonal and equal to the slope of LeakyReLU (1 or SLOPE) at z_l. The slopes change only at isolated points, so
the derivatives below treat M_l as constant. With s the score of an event:

1. The forward pass gives s and the slopes M_l.
2. The backward pass from ds/ds = 1 gives the upstream gradient of each layer and the input gradient:

       D_l = ds/dz_l:    D_(l-1) = M_(l-1) W_l^T D_l,    g = ds/dx = W_1^T D_1.

3. Let a = dloss/ds and v = dloss/dg. For loss(s, |g|^2), v = 2 (dloss/d|g|^2) g. By the chain rule, the gradient of the
   loss in the weights is the gradient of a s + v.g with a and v held constant. With fixed slopes, v.g is the change of
   s along v, so a s + v.g is the output of the same linear layers for another input, the tangent, where each bias is
   multiplied by a:

       t_0 = a x + v,    t_l = M_l (W_l t_(l-1) + a b_l).

   This output is D_l^T (W_l t_(l-1) + a b_l) plus terms without W_l and b_l. The gradients in the weights follow:

       dloss/dW_l = sum over events of D_l t_(l-1)^T,    dloss/db_l = sum over events of a D_l.

   The code calls a the bias coefficient. g is the gradient in the muons alone, so the tangent of the context is a times
   the context.

These are four matrix products per weight: one in each of 1 and 2, two in 3. Autograd's double backward takes six or
more.

Without a gradient penalty v = 0, and the tangents are a times the inputs of each layer in the forward pass. Ordinary
backpropagation then gives the gradients of the weights: the backward pass starts from a instead of 1 (for the generator,
from the critic's gradient in the muon features), and needs no tangent.

All passes run in the dtype of the events' context: bfloat16 under autocast. The predecessor's networks use
plain autograd.
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
    """Return the score and the squared gradient norm of each event [events], the same numbers as `gradient_norms`.

    They can be differentiated once, in the critic's weights and in the condition.
    """
    if not isinstance(critic, SetCritic):
        return gradient_norms(critic, features, condition, ragged)
    scores, squared_norms = _by_hand(critic, features, condition, ragged, with_norms=True)
    assert squared_norms is not None
    return scores, squared_norms


def gradient_norms(critic: Critic, features: Tensor, condition: Tensor, ragged: Ragged) -> tuple[Tensor, Tensor]:
    """Return the score of each event [events], and the squared norm of its gradient in the event's muons, by autograd.

    The norm runs over all muons of an event (Gulrajani et al. 2017, arXiv:1704.00028). An equal shift of N muons has
    sqrt(N) times the norm of the shift of one muon; it is also sqrt(N) times more significant against their scatter.
    """
    features = features.detach().requires_grad_()
    scores = critic(features, condition, ragged)
    # The graph of the gradient is kept, because the norm is differentiated again, in the critic's weights.
    (gradient,) = torch.autograd.grad(scores.sum(), features, create_graph=True)
    return scores, ragged.sum((gradient**2).sum(dim=1, keepdim=True))[:, 0]


def scores(critic: Critic, features: Tensor, condition: Tensor, ragged: Ragged) -> Tensor:
    """Return the score of each event [events], differentiable in weights, condition and features."""
    if not isinstance(critic, SetCritic):
        result: Tensor = critic(features, condition, ragged)
        return result
    # The same function without norms, so that all updates use the hand-written passes.
    return _by_hand(critic, features, condition, ragged, with_norms=False)[0]


def generator_forward(
    generator: Generator, condition: Tensor, shower_noise: Tensor, muon_noise: Tensor, ragged: Ragged
) -> Tensor:
    """Return the muon features of `generator(...)`, differentiable once in the weights and in the condition."""
    result: Tensor
    if not isinstance(generator, SetGenerator):
        result = generator(condition, shower_noise, muon_noise, ragged)
        return result
    # Autograd handles the context: it has one row for each event, a small part of the step's work.
    event = generator.context(torch.cat([condition, shower_noise], dim=1))
    result = _GeneratorForward.apply(  # type: ignore[no-untyped-call]
        generator, ragged, muon_noise, event, *_weights_after_context(generator)
    )
    return result


def _by_hand(
    critic: SetCritic, features: Tensor, condition: Tensor, ragged: Ragged, *, with_norms: bool
) -> tuple[Tensor, Tensor | None]:
    result: tuple[Tensor, Tensor | None] = _ScoresAndSqGradNorms.apply(  # type: ignore[no-untyped-call]
        critic, ragged, with_norms, features, critic.context(condition), *_weights_after_context(critic)
    )
    return result


def _weights_after_context(network: nn.Module) -> list[Tensor]:
    """Return the weights with hand-written gradients. Autograd handles the context network, with one row per event."""
    return [parameter for name, parameter in network.named_parameters() if not name.startswith("context.")]


class _ScoresAndSqGradNorms(torch.autograd.Function):
    """Scores [events] and, if asked for, squared gradient norms [events], from features and the events' context."""

    @staticmethod
    def forward(  # noqa: PLR0917 - apply takes no keywords
        ctx: Any,
        critic: SetCritic,
        ragged: Ragged,
        with_norms: bool,
        features: Tensor,
        event: Tensor,
        *weights: Tensor,
    ) -> tuple[Tensor, Tensor | None]:
        del weights  # The critic holds them; they are arguments so that autograd asks for their gradients.
        # Without a penalty the norms get no gradient: None saves the computation that zeros would need.
        ctx.set_materialize_grads(False)
        ctx.critic_pass = SetCriticPass(critic, ragged, event.dtype)
        ctx.features, ctx.event = features.to(event.dtype), event
        scores = ctx.critic_pass.forward(ctx.features, event)
        # Without norms, gradients in the weights are ordinary backpropagation, which begins at the loss.
        ctx.is_ordinary = not with_norms and any(ctx.needs_input_grad[4:])
        if ctx.is_ordinary:
            return scores, None
        # Do this now, with or without a penalty: this pass also keeps the upstream gradients that `backward` needs.
        ctx.input_gradient = ctx.critic_pass.input_gradient()
        if not with_norms:
            return scores, None
        # bfloat16 has 8 significant bits, too few to add the squares of thousands of muons.
        precise = ctx.input_gradient.to(torch.promote_types(event.dtype, torch.float32))
        squared = ragged.sum((precise**2).sum(dim=1, keepdim=True))[:, 0]
        return scores, squared

    @staticmethod
    def backward(ctx: Any, d_scores: Tensor | None, d_sq_norms: Tensor | None) -> tuple[Tensor | None, ...]:
        ragged, event = ctx.critic_pass.ragged, ctx.event
        bias_coefficient = event.new_zeros(len(event), 1) if d_scores is None else d_scores[:, None]
        if ctx.is_ordinary:
            d_event, gradients = ctx.critic_pass.backward(bias_coefficient)
            d_features = ctx.critic_pass.trunk.input_gradient() if ctx.needs_input_grad[3] else None
            return None, None, None, d_features, d_event, *gradients
        per_muon = ragged.broadcast(bias_coefficient)
        # The gradient of the scores alone. No loss differentiates the norms in the features: that would need another
        # derivative.
        d_features = per_muon * ctx.input_gradient if ctx.needs_input_grad[3] else None
        # The generator's update: the critic's weights and the context need no gradient, so no tangent is computed.
        if not any(ctx.needs_input_grad[4:]):
            return (None, None, None, d_features, *(None for _ in ctx.needs_input_grad[4:]))
        # The tangent of the docstring, t_0 = a x + v. This line gives a x; v is added below.
        tangent = per_muon * ctx.features
        if d_sq_norms is not None:
            tangent += ragged.broadcast((2 * d_sq_norms)[:, None].to(event.dtype)) * ctx.input_gradient
        gradients = ctx.critic_pass.weight_gradients(tangent, bias_coefficient * event, bias_coefficient)
        d_event = bias_coefficient * ctx.critic_pass.d_event if ctx.needs_input_grad[4] else None
        return None, None, None, d_features, d_event, *gradients


class _GeneratorForward(torch.autograd.Function):
    """Muon features of a SetGenerator, from noise and the events' context."""

    @staticmethod
    def forward(
        ctx: Any, generator: SetGenerator, ragged: Ragged, noise: Tensor, event: Tensor, *weights: Tensor
    ) -> Tensor:
        del weights  # The generator holds them; they are arguments so that autograd asks for their gradients.
        ctx.generator_pass = GeneratorPass(generator, ragged, event.dtype)
        return ctx.generator_pass.forward(noise.to(event.dtype), event)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        d_event, gradients = ctx.generator_pass.backward(grad_output)
        return None, None, None, d_event, *gradients
