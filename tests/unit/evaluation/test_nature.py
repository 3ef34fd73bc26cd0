"""Events beside nature: weights against closed forms, verdicts that follow the data, and what is refused."""

import json
import re

import numpy as np
import pyarrow.parquet as pq
import pytest
import simweights
import torch

from crmuons import cli, config
from crmuons.data import arrow, geometry
from crmuons.data.events import EventArrays
from crmuons.evaluation.nature import compare, report, tables
from crmuons.evaluation.nature.request import ValidationRequest, validate
from crmuons.evaluation.nature.rows import AGREES, HIGH, LOW, OUTSIDE, SHOWN, Reference, make_row
from crmuons.evaluation.nature.sample import Sample, _vertical_m
from crmuons.evaluation.nature.weights import Coverage, Drawn, Flux, nucleons, row_weights
from crmuons.evaluation.tasks import in_process
from crmuons.generation.load import is_model
from crmuons.models import saved_model
from crmuons.models.bundle_model import BundleModel
from crmuons.models.features import Features
from crmuons.simulation.simulate import MASSES_GEV, SimulationSettings, simulate

DEPTHS_M = (1109.1, 2199.6)  # 1 and 2 km w.e. of firn and ice.
SETTINGS = SimulationSettings(
    energy_gev=(400, 1e8), gamma=1.8, max_zenith_deg=0, depths_m=DEPTHS_M, threshold_gev=10
)  # fmt: skip
FLUX = Flux("GlobalSplineFit5Comp")


@pytest.fixture(scope="module")
def simulated(tmp_path_factory):
    """30,000 vertical showers at two depths."""
    out = tmp_path_factory.mktemp("nature") / "sim"
    simulate(SETTINGS, num_events=60_000, out=out, seed=3)
    return out


@pytest.fixture(scope="module")
def events(simulated):
    return arrow.to_arrays(pq.read_table(simulated))


@pytest.fixture(scope="module")
def rows(events):
    return rows_of(events)


def rows_of(events, **drawn):
    made = Drawn(SETTINGS.energy_gev, SETTINGS.gamma, **({"threshold_gev": 10.0} | drawn))
    return {
        (row.quantity.split(",")[0], row.label, row.source): row
        for row in compare.compare(Sample.of(events, made, FLUX, None))
    }


def changed(events, muons=None, keep=None):
    """The same events with other muons, or with some of them."""
    muons = events.muons if muons is None else muons
    if keep is None:
        return EventArrays(events.ids, events.primaries, events.counts, muons)
    event = np.repeat(np.arange(len(events.counts)), events.counts)[keep]
    return EventArrays(events.ids, events.primaries, np.bincount(event, minlength=len(events.counts)), muons[keep])


def flat_events(num, *, energy_gev, gamma, masses=MASSES_GEV, depth_m=1109.1, muons=1, seed=0):
    """Vertical primaries of E^-gamma with `muons` muons of 100 GeV each."""
    rng = np.random.default_rng(seed)
    low, high = energy_gev
    uniform, power = rng.random(num), 1 - gamma
    energy = (
        low * (high / low) ** uniform
        if not power
        else (low**power + uniform * (high**power - low**power)) ** (1 / power)
    )
    primaries = np.stack([energy, np.zeros(num), rng.choice(masses, num), np.full(num, depth_m)], axis=1)
    ids = np.stack([np.arange(num), np.zeros(num)], axis=1).astype(np.uint64)
    return EventArrays(
        ids, primaries.astype(np.float32), np.full(num, muons), np.tile(np.float32([100, 3, 4]), (num * muons, 1))
    )


def write(path, events, **origin):
    path.parent.mkdir(parents=True, exist_ok=True)
    arrow.write_events(path, [arrow.to_table(events)], origin=(lambda: origin) if origin else None)
    return str(path)


# ---------------------------------------------------------------- weights


