"""Depths, water equivalents and energy losses against their closed forms."""

import numpy as np
import pytest

from crmuons.data import geometry
from crmuons.data.geometry import slant_depth_m
from crmuons.evaluation.nature import tables
from crmuons.simulation import atmosphere
from crmuons.simulation.propagation import (
    FLUCTUATION_LENGTH,
    HARD_RADIATION,
    IONISATION,
    MEDIA,
    SOFT_RADIATION,
    complete_water_m,
    least_surface_energy_gev,
    median_surface_energy_gev,
    propagate,
    scatter,
    water_equivalent_m,
)


def test_slant_depth_closes_the_triangle_with_the_earths_centre():
    depth, cosine = np.array([500.0, 1_950.0, 2_500.0, 1_950.0]), np.array([1.0, 0.9, 0.5, 0.1])
    slant = slant_depth_m(depth, cosine)
    surface = geometry.EARTH_RADIUS_M + geometry.ICE_SURFACE_M
    # Law of cosines: from radius r - d, a path s at the zenith angle ends at radius r.
    below = surface - depth
    assert below**2 + slant**2 + 2 * below * slant * cosine == pytest.approx(np.full(4, surface**2), rel=1e-12)
    assert slant[0] == pytest.approx(500.0)
    assert slant[2] == pytest.approx(2_500 / 0.5, rel=2e-3)  # A flat Earth, up to d / 2r tan^2.


def test_water_equivalent_counts_the_firn_apart():
    # Vertical: 200 m of 0.832 and 1750 m of 0.917.
    assert water_equivalent_m(np.array([1_950.0]), np.array([1.0])) == pytest.approx([0.832 * 200 + 0.917 * 1_750])
    assert water_equivalent_m(np.array([50.0]), np.array([1.0])) == pytest.approx([0.832 * 50])


def test_mean_radiative_loss_is_the_gamma_process_transform():
    water = np.full(100_000, 1_800.0)
    low, high = (propagate(np.full_like(water, gev), water, np.random.default_rng(1)) for gev in (1e6, 2e6))
    kept = (high - low) / 1e6  # exp(-B): the loss is linear in the energy.
    hard = HARD_RADIATION * FLUCTUATION_LENGTH
    expected = np.exp(-SOFT_RADIATION * 1_800) * (1 + hard) ** (-1_800 / FLUCTUATION_LENGTH)
    assert kept.mean() == pytest.approx(expected, abs=5 * kept.std() / np.sqrt(len(kept)))
    assert -np.log(kept).mean() == pytest.approx(
        (SOFT_RADIATION + HARD_RADIATION) * 1_800, rel=0.01
    )  # The mean of B is b X.


@pytest.mark.parametrize(
    ("ice_m", "tolerance"), [(500.0, 0.03), (1_000.0, 0.03), (1_950.0, 0.06), (3_000.0, 0.08), (4_000.0, 0.08)]
)
def test_half_of_the_muons_keep_1_tev_from_the_published_median_energy(ice_m, tolerance):
    energy = np.full(50_000, median_surface_energy_gev(np.array([ice_m]))[0])
    after = propagate(energy, np.full_like(energy, 0.917 * ice_m), np.random.default_rng(2))
    assert np.median(after) == pytest.approx(1_000, rel=tolerance)


def test_published_median_energy_at_1950_m():
    # 1e3 exp(1950 / 2521.51 + 1950^2 / 7.13834e8) = 1e3 exp(0.77334 + 0.00533) = 2179 GeV
    assert median_surface_energy_gev(np.array([1_950.0])) == pytest.approx([2_178.6], rel=1e-4)


