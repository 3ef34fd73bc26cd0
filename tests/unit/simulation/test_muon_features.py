"""Directions, delays, charges and surface energies of simulated muons and of CORSIKA's."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from crmuons.data import arrow, features
from crmuons.simulation import corsika, shower
from crmuons.simulation.shower import LIGHT_M_PER_NS
from crmuons.simulation.simulate import FEATURES, SimulationSettings, draw_block
from crmuons.simulation.surface import DepthSettings, to_events
from tests.unit.simulation.corsika_files import dat_bytes, event_blocks

SHARED = Path(__file__).parents[3].parent / "shared" / "data" / "corsika"
SETTINGS = {"energy_gev": (1e5, 1e7), "max_zenith_deg": 40.0}


@pytest.fixture(scope="module")
def block():
    return draw_block(SimulationSettings(features=FEATURES, **SETTINGS), 3, 0)


@pytest.fixture(scope="module")
def column(block):
    names = ("energy_gev", "x_m", "y_m", *FEATURES)
    return dict(zip(names, block.muons.astype(np.float64).T, strict=True))


def test_the_first_three_are_those_of_a_simulation_without_features(block):
    plain = draw_block(SimulationSettings(**SETTINGS), 3, 0)
    np.testing.assert_array_equal(plain.muons, block.muons[:, :3])
    np.testing.assert_array_equal(plain.counts, block.counts)


def test_rows_are_legal_and_any_order_of_features_is_kept(block):
    declared = (*features.BASE, *features.parse(FEATURES))
    assert arrow.legal_arrays(arrow.to_table(block, declared), features=declared) is not None
    two = draw_block(SimulationSettings(features=("charge", "t_ns"), **SETTINGS), 3, 0)
    np.testing.assert_array_equal(two.muons[:, 3:], block.muons[:, [6, 3]])


def test_muons_fly_outwards_later_the_farther_they_are(column):
    radius = np.hypot(column["x_m"], column["y_m"])
    outwards = (column["x_m"] * column["dir_x"] + column["y_m"] * column["dir_y"]) / radius
    near, far = radius < np.quantile(radius, 0.3), radius > np.quantile(radius, 0.7)
    assert 0 < outwards[near].mean() < outwards[far].mean()
    assert column["t_ns"].min() > 0
    assert column["t_ns"][near].mean() < column["t_ns"][far].mean()
    # Born 20 to 50 km away along the axis, so r^2 / (2 h c) or more: 20 m are 0.01 ns, and the angle below ground adds.
    assert column["t_ns"][far].mean() > (radius[far] ** 2).mean() / (2 * 5e4 * LIGHT_M_PER_NS)


def test_a_muon_loses_energy_below_the_surface(column):
    assert (column["energy_surface_gev"] > column["energy_gev"]).all()


def test_the_charge_ratio_is_the_measured_one_and_rises():
    share = shower.positive_share(np.array([100.0, 1e3, 1e4]), np.ones(3))
    ratio = share / (1 - share)
    assert ratio[0] == pytest.approx(1.30, abs=0.03)  # MINOS near detector: 1.27 at 60 GeV,
    assert ratio[1] == pytest.approx(1.38, abs=0.02)  # MINOS far detector: 1.374 +- 0.004 at about 1 TeV.
    assert (np.diff(ratio) > 0).all()


def test_the_excess_of_positive_muons_is_the_leading_ones_of_protons():
    share = shower.positive_share_at(np.array([1e-4, 0.16, 0.8, 0.3]), np.array([1, 1, 1, 0], bool), np.full(4, 0.58))
    np.testing.assert_allclose(share, [0.5 + 0.08 * 1e-4 / 0.16, 0.58, 0.9, 0.5], rtol=1e-6)
    assert shower.positive_share_at(np.array([1.0]), np.array([True]), np.array([0.6]))[0] == 1.0


def test_drawn_charges_follow_the_share(block, column):
    energy, _, mass, _ = np.repeat(block.primaries, block.counts, axis=0).T
    nucleons = shower.mass_number(mass)
    surface = column["energy_surface_gev"]
    flux = shower.positive_share(surface, np.full(len(surface), 0.9))
    share = shower.positive_share_at(surface * nucleons / energy, nucleons == 1, flux)
    leading = share > 0.52
    for part in (leading, ~leading):
        found = (column["charge"][part] > 0).mean()
        assert found == pytest.approx(share[part].mean(), abs=4 * 0.5 / np.sqrt(part.sum()))


@pytest.mark.shared
@pytest.mark.skipif(not SHARED.is_dir(), reason="needs the CORSIKA files in ../shared/data/corsika")
def test_bundles_have_corsikas_charge_ratio():
    """Above 1 TeV, mostly in large showers: as many of both to a few in a hundred, where the flux has 1.4."""
    charges, shares = [], []
    for path in sorted(SHARED.glob("DAT0000*"))[:8]:
        for one in corsika.read_showers(path):
            energy = one.muons.energy_gev
            x = energy * one.mass_number / one.energy_gev
            of_proton = np.full(len(x), one.mass_number == 1)
            charges.append(one.muons.charge)
            shares.append(shower.positive_share_at(x, of_proton, shower.positive_share(energy, np.ones(len(x)))))
    charge, share = np.concatenate(charges), np.concatenate(shares)
    assert len(charge) > 5_000
    assert (charge > 0).mean() == pytest.approx(share.mean(), abs=4 * 0.5 / np.sqrt(len(charge)))


def test_slow_and_oblique_muons_are_late_by_their_speed_and_angle():
    # 1 km at 1 m per 1000 m: 0.5 mm = 1.67 ps... and at 10 GeV, m^2 / (2 E^2) = 5.6e-5: 56 mm.
    assert shower.delay_ns(1e3, 1e-3, 1e9, 1e9) == pytest.approx(5e-4 / LIGHT_M_PER_NS, rel=1e-6)
    assert shower.delay_ns(1e3, 0.0, 10.0, 10.0) == pytest.approx(1e3 * 5.58e-5 / LIGHT_M_PER_NS, rel=1e-3)


@pytest.mark.parametrize("zenith", [0.0, 0.6])
def test_corsikas_times_and_charges_become_delays_behind_the_plane_front(tmp_path, zenith):
    """Two muons on the observation level, 10 km below the first interaction; the front is at the foot at h / cos / c."""
    height, speed = 10_000.0, LIGHT_M_PER_NS
    front = height / np.cos(zenith) / speed
    axis = np.array([np.sin(zenith), 0.0, np.cos(zenith)])
    momentum = 1e4 * axis
    # On the axis, 3 ns behind the front; and 100 m along x, where the front arrives later by 100 m sin(zenith) / c.
    muons = [
        (5001.0, *momentum, 0.0, 0.0, front + 3.0),
        (6001.0, *momentum, 10_000.0, 0.0, front + 100 * np.sin(zenith) / speed + 5.0),
    ]
    event = event_blocks(1, muons, zenith=zenith, first_interaction_height=(height + 2_835.0) * 100)
    (tmp_path / "DAT000001").write_bytes(dat_bytes(event))
    (one,) = corsika.read_showers(tmp_path / "DAT000001")
    assert one.muons.t_ns == pytest.approx([3.0, 5.0], abs=0.01)  # float32 of 40,000 ns
    assert one.muons.charge.tolist() == [1.0, -1.0]
    settings = DepthSettings(depths_m=(100.0,), features=FEATURES)
    (events,) = to_events([one], settings, Counter())
    names = ("energy_gev", "x_m", "y_m", *FEATURES)
    deep = dict(zip(names, events.muons.T, strict=True))
    assert deep["t_ns"] == pytest.approx([3.0, 5.0], abs=0.02)
    assert deep["charge"].tolist() == [1.0, -1.0]
    assert deep["energy_surface_gev"] == pytest.approx([1e4, 1e4], rel=1e-4)
    assert np.hypot(deep["dir_x"], deep["dir_y"]).max() < 1e-4  # Of scattering alone.


def test_features_that_the_simulator_does_not_make_are_refused():
    with pytest.raises(ValueError, match="--features speed: the simulator makes only t_ns, dir_x, dir_y, charge"):
        SimulationSettings(features=("speed:positive",))
    with pytest.raises(ValueError, match="--features: time is not known; expected"):
        DepthSettings(features=("time",))


@pytest.mark.shared
@pytest.mark.skipif(not SHARED.is_dir(), reason="needs the CORSIKA files in ../shared/data/corsika")
def test_corsikas_muons_come_with_the_front_and_later_far_from_the_axis():
    """CORSIKA's clock has 0.03 ns here; r^2 / (2 h c) for a birth at 20 km is 0.02 ns at 15 m and 0.08 ns at 30 m."""
    showers = [one.muons for path in sorted(SHARED.glob("DAT*"))[::4] for one in corsika.read_showers(path)]
    radius = np.concatenate([np.hypot(muons.x_m, muons.y_m) for muons in showers])
    delay = np.concatenate([muons.t_ns for muons in showers])
    charge = np.concatenate([muons.charge for muons in showers])
    assert np.abs(delay).max() < 1
    assert np.abs(delay[radius < 5]).max() < 0.1
    assert delay[radius < 5].mean() < delay[(radius > 10) & (radius < 20)].mean() < delay[radius > 20].mean() < 0.2
    assert (charge > 0).mean() == pytest.approx(0.5, abs=0.03)  # Of large showers: their muons have a small share.
