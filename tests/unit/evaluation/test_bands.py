"""The band of an ensemble's members: its width, and how often it holds the truth."""

import functools

import numpy as np
import pytest

from crmuons.evaluation.metrics.bands import bands, coverage, half_width, variance_factor
from crmuons.evaluation.metrics.quantities import Sample
from crmuons.evaluation.metrics.regions import hard_cases

FACTOR = 1.25  # Of four members.


def test_the_jackknife_of_a_mean_is_its_error():
    # Means of K - 1 of K parts: s^2 (K - 1)^2 / K is the variance of the mean of all, here 1 / 5.
    parts = np.random.default_rng(2).normal(size=(5, 20_000))
    members = (parts.sum(0) - parts) / 4
    variance = members.var(0, ddof=1).mean() * variance_factor(5, folds=True)
    assert variance == pytest.approx(1 / 5, rel=0.03)


def test_quantile_is_students_without_statistical_error_and_normal_without_spread():
    widths = half_width(np.array([0.0, 2.0]), np.array([1.0, 0.0]), members=5, factor=1.2)
    assert widths == pytest.approx([1.1416 * np.sqrt(1.2), 2.0], rel=1e-3)  # t of 4 degrees of freedom.


@pytest.mark.parametrize("statistical", [0.0, 0.5, 2.0])
def test_the_truth_as_one_more_member_is_covered_in_68_percent(statistical):
    rng, trials, members = np.random.default_rng(1), 20_000, 5
    made = rng.normal(size=(members, trials))
    truth = rng.normal(size=trials) + statistical * rng.normal(size=trials)
    width = half_width(
        np.full(trials, statistical), made.std(0, ddof=1), members, variance_factor(members, folds=False)
    )
    # Binomial error 0.0033. Satterthwaite's freedom is that of s itself here, so it is exact only at both ends.
    assert (np.abs(truth - made.mean(0)) <= width).mean() == pytest.approx(0.683, abs=0.02)


@functools.cache
def events(make, factor, noise, showers=3_000):
    """Toy events with energies multiplied by a factor; `noise` seeds the muons, and primaries and N are always the same."""
    toy = make(showers)
    rng = np.random.default_rng(noise)
    muons = toy.muons.copy()
    muons[:, 0] = factor * 10 ** rng.normal(2.5, 0.5, len(muons))
    return Sample.of(type(toy)(toy.ids, toy.primaries, toy.counts, muons), np.repeat(np.arange(showers), 3))


def of_energy(found, where="all events"):
    return [one for one in found if one.where == where and one.quantity == "log_energy"]


def test_equal_members_have_no_spread_and_cover_as_statistics_say(toy_events):
    outside = np.zeros(9_000, bool)
    counted = [
        coverage(of_energy(bands(events(toy_events, 1, seed), [], outside, FACTOR, *(events(toy_events, 1, 100 * seed + k) for k in range(4)))))
        for seed in range(1, 5)
    ]  # fmt: skip
    covered, number = np.sum(counted, axis=0)
    assert number > 70
    assert 0.55 < covered / number < 0.85  # 0.68 and half of the spread's noise, which is cut at zero.


def test_members_that_are_wrong_alike_do_not_cover(toy_events):
    members = [events(toy_events, 1.3, k) for k in range(4)]
    covered, number = coverage(of_energy(bands(events(toy_events, 1, 9), [], np.zeros(9_000, bool), FACTOR, *members)))
    assert covered / number < 0.4


def test_the_spread_is_that_of_the_members_without_that_of_their_events(toy_events):
    truth, outside = events(toy_events, 1, 9), np.zeros(9_000, bool)
    alike, apart = (
        of_energy(
            bands(truth, [], outside, FACTOR, *(events(toy_events, factor, k) for k, factor in enumerate(factors)))
        )
        for factors in ([1, 1, 1, 1], [0.8, 0.9, 1.1, 1.25])
    )
    assert np.sum([one.spread**2 for one in apart]) > 20 * np.sum([one.spread**2 for one in alike])


def test_bins_outside_the_trained_range_and_of_hard_cases_count_apart(toy_events):
    outside = np.arange(9_000) < 900
    found = bands(
        events(toy_events, 1, 9), hard_cases(None), outside, FACTOR, *(events(toy_events, 1, k) for k in range(3))
    )
    places = {one.where for one in found}
    assert {"all events", "N = 1", "primaries outside the trained range"} <= places
    assert sum(one.true for one in of_energy(found, "primaries outside the trained range")) == pytest.approx(
        0.1 * sum(one.true for one in of_energy(found)), rel=0.3
    )
