"""Passes by hand against autograd, which differentiates the networks' plain forward pass, for the penalty twice."""

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
    """A layout, the conditions of its events, and for each width numbers of its muons."""
    source = torch.Generator().manual_seed(1)
    ragged = Ragged.from_counts(torch.tensor(counts, dtype=torch.int64))
    draws = [(len(counts), 5), *((sum(counts), width) for width in widths)]
    return ragged, *(torch.randn(shape, dtype=torch.float64, generator=source) for shape in draws)


def pulls(network, loss, *tensors):
    """The loss's gradients in the network's weights and in some tensors."""
    wanted = [*network.parameters(), *tensors]
    return torch.autograd.grad(loss, wanted, allow_unused=True, materialize_grads=True)


LOSSES = {
    "both": lambda scores, norms: (softplus(scores) * (1 + norms)).sum(),
    "scores": lambda scores, norms: scores.exp().sum(),
    "norms": lambda scores, norms: losses.one_centred_penalty(norms).sum(),
}


@pytest.mark.parametrize("layers", [1, 3])
@pytest.mark.parametrize("kind", LOSSES)
@pytest.mark.parametrize("counts", [COUNTS, [1], [0, 2, 0], []])
def test_the_critics_pass_equals_autograd_with_double_backward(kind, layers, counts):
    _, critic = networks(layers)
    ragged, condition, features = inputs(counts, 2)
    condition.requires_grad_()
    told = []
    for function in (losses.gradient_norms, functions.scores_and_sq_grad_norms):
        scores, norms = function(critic, features, condition, ragged)
        told.append((scores, norms, *pulls(critic, LOSSES[kind](scores, norms), condition)))
    for expected, value in zip(*told, strict=True):
        torch.testing.assert_close(value, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("layers", [1, 2])
def test_scores_pull_on_the_muons_as_autograd_says(layers):
    _, critic = networks(layers)
    ragged, condition, features = inputs(COUNTS, 2)
    features.requires_grad_()
    expected, value = (pulls(critic, f.exp().sum(), features) for f in (
        critic(features, condition, ragged), functions.scores(critic, features, condition, ragged)
    ))  # fmt: skip
    for one, other in zip(value, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)
    critic.requires_grad_(requires_grad=False)  # As in the generator's update.
    (alone,) = torch.autograd.grad(functions.scores(critic, features, condition, ragged).exp().sum(), features)
    torch.testing.assert_close(alone, expected[-1], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("layers", [1, 3])
@pytest.mark.parametrize("counts", [COUNTS, [1], [0, 2, 0], []])
def test_the_generators_pass_equals_autograd(layers, counts):
    generator, _ = networks(layers)
    ragged, condition, noise = inputs(counts, 2)
    shower = condition[:, :3].cos().requires_grad_()
    told = []
    for function in (generator, lambda *given: functions.generator_forward(generator, *given)):
        muons = function(condition, shower, noise, ragged)
        told.append((muons, *pulls(generator, (muons.sin() * muons).sum(), shower)))
    for expected, value in zip(*told, strict=True):
        torch.testing.assert_close(value, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("counts", [COUNTS, [1], []])
def test_the_predecessors_networks_train_by_plain_autograd(loss, counts):
    torch.manual_seed(0)
    generator, critic = (network.double() for network in build_networks(config.Model(kind="predecessor"), 3))
    ragged, condition, features, noise = inputs(counts, 3, 16)
    results = []
    for function in (losses.gradient_norms, functions.scores_and_sq_grad_norms):
        scores, norms = function(critic, features, condition, ragged)
        results.append((scores, norms, *pulls(critic, LOSSES[loss](scores, norms))))
    for expected, value in zip(*results, strict=True):
        torch.testing.assert_close(value, expected)
    assert torch.equal(functions.scores(critic, features, condition, ragged), critic(features, condition, ragged))
    given = condition, torch.randn(len(counts), 32, dtype=torch.float64), noise, ragged
    assert torch.equal(functions.generator_forward(generator, *given), generator(*given))


def test_in_bfloat16_the_pass_is_as_exact_as_autograd():
    # Rounding of 2^-9 in each of some ten operations: a few per cent, by either way, of what float64 gives.
    _, critic = networks()
    ragged, condition, features = inputs([20] * 30, 2)
    exact = pulls(critic, LOSSES["both"](*losses.gradient_norms(critic, features, condition, ragged)))
    critic.float()
    with torch.autocast("cpu", torch.bfloat16):
        scores, norms = functions.scores_and_sq_grad_norms(critic, features.float(), condition.float(), ragged)
    assert (scores.dtype, norms.dtype) == (torch.bfloat16, torch.float32)
    rounded = pulls(critic, LOSSES["both"](scores.float(), norms))
    exact, rounded = (torch.cat([g.flatten().double() for g in gradients]) for gradients in (exact, rounded))
    assert ((rounded - exact).norm() / exact.norm()).item() < 0.05