@pytest.mark.parametrize("gamma", [1.0, 1.7, 2.5])
def test_one_muon_for_each_primary_has_the_intensity_of_the_primaries(gamma):
    low, high = 1e3, 1e6
    made = flat_events(40_000, energy_gev=(low, high), gamma=gamma)
    drawn = Drawn((low, high), gamma)
    weight = row_weights(made.primaries[:, 0].astype(float), nucleons(made.primaries[:, 2].astype(float)), drawn, FLUX)
    grid = np.geomspace(low, high, 4001)
    model = simweights.GlobalSplineFit5Comp()
    expected = sum(np.trapezoid(1e4 * model(grid, np.full(grid.shape, int(pdg))), grid) for pdg in model.pdgids)
    assert weight.mean() == pytest.approx(expected, abs=4 * weight.std() / np.sqrt(len(weight)))


def test_a_broken_spectrum_has_the_intensity_of_the_primaries_in_every_decade():
    drawn = Drawn((600, 1e10), (1.0, 1e6, 1.5))
    rng = np.random.default_rng(8)
    energy = drawn.law.quantile(rng.random(200_000)).astype(np.float32).astype(float)
    weight = row_weights(energy, rng.choice(np.array(FLUX.nuclei), len(energy)), drawn, FLUX)
    for low, high in ((600, 1e3), *((10.0**decade, 10.0 ** (decade + 1)) for decade in range(3, 10))):
        grid = np.geomspace(low, high, 2001)
        expected = sum(np.trapezoid(FLUX(grid, number), grid) for number in FLUX.nuclei)
        inside = np.where((energy >= low) & (energy < high), weight, 0.0)
        assert inside.mean() == pytest.approx(expected, abs=4 * inside.std() / np.sqrt(len(energy)))
        assert inside.std() / np.sqrt(len(energy)) < 0.1 * expected  # Also where primaries are rarest.


def test_a_broken_law_is_read_from_the_files_and_an_option_against_it_warns(tmp_path):
    """One muon for each primary: the intensity is that of the primaries."""
    law = Drawn((600, 1e10), (1.0, 1e6, 1.5)).law
    made = flat_events(40_000, energy_gev=(600, 1e10), gamma=1.0)
    made.primaries[:, 0] = law.quantile(np.random.default_rng(6).random(40_000))
    settings = {"energy_gev": [600, 1e10], "gamma": [1.0, 1e6, 1.5], "threshold_gev": 10, "medium": "ice"}
    data = write(tmp_path / "data/events.parquet", made, command="simulate", settings=settings)
    with in_process() as executor:
        same, other = (validate(ValidationRequest([data], gamma=gamma), executor) for gamma in ((1.0, 1e6, 1.5), 2.0))
    row = next(row for row in same.rows if row.label == "1 km w.e." and row.source == "daemonflux through water")
    grid = np.geomspace(600, 1e10, 8001)
    assert row.value == pytest.approx(sum(np.trapezoid(FLUX(grid, n), grid) for n in FLUX.nuclei), abs=4 * row.error)
    assert row.error < 0.05 * row.value
    assert (same.about["spectrum"], same.warnings) == ("E^-1, E^-1.5 from 1e+06 GeV", [])
    assert other.warnings == ["--gamma: the files say [1.0, 1000000.0, 1.5], and 2.0 is taken"]


def test_unequal_shares_of_the_nuclei_do_not_change_the_intensity(events, rows):
    """Without two thirds of the protons, each that is left counts three times as much."""
    proton = events.primaries[:, 2] < 1
    kept = np.flatnonzero(~proton | (events.ids[:, 1] % 3 == 0))
    fewer = arrow.to_arrays(arrow.to_table(events).take(kept))
    key = ("vertical intensity", "1 km w.e.", "daemonflux through water")
    all_of_them, some = rows[key], rows_of(fewer)[key]
    assert some.value == pytest.approx(all_of_them.value, abs=3 * np.hypot(some.error, all_of_them.error))
    assert some.verdict == AGREES


def test_the_events_of_a_shower_count_as_one_fluctuation(events, rows):
    """The same events twice, with the same ids: the same figures with the same errors."""
    twice = arrow.to_arrays(arrow.to_table(events).take(np.repeat(np.arange(len(events.counts)), 2)))
    again = rows_of(twice)
    for key, row in rows.items():
        if row.value:
            assert (again[key].value, again[key].error) == pytest.approx((row.value, row.error))


