"""Losses and gradient penalties against closed forms."""

import math

import pytest
import torch
from torch import nn

from crmuons.models.gradients import functions
from crmuons.models.networks import SetCritic
from crmuons.models.ragged import Ragged
from crmuons.training import losses


class Linear(SetCritic):
    """Score = weight x the sum or the mean of the events' x."""

    def __init__(self, weight, pool="mean"):
        nn.Module.__init__(self)
        self.weight, self.pool = nn.Parameter(torch.tensor(float(weight))), pool

    def forward(self, features, condition, ragged):
        return getattr(ragged, self.pool)(self.weight * features[:, :1])[:, 0]


class Quadratic(SetCritic):
    """Score = mean of |x|^2 / 2."""

    def __init__(self):
        nn.Module.__init__(self)

    def forward(self, features, condition, ragged):
        return ragged.mean((features**2).sum(1, keepdim=True) / 2)[:, 0]


def norms(critic, counts, features=None):
    ragged = Ragged.from_counts(torch.tensor(counts))
    features = torch.randn(sum(counts), 2) if features is None else features
    return functions.gradient_norms(critic, features, torch.zeros(len(counts), 5), ragged)


def test_penalties_of_one_muon_and_a_linear_critic():
    # One muon, critic = 3 x: |grad| = 3; (3 - 1)^2 = 4 and 3^2 = 9.
    scores, squared = norms(Linear(3.0), [1], torch.tensor([[2.0, 5.0]]))
    assert scores.item() == pytest.approx(6.0)
    assert losses.one_centred_penalty(squared).item() == pytest.approx(4.0)
    assert squared.item() == pytest.approx(9.0)


def test_a_shift_of_all_muons_counts_by_the_root_of_their_number():
    # The mean of N muons has the gradient 3 / N in each: N x 9 / N^2 = 9 / N. An event without muons has no gradient.
    _, squared = norms(Linear(3.0), [1, 0, 2, 50])
    assert squared.tolist() == pytest.approx([9.0, 0.0, 9 / 2, 9 / 50])
    # A sum has the gradient 3 in each: 9 N.
    _, squared = norms(Linear(3.0, "sum"), [1, 2, 10])
    assert squared.tolist() == pytest.approx([9.0, 18.0, 90.0])


def test_the_norm_is_each_events_own():
    # Score = mean |x|^2 / 2: gradient x / N in each muon, so sum x^2 / N^2.
    features = torch.tensor([[1.0, 2.0], [3.0, 0.0], [0.0, 4.0]])
    _, squared = norms(Quadratic(), [1, 2], features)
    assert squared.tolist() == pytest.approx([5.0, (9 + 16) / 4])


@pytest.mark.parametrize(
    ("kind", "expected"), [("one", (2 * (3 - 1) + (3 / 2 - 1)) / 2), ("zero", (2 * 3 + 2 * 3 / 4) / 2)]
)
def test_penalties_pull_on_the_critics_weights(kind, expected):
    # Of events with 1 and 4 muons (w - 1)^2 and (w / 2 - 1)^2, or w^2 and w^2 / 4: the mean of their derivatives at w = 3.
    critic = Linear(3.0)
    _, squared = norms(critic, [1, 4])
    penalty = losses.one_centred_penalty(squared) if kind == "one" else squared
    penalty.mean().backward()
    assert critic.weight.grad.item() == pytest.approx(expected, rel=1e-5)


def test_the_scores_of_the_same_pass_move_the_critic_too():
    critic = Linear(3.0)
    scores, _ = norms(critic, [2], torch.tensor([[1.0, 0.0], [3.0, 0.0]]))
    scores.sum().backward()
    assert critic.weight.grad.item() == pytest.approx(2.0)  # d/dw of w x mean(1, 3)


def test_a_flat_critic_has_a_finite_penalty_and_gradient():
    critic = Linear(0.0)  # The square root has no derivative at 0.
    _, squared = norms(critic, [3])
    losses.one_centred_penalty(squared).sum().backward()
    assert losses.one_centred_penalty(squared).item() == pytest.approx(1.0, abs=1e-5)
    assert math.isfinite(critic.weight.grad.item())


def test_the_penalty_leaves_no_gradient_in_the_muons():
    features = torch.randn(3, 2, requires_grad=True)
    _, squared = norms(Quadratic(), [3], features)
    squared.sum().backward()
    assert features.grad is None


def test_interpolates_lie_between_the_paired_muons_with_one_share_per_event():
    ragged = Ragged.from_counts(torch.tensor([2, 0, 1]))
    real, fake = torch.tensor([[1.0], [2.0], [3.0]]), torch.tensor([[11.0], [22.0], [33.0]])
    points = losses.interpolate(real, fake, torch.tensor([0.25, 0.5, 1.0]), ragged)
    assert points[:, 0].tolist() == pytest.approx([0.25 * 1 + 0.75 * 11, 0.25 * 2 + 0.75 * 22, 3.0])


def test_losses_of_both_kinds():
    real, fake = torch.tensor([2.0, 1.0]), torch.tensor([0.5, 1.0])
    assert losses.critic_loss(real, fake).tolist() == pytest.approx([-1.5, 0.0])
    assert losses.generator_loss(None, fake).tolist() == pytest.approx([-0.5, -1.0])
    # softplus(x) = ln(1 + e^x): ln(1 + e^-1.5) = 0.201413, ln(1 + e^1.5) = 1.701413, ln 2 = 0.693147.
    assert losses.critic_loss(real, fake, "relativistic").tolist() == pytest.approx([0.201413, 0.693147], rel=1e-5)
    assert losses.generator_loss(real, fake, "relativistic").tolist() == pytest.approx([1.701413, 0.693147], rel=1e-5)


@pytest.mark.parametrize("kind", ["wasserstein", "relativistic"])
def test_critic_and_generator_pull_the_fake_score_apart(kind):
    real, fake = torch.zeros(1), torch.zeros(1, requires_grad=True)
    losses.critic_loss(real, fake, kind).sum().backward()
    assert fake.grad.item() > 0  # The critic lowers the score of fakes,
    fake.grad = None
    losses.generator_loss(real, fake, kind).sum().backward()
    assert fake.grad.item() < 0  # the generator raises it.
