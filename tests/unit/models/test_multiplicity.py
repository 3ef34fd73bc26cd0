"""The distribution of N: a probability, equal to scipy's negative binomial, and sampled as it says."""

import math

import numpy as np
import pytest
import torch
from scipy import stats

from crmuons import config
from crmuons.models.formulas import MAX_COUNT, MAX_SHAPE
from crmuons.models.multiplicity import MixtureMultiplicity, RegressorMultiplicity, build_multiplicity

CONDITION = torch.tensor([[0.5, -1.0, 0.3, 2.0]])


def one_component(log_mean, shape):
    """A single negative binomial, whatever the primary."""
    model = MixtureMultiplicity(4, 1)
    with torch.no_grad():
        model.network[-1].weight.zero_()
        # Shape = MAX_SHAPE x sigmoid(s - log(MAX_SHAPE / 4)); the mean is exp(3 m - 1/2 for the only component).
        logit = math.log(shape / (MAX_SHAPE - shape)) if shape < MAX_SHAPE else 40.0
        bias = [0.0, (log_mean + 0.5) / 3, logit + math.log(MAX_SHAPE / 4)]
        model.network[-1].bias.copy_(torch.tensor(bias))
    return model


@pytest.mark.parametrize(("mean", "shape"), [(0.1, 0.5), (3.0, 2.0), (200.0, 11.3), (5e4, 0.7)])
def test_one_component_is_scipys_negative_binomial(mean, shape):
    counts = torch.tensor([0, 1, 2, 10, 1000, 100_000])
    got = one_component(math.log(mean), shape).log_prob(CONDITION.expand(6, 4), counts)
    expected = stats.nbinom.logpmf(counts.numpy(), shape, shape / (shape + mean))
    assert got.tolist() == pytest.approx(expected.tolist(), rel=2e-5, abs=1e-5)  # Float32 parameters.


def test_the_largest_shape_is_a_poisson_distribution():
    # Variance = mean (1 + mean / shape): at a mean of 5 and a shape of 1e4 it is 0.05 % above Poisson's.
    counts = torch.arange(20)
    got = one_component(math.log(5), MAX_SHAPE).log_prob(CONDITION.expand(20, 4), counts)
    assert got.exp().tolist() == pytest.approx(stats.poisson.pmf(counts.numpy(), 5).tolist(), rel=1e-2, abs=1e-4)


def test_probabilities_of_all_n_add_up_to_one():
    torch.manual_seed(3)
    model = MixtureMultiplicity(16, 4)
    for condition in torch.randn(3, 1, 4):
        counts = torch.arange(3000)
        assert model.log_prob(condition.expand(3000, 4), counts).exp().sum().item() == pytest.approx(1.0, abs=1e-6)


@pytest.mark.parametrize(("mean", "shape"), [(0.2, 1.0), (30.0, 2.0), (1000.0, 10.0)])
def test_samples_have_the_mean_and_the_variance_of_the_parameters(mean, shape):
    number = 40_000
    source = torch.Generator().manual_seed(0)
    counts = one_component(math.log(mean), shape).sample(CONDITION.expand(number, 4), source).double()
    variance = mean + mean**2 / shape
    assert counts.mean().item() == pytest.approx(mean, abs=5 * math.sqrt(variance / number))
    assert counts.var().item() == pytest.approx(variance, rel=0.08)
    empty = (1 + mean / shape) ** -shape
    assert (counts == 0).double().mean().item() == pytest.approx(empty, abs=5 * math.sqrt(empty / number) + 1e-9)


def test_samples_of_a_mixture_follow_its_likelihood():
    torch.manual_seed(5)
    model, number = MixtureMultiplicity(16, 3), 40_000
    counts = model.sample(CONDITION.expand(number, 4), torch.Generator().manual_seed(1))
    probability = model.log_prob(CONDITION.expand(8, 4), torch.arange(8)).exp().detach()
    shares = torch.bincount(counts, minlength=8)[:8].double() / number
    for share, expected in zip(shares.tolist(), probability.tolist(), strict=True):
        assert share == pytest.approx(expected, abs=5 * math.sqrt(expected / number))


@pytest.mark.parametrize("scale", [1.0, 30.0])
def test_gradients_are_finite_from_no_muon_to_a_hundred_thousand(scale):
    torch.manual_seed(0)
    model = MixtureMultiplicity(16, 4)
    with torch.no_grad():
        model.network[-1].weight.mul_(scale)  # Log means of some +-10 and shapes down to 1e-5 and up to the largest.
    condition, counts = torch.randn(4, 4), torch.tensor([0, 1, 1000, 100_000])
    loss = model.loss(condition, counts)
    loss.sum().backward()
    assert torch.isfinite(loss).all()
    assert all(torch.isfinite(parameter.grad).all() for parameter in model.parameters())


def test_a_batch_without_events_has_no_loss_but_a_gradient():
    for model in (MixtureMultiplicity(4, 2), RegressorMultiplicity(4)):
        loss = model.loss(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64))
        assert loss.shape == (0,)
        loss.sum().backward()
        assert all((parameter.grad == 0).all() for parameter in model.parameters())


def test_the_regressor_learns_log_n_and_rounds():
    model = RegressorMultiplicity(4)
    with torch.no_grad():
        model.network[-1].weight.zero_()
        model.network[-1].bias.fill_(math.log10(1 + 6.4))
    condition = CONDITION.expand(2, 4)
    assert model.sample(condition).tolist() == [6, 6]
    # (log10 7.4 - log10 1)^2 = 0.869232^2 = 0.755564 for no muon; (log10 7.4 - log10 100)^2 = 1.130768^2 = 1.278637 for 99.
    assert model.loss(condition, torch.tensor([0, 99])).tolist() == pytest.approx([0.755564, 1.278637], rel=1e-4)
    with torch.no_grad():
        model.network[-1].bias.fill_(-1.0)
    assert model.sample(condition).tolist() == [0, 0]  # 10^-1 - 1 < 0 is no number of muons.


def test_the_settings_name_the_model():
    assert isinstance(build_multiplicity(config.Model()), MixtureMultiplicity)
    assert build_multiplicity(config.Model(multiplicity_components=7)).components == 7
    assert isinstance(build_multiplicity(config.Model(multiplicity="regressor")), RegressorMultiplicity)


def test_sampling_repeats_with_its_seed():
    model = MixtureMultiplicity(8, 3)
    draws = [model.sample(torch.randn(50, 4, generator=torch.Generator().manual_seed(9)),
                          torch.Generator().manual_seed(seed)) for seed in (4, 4, 5)]  # fmt: skip
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])
    assert draws[0].dtype == torch.int64
    assert np.all(draws[0].numpy() >= 0)


@pytest.mark.parametrize("log_mean", [60.0, 2000.0])  # exp(60) = 1e26, and infinity.
def test_n_beyond_every_integer_is_limited(log_mean):
    # Without the limit a conversion to int64 gives a negative number.
    assert one_component(log_mean, 5.0).sample(CONDITION).item() == pytest.approx(MAX_COUNT, rel=1e-6)
    model = RegressorMultiplicity(4)
    with torch.no_grad():
        model.network[-1].weight.zero_()
        model.network[-1].bias.fill_(log_mean)
    assert model.sample(CONDITION).item() == MAX_COUNT
