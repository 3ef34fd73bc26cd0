"""What the densities of N and of the further features learn from draws of a known law."""

import math

import pytest
import torch
from scipy import stats

from crmuons.models.discrete import DiscreteFeatures
from crmuons.models.eager_optimizers import Adam
from crmuons.models.features import Features
from crmuons.models.multiplicity import MixtureMultiplicity
from crmuons.models.smooth import SmoothFeatures
from tests.unit.models.test_extra_features import EXTRA, events  # noqa: F401 - fixture
from tests.unit.models.test_multiplicity import CONDITION


def test_a_ring_of_angles_is_learned_with_its_hole():
    """Along and across lie on a ring of radius 1 to 10 %; a Gaussian of the same moments has 39 % within radius 0.7."""
    torch.manual_seed(0)
    angle, radius = 2 * math.pi * torch.rand(8_000), 1 + 0.1 * torch.randn(8_000)
    columns = torch.stack([torch.randn(8_000), torch.randn(8_000), radius * angle.cos(), radius * angle.sin()], dim=1)
    condition, network = torch.zeros(8_000, 5), SmoothFeatures([0, 1])
    optimizer = Adam(network.parameters(), 0.01)
    for step in range(200):
        rows = slice(1000 * (step % 8), 1000 * (step % 8 + 1))
        optimizer.zero_grad()
        network.loss(columns[rows], condition[rows]).mean().backward()
        optimizer.step()
    with torch.no_grad():
        drawn = network.draw(columns[:, :2], condition, torch.rand(8_000, 2), *torch.randn(2, 8_000, 2))
    assert float((torch.hypot(drawn[:, 2], drawn[:, 3]) < 0.7).float().mean()) < 0.08


def test_what_the_muons_of_an_event_share_is_learned_and_drawn():
    """Of a column with correlation 0.6 within events, and of one without; the correlation of two muons is what it was."""
    torch.manual_seed(0)
    pairs = 6_000
    common = torch.randn(pairs, 1).repeat(2, 1)
    values = torch.cat([0.6**0.5 * common + 0.4**0.5 * torch.randn(2 * pairs, 1), torch.randn(2 * pairs, 1)], dim=1)
    columns, condition = torch.cat([torch.randn(2 * pairs, 2), values], dim=1), torch.zeros(2 * pairs, 5)
    network, same = SmoothFeatures([0, 1]), torch.ones(pairs)
    optimizer = Adam(network.parameters(), 0.03)
    for _ in range(150):
        rows = torch.randperm(pairs)[:500]
        both = torch.cat([rows, rows + pairs])
        optimizer.zero_grad()
        network.pair_loss(columns[both], condition[both], same[rows]).mean().backward()
        optimizer.step()
    with torch.no_grad():
        shared, own = torch.randn(pairs, 2).repeat(2, 1), torch.randn(2 * pairs, 2)
        drawn = network.draw(columns[:, :2], condition, torch.rand(2 * pairs, 2), own, shared)
    for column, expected in ((2, 0.6), (3, 0.0)):
        found = torch.corrcoef(drawn[:, column].reshape(2, pairs))[0, 1]
        assert float(found) == pytest.approx(expected, abs=0.08)
        assert float(drawn[:, column].std()) == pytest.approx(1, abs=0.06)


def test_maximum_likelihood_finds_mean_and_shape():
    torch.manual_seed(0)
    counts = torch.from_numpy(stats.nbinom.rvs(3, 3 / (3 + 20), size=4000, random_state=1))
    model = MixtureMultiplicity(8, 1)
    optimizer = Adam(model.parameters(), 0.02)
    condition = CONDITION.expand(4000, 4)
    for _ in range(150):
        optimizer.zero_grad()
        model.loss(condition, counts).mean().backward()
        optimizer.step()
    _, log_mean, shape = (value[0].item() for value in model.parameters_of(CONDITION))
    assert math.exp(log_mean) == pytest.approx(counts.double().mean().item(), rel=0.02)  # Exact at the maximum.
    assert shape == pytest.approx(3, rel=0.12)


def test_the_probability_of_a_charge_is_learned_from_the_energy(events):  # noqa: F811
    torch.manual_seed(1)
    fitted = Features(extra=EXTRA).fit(events)
    muons = torch.from_numpy(events.muons[:4000])
    columns, numbers = fitted.columns(muons), fitted.level_numbers(muons)
    network = DiscreteFeatures(columns.shape[1], [len(levels) for levels in fitted.levels])
    optimizer = Adam(network.parameters(), 0.02)
    condition = torch.zeros(len(muons), 5)
    for _ in range(150):
        optimizer.zero_grad()
        network.loss(columns, condition, numbers).mean().backward()
        optimizer.step()
    with torch.no_grad():
        positive = network.network(torch.cat([condition, columns], dim=1)).softmax(1)[:, 1]
    hard = muons[:, 0] > 400
    soft = muons[:, 0] < 200
    assert float(positive[hard].mean()) == pytest.approx(0.8, abs=0.05)
    assert float(positive[soft].mean()) == pytest.approx(0.3, abs=0.05)
