"""Power laws with breaks: what is drawn, and what each energy is worth."""

import re
from itertools import pairwise

import numpy as np
import pytest

from crmuons.simulation.power_law import PowerLaw, fault

BROKEN = (1.0, 1e6, 1.5)


def test_a_law_with_a_break_has_the_shares_of_its_closed_form():
    low, broken = PowerLaw((600.0, 1e10), BROKEN).segments
    # The integrals of 1/E to the break, and of E^-1.5 1e6^0.5 from it: ln(1e6 / 600) = 7.419, 2 (1 - 1e-2) = 1.98.
    assert low.share == pytest.approx(7.4186 / 9.3986, rel=1e-4)
    assert (low.gamma, low.high_gev, broken.low_gev, broken.gamma) == (1.0, 1e6, 1e6, 1.5)
    assert low.share + broken.share == pytest.approx(1.0)


@pytest.mark.parametrize("gamma", [1.0, 2.7, 0.0, BROKEN, (0.5, 1e4, 1.0, 1e7, 2.0)])
def test_the_density_is_the_derivative_of_the_share_below(gamma):
    law = PowerLaw((600.0, 1e10), gamma)
    edges = law.quantile(np.linspace(0.0, 1.0, 21))
    assert edges[[0, -1]] == pytest.approx([600.0, 1e10])
    for low, high in pairwise(edges):
        grid = np.geomspace(low, high, 4001)
        assert np.trapezoid(law.density(grid), grid) == pytest.approx(1 / 20, rel=1e-3)


def test_the_density_is_continuous_at_a_break_and_zero_outside():
    law = PowerLaw((600.0, 1e10), BROKEN)
    below, above = law.density(np.array([1e6 * (1 - 1e-9), 1e6]))
    assert below == pytest.approx(above, rel=1e-6)
    assert law.density(np.array([599.0, 1.01e10])).tolist() == [0.0, 0.0]


def test_a_break_outside_of_the_range_changes_nothing():
    uniform = np.random.default_rng(0).random(1000)
    for energies, gamma in (((600.0, 1e5), 1.0), ((1e7, 1e9), 1.5)):
        law, plain = PowerLaw(energies, BROKEN), PowerLaw(energies, gamma)
        assert law.quantile(uniform).tolist() == plain.quantile(uniform).tolist()
        assert str(law) == f"E^-{gamma:g}"


def test_a_single_energy_is_drawn_always():
    assert set(PowerLaw((1e6, 1e6), BROKEN).quantile(np.linspace(0, 1, 5))) == {1e6}


@pytest.mark.parametrize(
    ("gamma", "says"),
    [
        (-1.0, "-1: expected 0 to 10"),
        ((1.0, 1e6), "1 1e.06: expected a power, or powers with rising energies"),
        ((1.0, 1e6, 11.0), "11: expected 0 to 10"),
        ((1.0, 1e6, 2.0, 1e5, 3.0), "rising"),
        ((), "expected a power"),
        ((1.0, 0.0, 2.0), "rising"),
        ((1.0, float("nan"), 2.0), "rising"),
    ],
)
def test_a_law_that_cannot_be_says_what_would_be_right(gamma, says):
    assert re.search(says, fault(gamma))


@pytest.mark.parametrize("gamma", [1.0, 1.4, BROKEN, (0.0, 1e3, 10.0)])
def test_a_law_that_can_be_has_no_fault(gamma):
    assert fault(gamma) == ""