@pytest.mark.parametrize(
    ("water_m", "median_gev"), [(500.0, 1_267.0), (1_000.0, 1_625.0), (2_000.0, 2_765.0), (3_000.0, 4_854.0)]
)
def test_half_of_the_muons_keep_1_tev_in_rock_from_the_energy_of_an_independent_calculation(water_m, median_gev):
    """Compound Poisson losses of bremsstrahlung, pairs and nuclear interactions, on Groom's tables for standard rock."""
    energy = np.full(50_000, median_gev)
    after = propagate(energy, np.full_like(energy, water_m), np.random.default_rng(2), MEDIA["rock"])
    assert np.median(after) == pytest.approx(1_000, rel=0.1)  # 5 % in the energy at the surface.


def test_rock_and_water_take_what_the_tables_of_groom_say_they_do():
    # Groom, Mokhov and Striganov at 1 TeV, GeV/m and 1e-3/m of water equivalent; constants over all energies differ by 4 %.
    rock, water = (0.2681, 0.3924), (0.3045, 0.2958)
    ours = MEDIA["rock"]
    assert ours.ionisation / IONISATION == pytest.approx(rock[0] / water[0], rel=0.04)
    radiation = [medium.soft_radiation + medium.hard_radiation for medium in (ours, MEDIA["water"])]
    assert radiation[0] / radiation[1] == pytest.approx(rock[1] / water[1], rel=0.04)
    assert MEDIA["water"].soft_radiation == MEDIA["ice"].soft_radiation


@pytest.mark.parametrize("medium", ["water", "rock"])
@pytest.mark.parametrize("water_km", [0.5, 1.0, 1.5, 2.0, 3.0, 4.0])
def test_daemonfluxs_muons_reach_each_depth_as_in_an_independent_calculation(medium, water_km):
    """Intensities above 1 GeV of the vertical surface flux, with single losses by bremsstrahlung, pairs and nuclei."""
    energy = np.geomspace(100, 3e5, 400)
    power = np.diff(np.log(tables.SURFACE_E3[-2:])) / np.diff(np.log(tables.SURFACE_GEV[-2:]))
    grid = np.append(tables.SURFACE_GEV, 3e5)
    e3 = np.append(tables.SURFACE_E3, tables.SURFACE_E3[-1] * (3e5 / grid[-2]) ** power)
    flux = 1e4 * np.exp(np.interp(np.log(energy), np.log(grid), np.log(e3))) / energy**3
    many = np.repeat(energy, 500)
    after = propagate(many, np.full_like(many, 1e3 * water_km), np.random.default_rng(3), MEDIA[medium]).reshape(
        400, 500
    )
    intensity = np.trapezoid(flux * (after > 1).mean(1), energy)
    expected = tables.vertical_intensity(np.array(water_km), 1.0)
    if medium == "rock":
        expected /= tables.water_over_rock(np.array(water_km))
    assert intensity == pytest.approx(expected, rel=0.04 if water_km >= 1 else 0.06)


def test_water_equivalents_of_water_and_rock_are_their_densities():
    slant, cosine = np.array([1_000.0]), np.array([0.7])
    assert water_equivalent_m(slant, cosine, MEDIA["water"]).tolist() == [1_000.0]
    assert water_equivalent_m(slant, cosine, MEDIA["rock"]) == pytest.approx([2_650.0])


@pytest.mark.parametrize("medium", MEDIA)
def test_the_depth_of_completeness_is_where_the_cutoff_is_the_least_surface_energy(medium):
    water = complete_water_m(1_000.0, 10.0, MEDIA[medium])
    least = least_surface_energy_gev(np.array([water]), 10.0, MEDIA[medium])
    assert least == pytest.approx([1_000.0], rel=1e-9)
    assert complete_water_m(5.0, 10.0, MEDIA[medium]) == 0


def test_following_a_muon_in_two_steps_is_following_it_in_one():
    energy, step = np.full(100_000, 3_000.0), np.full(100_000, 900.0)
    rng = np.random.default_rng(3)
    twice = propagate(propagate(energy, step, rng), step, rng)
    once = propagate(energy, 2 * step, rng)
    quantiles = [0.1, 0.25, 0.5, 0.75, 0.9]
    assert np.quantile(twice, quantiles) == pytest.approx(np.quantile(once, quantiles), rel=0.02)


