"""Features: closed forms of the published step, and a second step that is inverted to the rounding of float32."""

import math

import numpy as np
import pytest
import torch

from crmuons.data.events import EventArrays
from crmuons.models.features import Features, muon_to_network
from crmuons.models.formulas import muon_from_network, primary_to_network


def events_of(muons, primaries=None):
    muons = np.asarray(muons, np.float32).reshape(-1, 3)
    primaries = np.asarray([[1e6, 0.3, 0.938, 1950.0]] if primaries is None else primaries, np.float32)
    counts = np.zeros(len(primaries), np.int64)
    counts[0] = len(muons)
    return EventArrays(np.zeros((len(primaries), 2), np.uint64), primaries, counts, muons)


def test_primaries_in_network_space():
    # 1 EeV is 1e9 GeV = 1e3 PeV; cos 60 = 1/2; iron's 52.09 GeV; 1950 m are 1.95 km.
    primaries = torch.tensor([[1e9, math.pi / 3, 52.09, 1950.0], [1e3, 0.0, 0.938, 10.0], [1e12, 1.57, 1.0, 1e5]])
    network = primary_to_network(primaries)
    assert network[0].tolist() == pytest.approx([3.0, 0.5, math.log10(52.09), 1.95], rel=1e-6)
    assert network[1, :2].tolist() == pytest.approx([-3.0, 1.0])


def test_muons_in_network_space_and_back():
    muons = torch.tensor([[1e3, 500.0, -250.0], [1e-1, 0.0, 0.0], [1e9, 1e4, 1e-3]])
    network = muon_to_network(muons)
    assert network[0].tolist() == pytest.approx([-3.0, 1.0, -0.5])
    torch.testing.assert_close(muon_from_network(network), muons, rtol=3e-6, atol=0)


def test_standardised_primaries_have_mean_zero_and_deviation_one(toy_events):
    events = toy_events(1000)
    condition = Features().fit(events).condition(torch.from_numpy(events.primaries))
    assert condition.mean(0).tolist() == pytest.approx([0.0] * 4, abs=1e-3)
    assert condition.std(0).tolist() == pytest.approx([1.0] * 4, abs=1e-3)


def test_standardisation_in_closed_form(toy_events):
    # Energies 1 and 100 PeV: log10 = 0 and 2, mean 1; two values a distance 2 apart deviate by 1 (n = 2000: 1.00025).
    one, other = [1e6, 0.0, 1.0, 1000.0], [1e8, 0.0, 1.0, 3000.0]
    features = Features().fit(events_of(toy_events(200).muons, [one, other] * 1000))
    condition = features.condition(torch.tensor([one, other]))
    assert condition[:, 0].tolist() == pytest.approx([-1.0, 1.0], abs=1e-3)
    assert condition[:, 3].tolist() == pytest.approx([-1.0, 1.0], abs=1e-3)
    assert condition[:, 1:3].tolist() == [[0.0, 0.0], [0.0, 0.0]]  # What does not vary is 0, not NaN.
    assert features.primary_range.tolist() == [one, other]


def test_log_counts_are_standardised_over_the_events_with_muons():
    muons = np.ones((110, 3))
    muons[:, 0] = np.arange(1, 111)
    events = events_of(muons, [[1e6, 0.3, 0.938, 1950.0]] * 4)
    events.counts[:] = [100, 0, 0, 10]
    features = Features().fit(events)
    assert features.log_count_mean.item() == pytest.approx(1.5)  # (log 100 + log 10) / 2
    log_counts = features.log_count(torch.tensor([10, 100]))
    assert log_counts.shape == (2, 1)
    assert log_counts.sum().item() == pytest.approx(0.0, abs=1e-6)
    assert log_counts[1].item() > 0


def extreme_muons():
    energy = 10 ** torch.linspace(-1, 9, 41)
    radius = torch.cat([torch.zeros(1), 10 ** torch.linspace(-3, 4, 40)])
    return torch.stack([energy.repeat_interleave(41), radius.repeat(41), torch.zeros(41 * 41)], dim=1)


def test_muon_features_are_inverted_to_the_rounding_of_single_precision(toy_events):
    features = Features().fit(toy_events(500))
    muons = torch.cat([torch.from_numpy(toy_events(100, seed=1).muons), extreme_muons()])
    azimuth = torch.atan2(muons[:, 2], muons[:, 1])
    back = features.to_muons(features.muons(muons), azimuth)
    # Two interpolations and two powers: some 6e-8 x |log10| x ln 10 each. Far outside (1e9 GeV with a fit that ends near
    # 1e4) the features are some 50 wide and their rounding is ten times larger.
    torch.testing.assert_close(back, muons, rtol=3e-5, atol=2e-6)
    inside = torch.from_numpy(toy_events(100, seed=1).muons)
    torch.testing.assert_close(back[: len(inside)], inside, rtol=5e-6, atol=5e-6)