def test_weights_need_a_flux_of_each_nucleus_and_energies_inside_the_range():
    energy = np.array([1e4])
    with pytest.raises(ValueError, match=r"C: GaisserH3a has no flux of it \(it has p, He, N, Al, Fe\); name another"):
        row_weights(energy, np.array([12]), Drawn((1e3, 1e6), 2.0), Flux("GaisserH3a"))
    with pytest.raises(ValueError, match=r"10000 GeV lies outside of the range 100000 to 1e\+06 GeV"):
        row_weights(energy, np.array([1]), Drawn((1e5, 1e6), 2.0), FLUX)


def test_a_wrong_flux_names_the_nearest():
    with pytest.raises(ValueError, match="the nearest is GaisserH3a"):
        Flux("gaisserH3b")


def test_coverage_knows_energies_nuclei_and_the_cut_at_the_surface():
    everything = set(FLUX.nuclei)
    assert Coverage(Drawn((300, 1e9), 1.5), FLUX, everything).share(1.77, 1.0) > 0.99
    # Half of the muons at 1.77 km w.e. are from primaries below 1e4 GeV, and few of the bundles of ten.
    high = Coverage(Drawn((1e4, 1e9), 1.5), FLUX, everything)
    assert 0.35 < high.share(1.77, 1.0) < 0.65
    assert high.share(1.77, 1.0, 10) > 0.99
    assert Coverage(Drawn((300, 1e9), 1.5), FLUX, {1}).share(1.77, 1.0) < 0.9
    assert Coverage(Drawn((300, 1e9), 1.5, surface_gev=1e3), FLUX, everything).share(1.77, 1.0) == 0


# ---------------------------------------------------------------- geometry and tables


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


# ---------------------------------------------------------------- verdicts


@pytest.mark.parametrize(
    ("value", "error", "verdict"),
    [
        (1.0, 0.01, AGREES),
        (1.07, 0.01, AGREES),
        (1.2, 0.05, HIGH),
        (0.8, 0.05, LOW),
        (1.2, 0.1, AGREES),
        (9.0, 3.0, OUTSIDE),
    ],
)
def test_a_verdict_weighs_both_errors(value, error, verdict):
    assert make_row(("q", "at", 1.0), (value, error), Reference(1.0, 0.04, "source")).verdict == verdict


def test_the_simulator_agrees_with_nature_on_the_vertical(rows):
    for depth in ("1 km w.e.", "2 km w.e."):
        assert rows["vertical intensity", depth, "daemonflux through water"].verdict == AGREES
        assert rows["mean energy", depth, "daemonflux through water"].verdict == AGREES
    assert rows["vertical intensity", "1 km w.e.", "Mei and Hime, measured in rock"].verdict == SHOWN
    assert rows["vertical intensity", "4 km w.e.", "daemonflux through water"].verdict == OUTSIDE
    assert rows["intensity at 0.5 km w.e.", "60°", "MUTE"].verdict == OUTSIDE


def test_muons_with_too_much_energy_are_seen(events):
    muons = events.muons * np.float32([1.3, 1, 1])
    rows = rows_of(changed(events, muons))
    assert rows["mean energy", "1 km w.e.", "daemonflux through water"].verdict == HIGH


def test_missing_muons_are_seen(events, rows):
    keep = np.random.default_rng(1).random(len(events.muons)) < 0.75
    row = rows_of(changed(events, keep=keep))["vertical intensity", "1 km w.e.", "daemonflux through water"]
    assert row.verdict == LOW
    key = row.quantity.split(",")[0], row.label, row.source
    assert row.ratio == pytest.approx(0.75 * rows[key].ratio, rel=0.03)


def test_a_higher_threshold_changes_intensity_and_energy_as_the_tables_do(events):
    rows = rows_of(events, threshold_gev=50.0)
    assert rows["vertical intensity", "1 km w.e.", "daemonflux through water"].verdict == AGREES
    assert rows["mean energy", "1 km w.e.", "daemonflux through water"].verdict == AGREES


