"""Hand-written gradients against autograd on the plain forward pass, which is differentiated twice for the penalty."""

import pytest
import torch
from torch.nn.functional import softplus

from crmuons import config
from crmuons.models.gradients import functions
from crmuons.models.networks import build_networks
from crmuons.models.ragged import Ragged
from crmuons.training import losses

COUNTS = [3, 1, 5, 40, 2]


def networks(layers=1):
    torch.manual_seed(0)
    settings = config.Model(width=8, layers=layers, critic_layers=layers, shower_latents=3, muon_latents=2)
    generator, critic = build_networks(settings, 2)
    return generator.double(), critic.double()


def inputs(counts, *widths):
    """Return a layout, the conditions of its events, and for each width random numbers of its muons."""
    source = torch.Generator().manual_seed(1)
    ragged = Ragged.from_counts(torch.tensor(counts, dtype=torch.int64))
    draws = [(len(counts), 5), *((sum(counts), width) for width in widths)]
    return ragged, *(torch.randn(shape, dtype=torch.float64, generator=source) for shape in draws)


def gradients_of(network, loss, *tensors):
    """Return the loss's gradients in the network's weights and in some tensors."""
    inputs = [*network.parameters(), *tensors]
    return torch.autograd.grad(loss, inputs, allow_unused=True, materialize_grads=True)


LOSSES = {
    "both": lambda scores, norms: (softplus(scores) * (1 + norms)).sum(),
    "scores": lambda scores, norms: scores.exp().sum(),
    "norms": lambda scores, norms: losses.one_centred_penalty(norms).sum(),
}


@pytest.mark.parametrize("layers", [1, 3])
@pytest.mark.parametrize("kind", LOSSES)
@pytest.mark.parametrize("counts", [COUNTS, [1], [0, 2, 0], []])
def test_the_critics_gradients_equal_autograd_with_double_backward(kind, layers, counts):
    _, critic = networks(layers)
    ragged, condition, features = inputs(counts, 2)
    condition.requires_grad_()
    results = []
    for function in (functions.gradient_norms, functions.scores_and_sq_grad_norms):
        scores, norms = function(critic, features, condition, ragged)
        results.append((scores, norms, *gradients_of(critic, LOSSES[kind](scores, norms), condition)))
    for expected, value in zip(*results, strict=True):
        torch.testing.assert_close(value, expected, rtol=1e-10, atol=1e-12)
    if kind == "scores":  # The other way, for updates without a penalty.
        scores = functions.scores(critic, features, condition, ragged)
        value = (scores, *gradients_of(critic, LOSSES[kind](scores, None), condition))
        for one, expected in zip(value, (results[0][0], *results[0][2:]), strict=True):
            torch.testing.assert_close(one, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("layers", [1, 2])
def test_gradients_of_scores_in_the_muons_equal_autograd(layers):
    _, critic = networks(layers)
    ragged, condition, features = inputs(COUNTS, 2)
    features.requires_grad_()
    expected, value = (gradients_of(critic, f.exp().sum(), features) for f in (
        critic(features, condition, ragged), functions.scores(critic, features, condition, ragged)
    ))  # fmt: skip
    for one, other in zip(value, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)
    critic.requires_grad_(requires_grad=False)  # As in the generator's update.
    (alone,) = torch.autograd.grad(functions.scores(critic, features, condition, ragged).exp().sum(), features)
    torch.testing.assert_close(alone, expected[-1], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("layers", [1, 3])
@pytest.mark.parametrize("counts", [COUNTS, [1], [0, 2, 0], []])
def test_the_generators_gradients_equal_autograd(layers, counts):
    generator, _ = networks(layers)
    ragged, condition, noise = inputs(counts, 2)
    shower = condition[:, :3].cos().requires_grad_()
    results = []
    for function in (generator, lambda *given: functions.generator_forward(generator, *given)):
        muons = function(condition, shower, noise, ragged)
        results.append((muons, *gradients_of(generator, (muons.sin() * muons).sum(), shower)))
    for expected, value in zip(*results, strict=True):
        torch.testing.assert_close(value, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("counts", [COUNTS, [1], []])
def test_the_predecessors_networks_train_by_plain_autograd(loss, counts):
    torch.manual_seed(0)
    generator, critic = (network.double() for network in build_networks(config.Model(kind="predecessor"), 3))
    ragged, condition, features, noise = inputs(counts, 3, 16)
    results = []
    for function in (functions.gradient_norms, functions.scores_and_sq_grad_norms):
        scores, norms = function(critic, features, condition, ragged)
        results.append((scores, norms, *gradients_of(critic, LOSSES[loss](scores, norms))))
    for expected, value in zip(*results, strict=True):
        torch.testing.assert_close(value, expected)
    assert torch.equal(functions.scores(critic, features, condition, ragged), critic(features, condition, ragged))
    given = condition, torch.randn(len(counts), 32, dtype=torch.float64), noise, ragged
    assert torch.equal(functions.generator_forward(generator, *given), generator(*given))


def test_gradients_in_bfloat16_are_as_exact_as_autograd():
    # Rounding of 2^-9 in each of some ten operations: a few per cent, by either way, of what float64 gives.
    _, critic = networks()
    ragged, condition, features = inputs([20] * 30, 2)
    exact = gradients_of(critic, LOSSES["both"](*functions.gradient_norms(critic, features, condition, ragged)))
    critic.float()
    with torch.autocast("cpu", torch.bfloat16):
        scores, norms = functions.scores_and_sq_grad_norms(critic, features.float(), condition.float(), ragged)
    assert (scores.dtype, norms.dtype) == (torch.bfloat16, torch.float32)
    rounded = gradients_of(critic, LOSSES["both"](scores.float(), norms))
    exact, rounded = (torch.cat([g.flatten().double() for g in gradients]) for gradients in (exact, rounded))
    assert ((rounded - exact).norm() / exact.norm()).item() < 0.05
