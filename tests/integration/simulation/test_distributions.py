"""Distributions of many simulated showers and muons, beside laws, measurements and another calculation."""

import dataclasses

import numpy as np
import pytest
import simweights

from crmuons.data import geometry
from crmuons.simulation import shower
from crmuons.simulation.primaries import ExpectedMuons, draw_primaries, undoing_weights
from crmuons.simulation.propagation import propagate
from crmuons.simulation.simulate import SimulationSettings
from tests.unit.simulation.test_expected_muons import SETTINGS


def expected(settings: SimulationSettings, primaries: np.ndarray) -> np.ndarray:
    """Return the logarithm of the expected number of muons of each primary, by its table."""
    energy, zenith, mass, slant = primaries.astype(np.float64).T
    table = ExpectedMuons.of(settings, mass, zenith, slant)
    return np.array(
        [np.interp(np.log(e), table.log_energy, row) for e, row in zip(energy, table.log_muons, strict=True)]
    )


def drawn(settings: SimulationSettings, number: int, seed: int) -> np.ndarray:
    """Return primaries at the smallest depth of each shower."""
    energy, mass, zenith, vertical = draw_primaries(settings, number, np.random.default_rng(seed))
    slant = geometry.slant_depth_m(vertical[:, 0], np.cos(zenith), settings.passed.surface_m)
    return np.stack([energy, zenith, mass, slant], axis=1)


@pytest.fixture(scope="module")
def flat():
    """Primaries for the wanted numbers of muons."""
    return drawn(SETTINGS, 1_500, seed=0)


def test_the_logarithm_of_the_expected_number_is_uniform_in_the_wanted_range(flat):
    values = expected(SETTINGS, flat) / np.log(1000)
    assert values.min() > -1e-3
    assert values.max() < 1 + 1e-3
    # Not quite uniform where a primary's energy ends within the range: Kolmogorov's distance by chance is 0.022.
    assert np.abs(np.sort(values) - np.linspace(0, 1, len(values))).max() < 0.06


def test_weighted_averages_are_those_of_the_power_law(flat):
    by_law = drawn(dataclasses.replace(SETTINGS, expected_muons=None), 1_500, seed=1)
    numbers = expected(SETTINGS, by_law)
    by_law = by_law[(numbers > 0) & (numbers < np.log(1000))]
    weights = undoing_weights(dataclasses.replace(SETTINGS, depths_per_shower=1), flat.astype(np.float32))
    for column, spread in ((np.log10, 0.08), (np.cos, 0.03)):
        of = 0 if column is np.log10 else 1
        true, unweighted = column(by_law[:, of]).mean(), column(flat[:, of]).mean()
        weighted = np.average(column(flat[:, of]), weights=weights)
        assert weighted == pytest.approx(true, abs=spread)
        assert abs(unweighted - true) > abs(weighted - true)


@pytest.mark.parametrize("water_m", [1_000.0, 3_000.0])
def test_survival_and_mean_energy_are_those_of_muons_followed_step_by_step(water_m):
    """Beside a small propagator of another kind: stochastic losses one by one, with tables of a(E) and b(E)."""
    rng = np.random.default_rng(6)
    energy = np.geomspace(300, 3e4, 8_000)
    weight = energy**-2.0  # The muons' spectrum E^-3, per ln E.
    reference = followed(energy, water_m, rng)
    model = propagate(energy, np.full_like(energy, water_m), rng)
    arrived, expected = (weight[after > 1].sum() for after in (model, reference))
    assert arrived == pytest.approx(expected, rel=0.08)
    mean, expected_mean = ((weight * after).sum() / weight[after > 1].sum() for after in (model, reference))
    assert mean == pytest.approx(expected_mean, rel=0.06)


# Liquid water, from PUMAS's tables (V. Niess; conventions of Groom, Mokhov and Striganov 2001): ln E, a in GeV/m, and b of
# bremsstrahlung, pairs and photonuclear interactions in 1e-4 / m.
LOG_E = np.log([10, 100, 1e3, 1e4, 1e5])


IONISING = [0.2482, 0.2781, 0.3045, 0.3324, 0.3634]


RADIATING = (
    ([0.486, 0.785, 1.043, 1.186, 1.234], lambda v: (4 / 3 - 4 / 3 * v + v * v) / v),
    ([0.487, 1.094, 1.510, 1.663, 1.698], lambda v: 1 / (v * (1 + v / 0.002) ** 2)),
    ([0.336, 0.3845, 0.4053, 0.4854, 0.6171], lambda v: (1 - v) / v),
)


def followed(energy, water_m, rng, step_m=25.0):
    """Follow muons in steps; losses of more than a hundredth of the energy come one by one, the others evenly."""
    share = np.geomspace(1e-6, 1, 4_001)[:-1]
    energy = energy.copy()
    for _ in range(int(water_m / step_m)):
        log = np.log(np.maximum(energy, 1.0))
        lost = np.interp(log, LOG_E, IONISING) * step_m
        kept = np.ones_like(energy)
        for table, shape in RADIATING:
            number = shape(share) * share  # Per ln v.
            number /= (number * share).sum()  # So that the mean loss is 1.
            hard = share > 0.01
            mean = np.interp(log, LOG_E, table) * 1e-4 * step_m
            kept *= np.exp(-mean * (number * share)[~hard].sum())
            jumps = rng.poisson(mean * number[hard].sum())
            cumulative = np.cumsum(number[hard]) / number[hard].sum()
            for most in range(jumps.max()):
                jump = np.interp(rng.random(len(energy)), cumulative, share[hard])
                kept *= np.where(jumps > most, 1 - jump, 1.0)
        energy = np.where(energy > 1, np.maximum(energy * kept - lost, 0.0), 0.0)
    return energy


def test_the_flux_has_the_measured_charge_ratio():
    """Muons above 1 TeV at sea level in Gaisser's H3a, whose ratio MINOS and OPERA measured: 1.37 to 1.40."""
    rng, weights, shares = np.random.default_rng(1), [], []
    for nucleons, code in ((1, 2212), (4, 1000020040), (14, 1000070140), (27, 1000130270), (56, 1000260560)):
        number, mass = 300_000 if nucleons == 1 else 50_000, float(nucleons)
        uniform = rng.random(number)
        energy = nucleons * 10 ** (3.03 + 2.7 * uniform**1.5)  # More at low energies, which have most of the flux.
        drawn = shower.draw_showers(
            energy, np.full(number, mass), np.full(number, 0.9), np.full(number, 1e3), altitude_m=0.0, rng=rng
        )
        shower_of = np.repeat(np.arange(number), drawn.counts)
        weights.append((simweights.GaisserH3a()(energy, code) * energy * np.sqrt(uniform) / number)[shower_of])
        x = drawn.energy_gev * nucleons / energy[shower_of]
        flux = shower.positive_share(drawn.energy_gev, np.full(len(x), 0.9))
        shares.append(shower.positive_share_at(x, np.full(len(x), nucleons == 1), flux))
    share = np.average(np.concatenate(shares), weights=np.concatenate(weights))
    assert share / (1 - share) == pytest.approx(1.385, abs=0.04)
