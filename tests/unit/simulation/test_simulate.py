"""The simulator against the formulas it is made of, and its data sets against the contract."""

import numpy as np
import pyarrow.parquet as pq
import pytest

from crmuons import cli
from crmuons.data import arrow, geometry
from crmuons.simulation import shower, simulate, yields
from crmuons.simulation.primaries import draw_primaries
from crmuons.simulation.simulate import SimulationSettings, draw_block
from crmuons.simulation.tracks import follow


def draw(energy_gev=1e6, mass_number=1.0, threshold_gev=1e3, num=20_000):
    """Like vertical showers, at sea level."""
    one, rng = np.ones(num), np.random.default_rng(0)
    return shower.draw_showers(energy_gev * one, mass_number * one, one, threshold_gev * one, altitude_m=0.0, rng=rng)


@pytest.fixture(scope="module")
def of_1e8_gev():
    """Showers that several tests look at: drawing 2.5 million muons costs half a second."""
    return draw(energy_gev=1e8, num=10_000)


def shower_of_muon(showers):
    return np.repeat(np.arange(len(showers.counts)), showers.counts)


def test_mean_yield_of_a_vertical_pev_proton_above_1_tev():
    # The density of the yield between two energies, integrated by hand, at sea level: 2.046 GeV are lost in the air.
    energy = np.linspace(1_002.046, 1e6, 400_001)
    x = energy / 1e6
    conventional = 12.62e-6 * x**-1.825 * (1 - x) ** 2.874 * (1.825 / energy + 2.874 / (1e6 - energy).clip(1e-9))
    decay = 0.754 * energy / (energy + 115 / 1.1) + 0.246 * energy / (energy + 850 / 1.1)
    prompt = 2.8e-5 / x * (1 - x**0.78) ** 6.73 / energy * (1 + 6.73 * 0.78 * x**0.78 / (1 - x**0.78).clip(1e-9))
    arrives = np.exp(-6_900 * np.log(10.3) * 0.1056584 / (658.64 * (energy - 1.023)))
    expected = np.trapezoid((conventional * decay + prompt) * arrives, energy)
    one = np.ones(1)
    assert yields.mean_yield(1e3 * one, 1e6 * one, one, one) == pytest.approx([expected], rel=1e-3)


def test_mesons_that_would_decay_interact_near_their_critical_energy():
    one = np.ones(1)
    # Far above the critical energies the yield's own form holds; far below them every meson decays, so that the yield
    # does not grow further with 1 / E.
    assert yields.decay_probability(1e8 * one) == pytest.approx([1.0], abs=1e-4)
    low, lower = (yields.decay_probability(gev * one)[0] for gev in (0.2, 0.1))
    assert low / lower == pytest.approx(2.0, rel=2e-3)
    # Kaons decay sooner: at 200 GeV, 0.754 * 0.657 + 0.246 * 0.206.
    assert yields.decay_probability(200 * one) == pytest.approx([0.546], abs=1e-3)


def test_the_surface_flux_is_that_of_calibrated_references():
    """The yield folded with cosmic rays of Gaisser's H3a, beside daemonflux (arXiv:2303.00022), vertical, at sea level.

    daemonflux 202303_1, total muons, E^3 flux in GeV^2 / (cm^2 s sr).
    """
    reference = {200: 0.2313, 500: 0.1787, 1_000: 0.1336, 2_000: 0.0933, 5_000: 0.0536, 10_000: 0.0340}
    primary = np.geomspace(1e2, 1e10, 401)
    step = np.log(primary[1] / primary[0])
    one = np.ones_like(primary)
    for energy, expected in reference.items():
        flux = 0.0
        for mass_number, charge, constants in H3A:
            above, more = (
                yields.mean_yield(gev * one, primary, mass_number * one, one) for gev in (energy / 1.02, energy * 1.02)
            )
            rate = (above - more) / (energy * 1.02 - energy / 1.02)
            flux += (h3a(primary, charge, constants) * rate * primary).sum() * step
        assert flux * energy**3 == pytest.approx(expected, rel=0.06), energy


# Normalisations per m^2 s sr and powers of the three populations, whose cutoffs are at 4e6, 3e7 and 2e9 GV (Gaisser,
# arXiv:1111.6675, table 3, H3a).
H3A = (
    (1, 1, ((7_860, 1.66), (20, 1.4), (1.7, 1.4))),
    (4, 2, ((3_550, 1.58), (20, 1.4), (1.7, 1.4))),
    (14, 7, ((2_200, 1.63), (13.4, 1.4), (1.14, 1.4))),
    (27, 13, ((1_430, 1.67), (13.4, 1.4), (1.14, 1.4))),
    (56, 26, ((2_120, 1.63), (13.4, 1.4), (1.14, 1.4))),
)


