"""Generator and critic of sets: muons of an event are exchangeable, events do not see each other."""

import pytest
import torch

from crmuons import config
from crmuons.generation.generator import BundleGenerator
from crmuons.models.bundle_model import BundleModel
from crmuons.models.features import Features
from crmuons.models.networks import build_networks
from crmuons.models.ragged import Ragged

KINDS = ["set", "predecessor"]
COUNTS = torch.tensor([3, 1, 5])


def networks(kind, features=2):
    torch.manual_seed(0)
    return build_networks(config.Model(kind=kind, width=8), features)


def noise(generator, events, muons):
    source = torch.Generator().manual_seed(1)
    shower = torch.randn(events, generator.shower_latents, generator=source)
    return shower, torch.randn(muons, generator.muon_latents, generator=source)


def draw_muons(model, primaries, counts):
    events = BundleGenerator(model, {}).generate(primaries.numpy(), seed=0, counts=counts.numpy())
    return torch.from_numpy(events.muons)


@pytest.mark.parametrize("kind", KINDS)
def test_the_score_does_not_depend_on_the_order_of_the_muons(kind):
    _, critic = networks(kind)
    features, condition, ragged = torch.randn(9, 2), torch.randn(3, 5), Ragged.from_counts(COUNTS)
    turned = torch.cat([piece.flip(0) for piece in features.split(COUNTS.tolist())])
    scores = critic(features, condition, ragged)
    assert scores.shape == (3,)
    torch.testing.assert_close(critic(turned, condition, ragged), scores)
    other = features.clone()
    other[3] += 1.0  # The only muon of the second event.
    changed = critic(other, condition, ragged) != scores
    assert changed.tolist() == [False, True, False]


@pytest.mark.parametrize("kind", KINDS)
def test_the_score_depends_on_the_primary(kind):
    _, critic = networks(kind)
    features, condition, ragged = torch.randn(9, 2), torch.randn(3, 5), Ragged.from_counts(COUNTS)
    other = condition.clone()
    other[0, 0] += 1.0
    changed = critic(features, other, ragged) != critic(features, condition, ragged)
    assert changed.tolist() == [True, False, False]


@pytest.mark.parametrize("kind", KINDS)
def test_generated_muons_follow_their_noise_and_their_event_alone(kind):
    generator, _ = networks(kind)
    ragged, condition = Ragged.from_counts(COUNTS), torch.randn(3, 5)
    shower, muon = noise(generator, 3, 9)
    made = generator(condition, shower, muon, ragged)
    assert made.shape == (9, 2)
    order = torch.tensor([2, 0, 1, 3, 8, 7, 6, 5, 4])  # Within the events.
    torch.testing.assert_close(generator(condition, shower, muon[order], ragged), made[order])
    alone = generator(condition[2:], shower[2:], muon[4:], Ragged.from_counts(COUNTS[2:]))
    torch.testing.assert_close(alone, made[4:])
    shower[0] += 1.0  # Shared by the event's muons, all of which move.
    moved = (generator(condition, shower, muon, ragged) != made).any(dim=1)
    assert moved.tolist() == [True] * 3 + [False] * 6


@pytest.mark.parametrize("kind", KINDS)
def test_networks_take_no_events(kind):
    generator, critic = networks(kind)
    nothing = Ragged.from_counts(torch.zeros(0, dtype=torch.int64))
    made = generator(torch.zeros(0, 5), *noise(generator, 0, 0), nothing)
    assert made.shape == (0, 2)
    critic(made, torch.zeros(0, 5), nothing).sum().backward()
    assert all((p.grad == 0).all() for p in [*generator.parameters(), *critic.parameters()])


def test_muons_of_a_set_see_each_other_and_those_of_the_predecessor_do_not():
    for kind, expected in (("set", True), ("predecessor", False)):
        generator, _ = networks(kind)
        shower, muon = noise(generator, 1, 2)
        ragged, condition = Ragged.from_counts(torch.tensor([2])), torch.zeros(1, 5)
        made = generator(condition, shower, muon, ragged)
        muon[0] += 1.0
        assert bool((generator(condition, shower, muon, ragged)[1] != made[1]).any()) is expected


@pytest.mark.parametrize("kind", KINDS)
def test_second_derivatives_of_the_critic_exist(kind):
    # Without them a gradient penalty trains nothing.
    _, critic = networks(kind)
    features = torch.randn(9, 2, requires_grad=True)
    scores = critic(features, torch.randn(3, 5), Ragged.from_counts(COUNTS))
    (gradient,) = torch.autograd.grad(scores.sum(), features, create_graph=True)
    (gradient**2).sum().backward()
    assert sum(p.grad.abs().sum() for p in critic.parameters() if p.grad is not None) > 0


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_draws_physical_muons_in_the_order_of_their_events(kind, toy_events):
    events = toy_events(200)
    model = BundleModel(config.Model(kind=kind, width=8), Features(cartesian=kind == "predecessor").fit(events))
    primaries = torch.from_numpy(events.primaries[:50])
    counts = torch.arange(50) % 3
    muons = draw_muons(model, primaries, counts)
    assert muons.shape == (int(counts.sum()), 3)
    assert torch.isfinite(muons).all()
    assert (muons[:, 0] > 0).all()
    # An event's muons depend on its own primary: another energy of the last event changes its muons alone.
    primaries[-1, 0] *= 100
    again = draw_muons(model, primaries, counts)
    changed = (again != muons).any(dim=1)
    assert changed.tolist() == [False] * (len(muons) - 1) + [True]


def test_azimuths_are_uniform(toy_events):
    events = toy_events(200)
    model = BundleModel(config.Model(width=8), Features().fit(events))
    muons = draw_muons(model, torch.from_numpy(events.primaries[:1]), torch.tensor([20_000]))
    azimuth = torch.atan2(muons[:, 2], muons[:, 1])
    # The mean of 20,000 cosines is 0 +- 1 / sqrt(2 x 20,000) = 0.005.
    assert azimuth.cos().mean().item() == pytest.approx(0, abs=0.02)
    assert (2 * azimuth).cos().mean().item() == pytest.approx(0, abs=0.02)


def test_the_condition_holds_the_primary_and_log_n(toy_events):
    events = toy_events(200)
    model = BundleModel(config.Model(width=8), Features().fit(events))
    primaries, counts = torch.from_numpy(events.primaries[:4]), torch.tensor([1, 10, 100, 0])
    condition = model.condition(primaries, counts)
    assert torch.equal(condition[:, :4], model.features.condition(primaries))
    assert (condition[1, 4] - condition[0, 4]).item() == pytest.approx((condition[2, 4] - condition[1, 4]).item())
