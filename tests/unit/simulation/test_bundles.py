"""Small bundles of real showers beside simulated ones: what is counted, and that a difference is seen."""

import re

import numpy as np
import pytest

from crmuons.simulation import shower
from crmuons.simulation.bundles import bundle_tables
from crmuons.simulation.surface import SurfaceShower


def showers(num, *, energy_gev=(1e5, 3e6), stretch=1.0, cutoff_gev=1e3):
    """Showers of the simulator's own muons, as if another program had made them."""
    rng = np.random.default_rng(11)
    made = []
    for event in range(num):
        energy = float(np.exp(rng.uniform(*np.log(energy_gev))))
        nucleons = float(rng.choice([1, 4, 56]))
        columns = np.array([[energy], [nucleons], [1.0], [cutoff_gev]])
        muons = shower.draw_showers(*columns, altitude_m=110.0, rng=rng)
        muons = shower.Showers(
            muons.counts, muons.energy_gev, stretch * muons.x_m, stretch * muons.y_m, muons.angle_x, muons.angle_y
        )
        made.append(SurfaceShower(1, event, energy, int(nucleons), 0.0, 110.0, cutoff_gev, muons))
    return made


def rows(real):
    """The cells of the tables by the first one."""
    return {line.split("|")[1].strip(): line.split("|")[2:-1] for line in bundle_tables(real, 3330.0) if "|" in line}


@pytest.fixture(scope="module")
def of_150_showers():
    return rows(showers(150))


def ratio(cell):
    value, error = re.fullmatch(r" ([\d.]+) ± ([\d.]+) ", cell).groups()
    return float(value), float(error)


def test_the_simulator_agrees_with_itself_at_the_surface_and_under_ice():
    table = rows(showers(300))
    for name in (
        "1",
        "2",
        "3 to 10",
        "from the axis, bundles of 4 to 10",
        "of two muons, bundles of 2 to 10",
    ):
        for cell in table[name][2::3]:
            value, error = ratio(cell)
            assert abs(value - 1) < 4 * error
            assert error < 0.4
    # Every shower is in one class.
    counted = sum(float(table[name][0]) for name in ("0", "1", "2", "3 to 10", "11 to 20"))
    assert 0.7 * 300 < counted <= 300


def test_muons_too_far_apart_are_seen(of_150_showers):
    near, far = of_150_showers, rows(showers(150, stretch=2.0))
    for name in ("from the axis, bundles of 4 to 10", "of two muons, bundles of 2 to 10"):
        assert ratio(far[name][2])[0] == pytest.approx(ratio(near[name][2])[0] / 2, rel=0.02)
    assert far["3 to 10"][0] == near["3 to 10"][0]


def test_muons_that_are_missing_are_seen(of_150_showers):
    complete, lacking = of_150_showers["0"], rows(showers(150, cutoff_gev=3e3))["0"]
    assert float(lacking[0]) > 1.5 * float(complete[0])


def test_distances_of_a_bundle_by_hand():
    """Two muons 3 and 5 m from the axis, on opposite sides: 4 m on average, and 8 m apart."""
    zero = np.zeros(2)
    muons = shower.Showers(np.array([2]), np.array([5e3, 5e3]), np.array([3.0, -5.0]), zero, zero, zero)
    table = rows([SurfaceShower(1, 1, 1e6, 1, 0.0, 110.0, 1e3, muons)])
    assert table["from the axis, bundles of 2"][0].split()[0] == "4.00"
    assert table["of two muons, bundles of 2 to 10"][0].split()[0] == "8.00"
    assert table["2"][0].strip() == "1"
    assert table["from the axis, bundles of 3"][0].strip() == "nan ± nan"