def h3a(energy_gev, charge, constants):
    """Per GeV cm^2 s sr."""
    populations = zip(constants, (4e6, 3e7, 2e9), strict=True)
    flux = sum(
        scale * energy_gev ** -(power + 1) * np.exp(-energy_gev / (charge * cutoff))
        for (scale, power), cutoff in populations
    )
    return flux * 1e-4


def test_no_muon_has_more_energy_than_a_nucleon():
    one = np.ones(1)
    assert yields.mean_yield(1e4 * one, 5e4 * one, 14 * one, one) == pytest.approx([0.0])
    showers = draw(energy_gev=1e5, mass_number=4.0, threshold_gev=2e3)
    assert showers.counts.sum() > 1_000
    assert showers.energy_gev.min() >= 2e3
    assert showers.energy_gev.max() <= 1e5 / 4


@pytest.mark.parametrize(("mass_number", "energy_gev"), [(1.0, 1e6), (4.0, 1e7), (56.0, 3e7)])
def test_multiplicity_is_negative_binomial_with_the_formulas_mean(mass_number, energy_gev):
    counts = draw(energy_gev, mass_number, num=5_000).counts
    one = np.ones(1)
    mu = yields.mean_yield(1e3 * one, energy_gev * one, mass_number * one, one)[0]
    k = 11.3 * mass_number**0.59
    assert counts.mean() == pytest.approx(mu, abs=5 * counts.std() / np.sqrt(len(counts)))
    assert counts.var() == pytest.approx(mu + mu**2 / k, rel=0.06)  # 5,000 showers: 2 % or so


def test_energies_follow_the_yield():
    showers = draw(energy_gev=1e7)
    one = np.ones(1)
    for factor in (1.5, 3.0, 10.0):
        above, all_of_them = (yields.mean_yield(gev * one, 1e7 * one, one, one)[0] for gev in (1e3 * factor, 1e3))
        share = above / all_of_them
        expected = (1 - np.log(share) / 400) ** -400  # E[S^t] with t gamma of shape 400
        assert (showers.energy_gev > 1e3 * factor).mean() == pytest.approx(expected, rel=0.03)


def test_muons_of_a_shower_share_the_steepness_of_their_spectrum():
    showers = draw(energy_gev=1e9, num=1_000)
    counts, muon = showers.counts, shower_of_muon(showers)
    log_mean = np.bincount(muon, np.log(showers.energy_gev)) / counts
    independent = np.log(showers.energy_gev).var() * (1 / counts).mean()
    # 5 % of the mean of ln(E / 1 TeV), squared: about 1e-3; 4.5 % from 1000 showers.
    mean = np.log(showers.energy_gev / 1e3).mean()
    assert log_mean.var() - independent == pytest.approx((0.05 * mean) ** 2, rel=0.2)


def test_muons_lie_evenly_around_the_axis():
    showers = draw(energy_gev=1e7)
    azimuth = np.arctan2(showers.y_m, showers.x_m)
    for harmonic in (1, 2, 4):
        assert abs(np.exp(1j * harmonic * azimuth).mean()) < 4 / np.sqrt(len(azimuth))


def test_energetic_muons_are_near_the_axis(of_1e8_gev):
    showers = of_1e8_gev
    radius = np.hypot(showers.x_m, showers.y_m)
    slow, fast = showers.energy_gev < 1_100, abs(showers.energy_gev - 1.05e4) < 500
    # r = pT / E times a path that changes slowly: about a tenth of the radius at ten times the energy.
    assert 6 < np.median(radius[slow]) / np.median(radius[fast]) < 11
    assert np.corrcoef(np.log(radius), np.log(showers.energy_gev))[0, 1] < -0.4


def test_transverse_momentum_has_the_hard_tail(of_1e8_gev):
    showers = of_1e8_gev
    pt = np.hypot(showers.angle_x, showers.angle_y) * showers.energy_gev
    # The soft part beyond 3 GeV, at its widest <pT> = 0.3: (1 + 20) exp(-20), nothing. The hard: 0.02 * 3^-4.
    assert (pt > 3).mean() == pytest.approx(0.02 / 81, rel=0.2)
    assert (pt > 6).mean() == pytest.approx(0.02 / 1_296, rel=0.6)


