"""The PIT under a model's own distribution: exact, uniform for the right model, and looked at cell by cell."""

import numpy as np
import pytest
import torch
from scipy.stats import kstwobign, nbinom

from crmuons import config
from crmuons.evaluation.metrics import calibration
from crmuons.evaluation.metrics.calibration import Calibration
from crmuons.evaluation.metrics.distances import Missing
from crmuons.models.bundle_model import BundleModel
from crmuons.models.features import Features


def test_distribution_of_a_mixture_is_the_weighted_sum_of_its_components():
    log_weights, log_means, shapes = np.log([[0.3, 0.7]]), np.log([[2.0, 5000.0]]), np.array([[0.5, 1e4]])
    for count in (0, 1, 7, 4900, 20_000):
        wanted = sum(
            weight * nbinom.cdf(count, shape, shape / (shape + mean))
            for weight, mean, shape in ((0.3, 2.0, 0.5), (0.7, 5000.0, 1e4))
        )
        found = calibration.mixture_cdf(log_weights, log_means, shapes, np.array([count]))
        assert found == pytest.approx([wanted], rel=1e-9)
    assert calibration.mixture_cdf(log_weights, log_means, shapes, np.array([-1])) == [0.0]


def test_what_chance_gives_is_kolmogorovs_law(monkeypatch):
    expected = [pytest.approx(number / 20, rel=1e-9) for number in (kstwobign.mean(), kstwobign.std())]
    monkeypatch.setattr(
        type(kstwobign), "mean", pytest.fail
    )  # It integrates numerically, 0.1 s for each bin of a report.
    found = calibration.null_uniformity(400)
    assert [found.value, found.error] == expected


@pytest.mark.parametrize("multiplicity", ["mixture", "regressor"])
def test_cumulative_is_what_the_model_draws(multiplicity, toy_events):
    events = toy_events(40)
    torch.manual_seed(0)
    model = BundleModel(config.Model(multiplicity=multiplicity, multiplicity_width=16), Features().fit(events))
    below, up_to = calibration.cumulative(model, events.primaries, events.counts)
    given = torch.from_numpy(events.primaries)
    draws = model.sample_counts(given.repeat(2000, 1)).numpy().reshape(2000, -1)
    # Binomial errors of 2,000 draws are 0.011 at most; the largest of 240 deviations stays below five.
    assert np.abs((draws < events.counts).mean(0) - below).max() < 0.056
    assert np.abs((draws <= events.counts).mean(0) - up_to).max() < 0.056
    assert ((up_to > below) | (multiplicity == "regressor")).all()


def negative_binomials(factor: float, number: int = 8000) -> Calibration:
    """True counts of mean m, held against a model that says m times a factor."""
    rng = np.random.default_rng(3)
    means, shape = 10 ** rng.uniform(-1, 2, number), 3.0
    counts = rng.poisson(means * rng.gamma(shape, 1 / shape, number))
    parameters = np.zeros((number, 1)), np.log(factor * means)[:, None], np.full((number, 1), shape)
    below, up_to = (calibration.mixture_cdf(*parameters, counts - late) for late in (1, 0))
    conditions = np.stack([rng.uniform(4, 6, number), rng.uniform(0, 1, number), np.zeros(number), np.ones(number)], 1)
    return Calibration(calibration.randomised_pit(below, up_to, seed=0), conditions)


def test_pit_of_the_right_model_is_uniform_and_of_a_wrong_one_is_not():
    for factor, calibrated in ((1.0, True), (1.1, False)):
        found, floor = calibration.pit_numbers(negative_binomials(factor))
        assert (found.value < floor.value + 4 * floor.error) is calibrated


def test_a_cell_that_is_off_is_the_worst_one_and_chance_is_allowed_for():
    right = negative_binomials(1.0)
    worst, chance = calibration.worst_pit_cell(calibration.pit_cells(right), seed=0)
    assert abs(worst.value - chance.value) < 4 * chance.error
    off = (right.conditions[:, 0] > 5) & (right.conditions[:, 1] > 0.5)
    cells = calibration.pit_cells(Calibration(np.where(off, right.pit**1.3, right.pit), right.conditions))
    assert len(cells) == 4  # Two decades, two halves of cos zenith; one mass and one depth.
    highest = max(cells, key=lambda cell: cell.distance.value)
    assert highest.energy == "10⁵–10⁶ GeV"
    assert highest.zenith.startswith("0.5")
    assert highest.distance.value > chance.value + 4 * chance.error


def test_uniformity_of_equally_spaced_values_is_half_a_step():
    assert calibration.uniformity((np.arange(100) + 0.5) / 100).value == pytest.approx(0.005)
    assert calibration.uniformity(np.zeros(99)) == Missing("99 showers, 100 needed")