def test_cartesian_features_are_inverted(toy_events):
    features = Features(cartesian=True).fit(toy_events(500))
    muons = torch.from_numpy(toy_events(100, seed=1).muons)
    assert features.muons(muons).shape == (len(muons), 3)
    own = features.muons(torch.from_numpy(toy_events(500).muons))
    assert own.mean(0).tolist() == pytest.approx([0.0] * 3, abs=1e-3)
    assert own.std(0).tolist() == pytest.approx([1.0] * 3, abs=1e-3)
    torch.testing.assert_close(features.to_muons(features.muons(muons), torch.zeros(len(muons))), muons, rtol=1e-5,
                               atol=1e-4)  # fmt: skip


def test_muon_features_are_normally_distributed_and_strictly_monotone(toy_events):
    features = Features().fit(toy_events(2000))
    mapped = features.muons(torch.from_numpy(toy_events(2000).muons))
    quantiles = torch.tensor([0.023, 0.159, 0.5, 0.841, 0.977])  # -2, -1, 0, 1, 2 sigma
    for column in mapped.unbind(1):
        assert column.quantile(quantiles).tolist() == pytest.approx([-2, -1, 0, 1, 2], abs=0.03)
    values = torch.ones(2000, 3)
    values[:, 0] = 10 ** torch.linspace(-1, 9, 2000)
    assert (features.muons(values)[:, 0].diff() > 0).all()


def test_tails_are_normal_too():
    # log10 E exponential, a power law in E: one muon in 100,000 belongs at 4.26 sigma, whatever the shape of the tail.
    beyond = (np.arange(1_000_000) + 0.5) / 1_000_000
    muons = np.stack([10 ** -np.log(beyond), np.ones_like(beyond), np.ones_like(beyond)], axis=1)
    features = Features().fit(events_of(muons))
    rare = torch.tensor([[10.0 ** -math.log(share), 1.0, 1.0] for share in (1e-2, 1e-4, 1e-5)])
    assert features.muons(rare)[:, 0].tolist() == pytest.approx([2.326, 3.719, 4.265], abs=0.02)


@pytest.mark.parametrize("radius", [0.0, 30.0, 3000.0])
@pytest.mark.parametrize("energy", [1.0, 1e3, 3.7e7])
def test_a_quantity_that_does_not_vary_has_finite_features(radius, energy):
    # All muons alike: 257 quantiles of one value, which float32 cannot keep apart by much less than 1e-6 of it.
    muons = np.tile([energy, radius, 0.0], (200, 1))
    features = Features().fit(events_of(muons))
    assert (features.knots.diff(dim=1) > 0).all()
    given = torch.tensor([[energy, radius, 0.0], [energy * 1.01, radius + 0.1, 0.0]])
    mapped = features.muons(given)
    assert torch.isfinite(mapped).all()
    back = features.to_muons(mapped, torch.zeros(2))
    torch.testing.assert_close(back, given, rtol=1e-3, atol=1e-5)


def test_repeated_values_keep_the_knots_apart():
    # Half of the muons exactly at a threshold of 1 TeV, the rest within a factor of 1.1 of it.
    energies = np.concatenate([np.full(500, 1e6), np.geomspace(1e6, 1.1e6, 500)])
    muons = np.stack([energies, np.ones(1000), np.ones(1000)], axis=1)
    features = Features().fit(events_of(muons))
    assert (features.knots.diff(dim=1) > 0).all()
    assert torch.isfinite(features.muons(torch.from_numpy(muons.astype(np.float32)))).all()


def test_too_small_a_sample_is_refused_with_what_is_missing():
    with pytest.raises(ValueError, match="sample of 1 training events has 99 muons, and the features need 100"):
        Features().fit(events_of(np.ones((99, 3))))


def test_a_single_event_is_enough_for_a_fit():
    muons = np.ones((150, 3))
    muons[:, 0] = np.arange(1, 151)
    features = Features().fit(events_of(muons))
    assert all(torch.isfinite(buffer).all() for buffer in features.buffers())
    assert features.condition(torch.tensor([[1e6, 0.3, 0.938, 1950.0]])).tolist() == [[0.0] * 4]


def test_features_are_saved_with_the_model(toy_events):
    fitted = Features().fit(toy_events(200))
    again = Features()
    again.load_state_dict(fitted.state_dict())
    muons = torch.from_numpy(toy_events(20, seed=3).muons)
    assert torch.equal(again.muons(muons), fitted.muons(muons))


@pytest.mark.parametrize(("column", "name"), [(1, "x_m 3e"), (2, "y_m 3e")])
def test_numbers_that_are_too_large_to_average_are_named_by_the_fit(column, name):
    # Finite in a file, and their sum is not in float32: the statistics of such a run were said to be a damaged file.
    muons = np.random.default_rng(0).lognormal(2.0, 1.0, (3000, 3))
    muons[:, column] = 3e38
    with pytest.raises(
        ValueError, match=r"numbers that are too large to average: depth_m reaches.*correct the files"
    ) as raised:
        Features().fit(events_of(muons))
    assert name in str(raised.value)