@pytest.mark.parametrize(("mass_number", "spread"), [(1.0, (0.15, 0.35)), (56.0, (0.03, 0.1))])
def test_muons_of_a_shower_share_the_height_of_its_first_interaction(mass_number, spread):
    """Radii vary together from shower to shower, the less the heavier the primary."""
    showers = draw(energy_gev=1e7 * mass_number, mass_number=mass_number, num=1_000)
    log_path = np.log(np.hypot(showers.x_m, showers.y_m) / np.hypot(showers.angle_x, showers.angle_y))
    counts, muon = showers.counts, shower_of_muon(showers)
    kept = counts > 20
    mean = np.bincount(muon, log_path, minlength=len(counts))[kept] / counts[kept]
    within = log_path.var() * (1 / counts[kept]).mean()
    assert spread[0] < np.sqrt(mean.var() - within) < spread[1]


def test_high_first_interactions_make_more_muons(of_1e8_gev):
    showers = of_1e8_gev
    path = np.hypot(showers.x_m, showers.y_m) / np.hypot(showers.angle_x, showers.angle_y)
    height = np.bincount(shower_of_muon(showers), path) / showers.counts
    assert 0.3 < np.corrcoef(height, showers.counts)[0, 1] < 0.6  # The copula's 0.5, blurred by the births' own spread.


def muons_at(*, energy_gev, x_m, angle_x):
    zero = np.zeros(1)
    return shower.Showers(np.array([1]), energy_gev * np.ones(1), x_m + zero, zero, angle_x + zero, zero)


def test_the_field_moves_charges_apart_by_the_same_share_of_a_gev_metre(of_1e8_gev):
    # r = p / 0.3 B, so a muon is moved by L^2 / 2r; L about 15 km and 16.8 uT give 570 GeV m, whatever its energy.
    showers = of_1e8_gev
    muon = shower_of_muon(showers)
    moved = np.hypot(showers.x_m, showers.y_m) * showers.energy_gev
    assert np.quantile(moved, 0.01) > 60
    # The muons of a shower spread along one direction, which differs from shower to shower.
    second = np.bincount(muon, (showers.x_m + 1j * showers.y_m).real ** 2) / showers.counts
    other = np.bincount(muon, (showers.x_m + 1j * showers.y_m).imag ** 2) / showers.counts
    assert np.log(second.mean() / other.mean()) == pytest.approx(0, abs=0.1)


def test_the_same_muon_is_found_deeper_with_less_energy_and_on_its_straight_line():
    slant = np.array([[1_000.0, 1_500.0, 2_500.0]])
    surface = muons_at(energy_gev=1e5, x_m=2.0, angle_x=1e-3)
    counts, muons = follow(surface, slant, 0.9 * slant, 10.0, np.random.default_rng(0))
    assert counts.tolist() == [1, 1, 1]
    assert 1e5 > muons[0, 0] > muons[1, 0] > muons[2, 0] > 10
    assert muons[:, 1] == pytest.approx([3.0, 3.5, 4.5], abs=0.1)  # Scattering moves a muon of 100 TeV by 2 cm.


def test_a_muon_that_stopped_does_not_come_back_deeper():
    slant = np.array([[100.0, 5_000.0, 6_000.0]])
    counts, muons = follow(
        muons_at(energy_gev=200.0, x_m=0.0, angle_x=0.0), slant, 0.9 * slant, 10.0, np.random.default_rng(0)
    )
    assert counts.tolist() == [1, 0, 0]
    assert muons.shape == (1, 3)


def test_the_same_depth_twice_is_the_same_event_twice():
    events = draw_block(SimulationSettings(energy_gev=(1e6, 1e7), depths_m=(1_500.0, 1_500.0)), seed=0, block=0)
    counts = events.counts.reshape(-1, 2)
    assert counts.sum() > 1_000
    assert (counts[:, 0] == counts[:, 1]).all()


def test_deeper_events_of_a_shower_hold_fewer_muons_and_none_of_more_energy():
    events = draw_block(SimulationSettings(gamma=1.0), seed=0, block=0)
    counts = events.counts.reshape(-1, 3)
    assert (np.diff(counts, axis=1) <= 0).all()
    top = np.zeros(len(events.counts))
    np.maximum.at(top, np.repeat(np.arange(len(top)), events.counts), events.muons[:, 0])
    assert (np.diff(top.reshape(-1, 3), axis=1) <= 0).all()
    assert events.muons[:, 0].min() >= 10