def test_distances_and_multiplicity_of_known_bundles():
    """Three muons 5 m from the axis, at one place: the mean radius is 5 m, pairs are 0 m apart, all bundles are triples."""
    made = flat_events(2_000, energy_gev=(400, 1e8), gamma=1.8, depth_m=1944.0, muons=3)
    sample = Sample.of(made, Drawn((400, 1e8), 1.8), FLUX, None)
    rows = {(row.quantity, row.label): row for row in compare.compare(sample)}
    assert rows["mean distance from the axis, m", "bundles of 3 at 1.77 km w.e."].value == pytest.approx(5.0)
    assert rows["mean distance of two muons, m", "bundles of 2 to 10 at 1.77 km w.e."].value == 0
    triples = rows["bundles of m muons, 1 / (m² s sr)", "3 at 1.77 km w.e."]
    intensity = rows["vertical intensity, 1 / (m² s sr)", "1.77 km w.e."]
    assert 3 * triples.value == pytest.approx(intensity.value)


def test_a_single_event_gives_no_verdict():
    made = flat_events(1, energy_gev=(400, 1e8), gamma=1.8)
    rows = compare.compare(Sample.of(made, Drawn((400, 1e8), 1.8), FLUX, None))
    assert {row.verdict for row in rows} == {OUTSIDE}


def test_the_flux_at_the_surface_is_compared_where_the_events_are_there():
    made = flat_events(5_000, energy_gev=(300, 1e8), gamma=1.8, depth_m=12.0)
    made.muons[:, 0] = 500
    rows = [row for row in compare.surface(Sample.of(made, Drawn((300, 1e8), 1.8), FLUX, None)) if row.value]
    assert [row.label for row in rows] == ["400 to 1000 GeV"]
    assert rows[0].verdict == HIGH  # Every primary sends a muon of 500 GeV.


# ---------------------------------------------------------------- the command


def test_the_command_reads_how_simulated_primaries_were_drawn(simulated, tmp_path, capsys):
    assert cli.main(["validate", str(simulated), "--out", str(tmp_path / "out")]) == 0
    out = capsys.readouterr().out
    assert re.search(r"vertical intensity.* 1 km w.e. .*daemonflux through water +agrees", out)
    content = json.loads((tmp_path / "out/validation.json").read_text())
    assert content["about"]["energies_of_the_primaries"] == "400 to 1e+08 GeV"
    assert content["about"]["spectrum"] == "E^-1.8"
    assert content["warnings"] == []
    page = (tmp_path / "out/report.html").read_text()
    assert page.count("<figure>") == 5
    for row in content["rows"]:
        assert row["verdict"] in page
    assert (tmp_path / "out/figures/depth_intensity.png").stat().st_size > 10_000


def test_primaries_that_begin_too_high_leave_figures_outside(tmp_path):
    settings = SimulationSettings(energy_gev=(1e4, 1e9), gamma=1.4, max_zenith_deg=0, depths_m=(1945.0,))
    simulate(settings, num_events=3_000, out=tmp_path / "sim", seed=0)
    with in_process() as executor:
        validation = validate(ValidationRequest([str(tmp_path / "sim")]), executor)
    row = next(
        row for row in validation.rows if row.label == "1.77 km w.e." and row.source == "daemonflux through water"
    )
    assert row.verdict == OUTSIDE
    assert "primaries and muons make" in row.note
    assert "figures: outside what this data covers" in report.summary(validation)


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        ([], r"do not say how their primaries were drawn; give --energy-range and --gamma"),
        (["--gamma", "1.8"], r"give --energy-range \("),
        (["--energy-range", "400", "1e8", "--gamma", "1.8", "--flux", "Gaisser"], "the nearest is Gaisser"),
        (["--energy-range", "1e8", "400", "--gamma", "1.8"], "expected 0 < LOW < HIGH"),
        (["--energy-range", "400", "1e8", "--gamma", "1.8", "--threshold-gev", "500"], "hold from 1 to 100 GeV"),
    ],
)
def test_options_that_cannot_be_are_refused_in_one_sentence(words, reason, tmp_path, capsys):
    data = write(tmp_path / "data/events.parquet", flat_events(50, energy_gev=(400, 1e8), gamma=1.8))
    assert cli.main(["validate", data, "--out", str(tmp_path / "out"), *words]) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("crmuons validate: ")
    assert re.search(reason, error)


