"""Published tables give their own numbers, and agree with each other."""

import numpy as np
import pytest

from crmuons.data import geometry
from crmuons.evaluation.nature import tables
from crmuons.evaluation.nature.sample import _vertical_m


def test_the_vertical_depth_is_the_inverse_of_the_slant_depth():
    depth, cosine = np.array([100.0, 1950.0, 2600.0, 2600.0]), np.array([1.0, 0.5, 0.1, 0.0])
    slant = geometry.slant_depth_m(depth, cosine)
    assert _vertical_m(slant, cosine, geometry.ICE_SURFACE_M) == pytest.approx(depth, rel=1e-9)


def test_tables_give_their_own_numbers_and_fall_with_depth_and_threshold():
    for row, least in enumerate(tables.LEAST_GEV):
        assert tables.vertical_intensity(tables.DEPTHS_KM, least) == pytest.approx(tables.INTENSITY[row])
        assert tables.mean_energy(tables.DEPTHS_KM, least) == pytest.approx(tables.MEAN_ENERGY[row])
    assert (np.diff(tables.INTENSITY, axis=0) < 0).all()
    assert (np.diff(tables.INTENSITY, axis=1) < 0).all()
    assert (np.diff(tables.MEAN_ENERGY, axis=1) > 0).all()
    assert tables.slant_intensity_in_rock(np.array([1.5])) == pytest.approx(7.24444624e-3)


def test_daemonflux_through_rock_is_mutes_intensity():
    """Two independent propagators of one flux, 0.5 km w.e. below the surface on the vertical."""
    ours = tables.vertical_intensity(np.array([0.5]), 1.0) / tables.water_over_rock(np.array([0.5]))
    assert ours == pytest.approx(tables.slant_intensity_in_rock(np.array([0.5])), rel=0.02)


def test_all_bundles_are_the_sum_over_their_sizes():
    many, h, c = np.arange(1.0, 1e5), np.array(3.0), np.array(0.9)
    assert tables.all_bundles(h, c) == pytest.approx((many * tables.bundle_intensity(many, h, c)).sum(), rel=1e-4)


def test_mupages_formula_at_a_depth_by_hand():
    # h = 2: K = 0.0072 * 2^-1.927 * exp(-1.128) = 6.13e-4; nu = 2.8076 exp(0.03 exp(0.94)) = 3.031
    assert tables.bundle_intensity(np.array([1.0, 3.0]), np.array(2.0), np.array(1.0)) == pytest.approx(
        [6.126e-4, 6.126e-4 / 3**3.0314], rel=1e-3
    )
    assert tables.mean_radius(np.array([2, 9]), np.array(2.0), np.array(0.0)) == pytest.approx([11.84, 10.13], rel=1e-3)