def test_depths_are_slant_depths_of_the_drawn_vertical_ones():
    events = draw_block(SimulationSettings(depths_m=(2_000.0, 1_500.0)), seed=0, block=0)
    cosine = np.cos(events.primaries[:, 1].astype(float)).reshape(-1, 2)
    expected = geometry.slant_depth_m(np.array([1_500.0, 2_000.0]), cosine)
    assert events.primaries[:, 3].reshape(-1, 2) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("gamma", [1.0, 2.0])
def test_primaries_follow_the_spectrum_and_are_uniform_in_cosine(gamma):
    settings = SimulationSettings(energy_gev=(1e4, 1e6), gamma=gamma, max_zenith_deg=60)
    primaries = np.concatenate([draw_block(settings, 0, block).primaries[::3] for block in range(16)])
    # Share below 1e5: 1/2 for E^-1; (1e-4 - 1e-5) / (1e-4 - 1e-6) = 10/11 for E^-2. 8192 draws: 0.55 % at most.
    assert (primaries[:, 0] < 1e5).mean() == pytest.approx({1.0: 0.5, 2.0: 10 / 11}[gamma], abs=0.025)
    assert np.cos(primaries[:, 1]).mean() == pytest.approx(0.75, abs=0.01)
    assert np.cos(primaries[:, 1]).min() >= 0.5 - 1e-6
    assert set(primaries[:, 2]) == {np.float32(mass) for mass in settings.masses_gev}


def test_by_default_every_decade_has_showers_and_muons_have_half_of_their_sources():
    """From the lowest primaries of muons at a telescope to the rarest: 460 showers of 100,000 above 1e9 GeV."""
    energy = np.concatenate([draw_energy(block) for block in range(64)])
    share = np.histogram(np.log10(energy), [np.log10(600), 3, 4, 5, 6, 7, 8, 9, 10])[0] / len(energy)
    # 1/E to 1e6, then E^-1.5: ln 10 = 2.303 and, from 1e6, 2 (1 - 10^-0.5) = 1.368 falling by 10^0.5, over 9.399 in all.
    expected = np.array([0.511, 2.303, 2.303, 2.303, 1.3675, 0.43245, 0.13675, 0.043245]) / 9.3986
    assert share == pytest.approx(expected, abs=4 * np.sqrt(0.25 / len(energy)))
    assert share[-1] == pytest.approx(expected[-1], rel=0.35)


def draw_energy(block):
    return draw_primaries(SimulationSettings(), simulate.SHOWERS_PER_BLOCK, np.random.default_rng(block))[0]


def test_a_law_with_breaks_is_given_on_the_command_line_and_recorded(tmp_path):
    words = ["--events", "60", "--energy-range", "1e3", "1e7", "--gamma", "1", "1e5", "2", "--depths", "1500"]
    assert cli.main(["simulate", *words, "--out", str(tmp_path / "sim")]) == 0
    origin = arrow.read_origin(pq.read_metadata(tmp_path / "sim/events-00000.parquet"))
    assert origin["settings"]["gamma"] == [1.0, 1e5, 2.0]
    assert cli.main(["simulate", *words, "--out", str(tmp_path / "sim")]) == 0  # It is finished, and the same.
    words[words.index("2")] = "3"
    assert cli.main(["simulate", *words, "--out", str(tmp_path / "sim")]) == 1


def test_large_showers_are_drawn_few_at_once(monkeypatch):
    """A block of iron at 1e10 GeV would take tens of gigabytes at once; what is drawn and written stays the same."""
    settings = SimulationSettings(energy_gev=(1e6, 1e7), gamma=1.0, max_zenith_deg=30)
    monkeypatch.setattr(simulate, "MUONS_AT_ONCE", 3_000)
    drawn = []
    real = shower.draw_showers

    def draw_showers(*arguments, **named):
        drawn.append(real(*arguments, **named))
        return drawn[-1]

    monkeypatch.setattr(shower, "draw_showers", draw_showers)
    parts = list(simulate.draw_parts(settings, 5, 2))
    assert len(parts) == len(drawn) > 4
    assert max(len(each.energy_gev) for each in drawn) < 5_000
    showers = simulate.SHOWERS_PER_BLOCK
    ids = np.concatenate([part.ids for part in parts])
    assert ids[:, 1].tolist() == np.repeat(np.arange(2 * showers, 3 * showers), 3).tolist()
    monkeypatch.setattr(simulate, "MUONS_AT_ONCE", 2**40)
    whole = draw_block(settings, 5, 2)
    assert np.concatenate([part.primaries for part in parts]).tolist() == whole.primaries.tolist()
    counts = np.concatenate([part.counts for part in parts])
    assert counts.mean() == pytest.approx(whole.counts.mean(), rel=0.1)