@pytest.mark.parametrize(
    ("made", "reason"),
    [
        ({"muons": 0}, "none of the 50 events has a muon above 10 GeV"),
        ({"depth_m": 40_000.0}, "no table has muons there"),
        ({"masses": (11.18,)}, "C: GlobalSplineFit5Comp has no flux of it"),
    ],
)
def test_events_that_cannot_be_compared_are_refused_in_one_sentence(made, reason, tmp_path, capsys):
    made = flat_events(50, energy_gev=(400, 1e8), gamma=1.8, **made)
    settings = {"energy_gev": [400, 1e8], "gamma": 1.8, "threshold_gev": 10, "medium": "ice"}
    data = write(tmp_path / "data/events.parquet", made, command="simulate", settings=settings)
    assert cli.main(["validate", data, "--out", str(tmp_path / "out")]) == 1
    assert reason in capsys.readouterr().err.splitlines()[-1]


def test_files_that_were_made_differently_are_not_mixed(tmp_path):
    made = flat_events(50, energy_gev=(400, 1e8), gamma=1.8)
    for name, gamma in (("a", 1.8), ("b", 2.0)):
        settings = {"energy_gev": [400, 1e8], "gamma": gamma, "threshold_gev": 10, "medium": "ice"}
        write(tmp_path / f"{name}.parquet", made, command="simulate", settings=settings)
    with (
        pytest.raises(ValueError, match=r"a.parquet was made with .*1\.8.*b.parquet with .*2\.0"),
        in_process() as executor,
    ):
        validate(ValidationRequest([str(tmp_path)]), executor)


def test_an_option_against_the_files_is_taken_with_a_warning(simulated):
    with in_process() as executor:
        validation = validate(ValidationRequest([str(simulated)], energy_gev=(300, 2e8), events=20_000), executor)
    assert any("--energy-range: the files say" in warning for warning in validation.warnings)


@pytest.fixture(scope="module")
def model(tmp_path_factory, toy_events):
    """An untrained model whose training data begin at 1e4 GeV and 1500 m."""
    torch.manual_seed(3)
    settings = config.Model(width=16, multiplicity_width=8)
    made = BundleModel(settings, Features().fit(toy_events(1000)))
    about = {"model": settings.model_dump(), "step": 7}
    return saved_model.save_model(tmp_path_factory.mktemp("run") / "model", made, about)


def test_a_model_generates_what_it_needs_and_says_where_it_was_not_trained(model):
    request = ValidationRequest([str(model)], events=4_000)
    with in_process() as executor:
        validation, again = validate(request, executor), validate(request, executor)
    assert validation.rows == again.rows
    assert validation.model_step == 7
    assert any("outside the range of the model's training data (energy_gev" in text for text in validation.warnings)
    shallow = next(row for row in validation.rows if row.label == "1 km w.e.")
    assert shallow.value is not None
    assert "that the model was not trained on" in shallow.note


def test_a_model_is_told_from_data(model, simulated):
    assert is_model(str(model))
    assert not is_model(str(simulated))
    assert not is_model("/nowhere")


def test_generated_events_record_how_their_primaries_were_drawn(model, tmp_path):
    out = str(tmp_path / "generated")
    words = ["events=2000", "energy_gev=1e3:1e8", "gamma=1.8", "zenith_deg=0:20", "depth_m=1500:2400"]
    assert cli.main(["generate", "--model", str(model), "--spectrum", *words, "--out", out]) == 0
    with in_process() as executor:
        validation = validate(ValidationRequest([out]), executor)
    assert validation.about["spectrum"] == "E^-1.8"
    assert validation.about["energies_of_the_primaries"] == "1000 to 1e+08 GeV"
    assert all(re.fullmatch(r"[\w.]+", name) for name in validation.flat())