def test_scattering_adds_up_over_the_way_and_turns_as_it_moves():
    before, after, water = (np.full(200_000, value) for value in (1_000.0, 300.0, 2_000.0))
    shift, angle = scatter(before, after, water, np.random.default_rng(7))
    distance = np.linspace(0, 2_000, 20_001)  # From the end.
    growth = (13.6e-3 * 1.33) ** 2 / 0.3608 / (300 + 0.35 * distance) ** 2
    moments = [np.trapezoid(growth * distance**power, distance) for power in (0, 1, 2)]
    assert angle.var(axis=1) == pytest.approx([moments[0]] * 2, rel=0.02)
    assert (shift * angle).mean(axis=1) == pytest.approx([moments[1]] * 2, rel=0.02)
    assert shift.var(axis=1) == pytest.approx([moments[2]] * 2, rel=0.02)
    assert np.sqrt(moments[2]) == pytest.approx(1.99, rel=0.01)  # Metres, for a muon that ends with 300 GeV.


def test_no_muon_below_the_least_surface_energy_arrives_and_some_just_above_do():
    water = np.full(100_000, 1_800.0)
    least = least_surface_energy_gev(water, 10.0)
    assert propagate(least * 0.999, water, np.random.default_rng(4)).max() < 10
    assert propagate(least * 1.05, water, np.random.default_rng(4)).max() > 10


def test_slow_muons_lose_by_ionisation_and_then_stop():
    water, rng = np.array([10.0]), np.random.default_rng(5)
    assert propagate(np.array([100.0]), water, rng)[0] <= 100 - IONISATION * 10 * (1 - SOFT_RADIATION * 10)
    assert propagate(np.array([2.0]), water, rng)[0] == 0


def test_effective_cosine_is_the_cosine_for_steep_showers_and_stays_finite_at_the_horizon():
    assert atmosphere.effective_cosine(np.array([1.0])) == pytest.approx([1.0])
    assert atmosphere.effective_cosine(np.array([0.5])) == pytest.approx([0.5], rel=0.02)
    assert atmosphere.effective_cosine(np.array([0.0]))[0] > 0.05


def test_path_to_a_height_is_the_height_over_the_cosine_where_the_earth_is_flat():
    assert atmosphere.path_m(np.array([20_000.0]), np.array([1.0]), 2_835.0) == pytest.approx([20_000.0])
    # h / cos (1 - h tan^2 / 2r): 40000 (1 - 20000 * 3 / (2 * 6.374e6)) = 39812
    assert atmosphere.path_m(np.array([20_000.0]), np.array([0.5]), 2_835.0) == pytest.approx([39_812], rel=1e-4)


def test_air_above_a_height_falls_by_e_in_one_scale_height():
    air = np.array([100.0, 100.0 / np.e])
    high, higher = atmosphere.height_m(air)
    assert higher - high == pytest.approx(atmosphere.SCALE_HEIGHT_M)


def test_air_takes_2_gev_from_a_vertical_muon_and_decay_few_of_100_gev():
    one = np.ones(1)
    assert atmosphere.air_loss_gev(one, 0.0) == pytest.approx([2.2e-3 * 930])
    # 16.1 km against gamma c tau = 100 / 0.1057 * 658.6 m = 623 km.
    assert atmosphere.survival(100 * one, atmosphere.typical_path_m(one, 0.0)) == pytest.approx(
        [np.exp(-16.1 / 623.4)], abs=1e-4
    )


def test_the_field_across_a_track_is_the_whole_field_less_what_lies_along_it():
    one = np.ones(1)
    assert atmosphere.transverse_field(one, 0 * one) == pytest.approx([16.811e-6])
    along = 51.890 / np.hypot(51.890, 16.811)
    assert atmosphere.transverse_field(along * one, 0 * one) == pytest.approx([0.0], abs=1e-8)