def test_files_of_large_showers_are_written_in_pieces_with_the_same_events(tmp_path, monkeypatch):
    settings = SimulationSettings(energy_gev=(1e6, 1e7), gamma=1.0, max_zenith_deg=30)
    monkeypatch.setattr(simulate, "MUONS_AT_ONCE", 3_000)
    (tmp_path / "one").mkdir()
    (tmp_path / "many").mkdir()
    simulate.write_file(tmp_path / "one", settings, 0, 2_000, 0)
    monkeypatch.setattr(simulate, "MUONS_PER_WRITE", 5_000)
    assert simulate.write_file(tmp_path / "many", settings, 0, 2_000, 0) == 2_000
    one, many = (tmp_path / name / "events-00000.parquet" for name in ("one", "many"))
    assert pq.read_metadata(one).num_row_groups == 1
    assert pq.read_metadata(many).num_row_groups > 4
    assert pq.read_table(one).equals(pq.read_table(many))


@pytest.mark.parametrize(
    ("words", "masses"),
    [
        (("Fe", "He"), (52.163664, 3.725976)),
        (("p", "0.938"), (0.938272, 0.938)),
        (("H", "fe"), (0.938272, 52.163664)),
        (("N", "Al", "Si", "C", "O", "Mg"), (13.040916, 25.150338, 26.081832, 11.177928, 14.903904, 22.355856)),
    ],
)
def test_primaries_are_taken_by_name_or_mass(tmp_path, words, masses):
    settings = ["--events", "400", "--energy-range", "1e4", "2e4", "--depths", "1500"]
    assert cli.main(["simulate", *settings, "--masses", *words, "--out", str(tmp_path / "sim")]) == 0
    found = set(pq.read_table(tmp_path / "sim")["primary"].combine_chunks().flatten().to_numpy()[2::4].tolist())
    assert sorted(found) == pytest.approx(sorted(masses), rel=1e-6)


@pytest.mark.parametrize(("word", "says"), [("Xe", "nearest is"), ("nan", "by name"), ("5000", "proton 0.938")])
def test_primaries_that_are_no_nuclei_are_refused(tmp_path, capsys, word, says):
    with pytest.raises(SystemExit):
        cli.main(["simulate", "--events", "1", "--masses", word, "--out", str(tmp_path / "sim")])
    assert says in capsys.readouterr().err


def test_a_medium_is_recorded_and_water_and_rock_begin_at_sea_level(tmp_path):
    mean = {}
    for medium, depth in (("ice", "4642"), ("water", "4240"), ("rock", "1600")):  # 4240 m of water equivalent each.
        words = ["--events", "3000", "--energy-range", "1e7", "1e8", "--gamma", "1", "--max-zenith-deg", "0"]
        words += ["--depths", depth, "--medium", medium, "--out", str(tmp_path / medium)]
        assert cli.main(["simulate", *words]) == 0
        events = arrow.to_arrays(pq.read_table(tmp_path / medium))
        mean[medium] = events.counts.mean()
        origin = arrow.read_origin(pq.read_metadata(tmp_path / medium / "events-00000.parquet"))
        assert (origin["command"], origin["settings"]["medium"], origin["settings"]["seed"]) == ("simulate", medium, 0)
        assert origin["medium"]["surface_m"] == {"ice": 2_835.0, "water": 0.0, "rock": 0.0}[medium]
    assert mean["water"] == pytest.approx(mean["ice"], rel=0.1)
    assert 0.7 < mean["rock"] / mean["water"] < 0.9  # 1.32 times the radiative loss; of all muons 0.81 arrive.


def test_masses_are_those_of_nuclei():
    assert list(simulate.MASSES_GEV) == pytest.approx([0.938, 3.727, 13.04, 25.13, 52.09], rel=2e-3)
    assert shower.mass_number(np.array(simulate.MASSES_GEV)).tolist() == [1, 4, 14, 27, 56]
