"""Weights of events against closed forms, and what they need."""

import numpy as np
import pytest
import simweights

from crmuons.data import arrow
from crmuons.evaluation.nature.request import ValidationRequest, validate
from crmuons.evaluation.nature.rows import AGREES
from crmuons.evaluation.nature.weights import Coverage, Drawn, Flux, nucleons, row_weights
from crmuons.evaluation.tasks import in_process
from tests.unit.evaluation.nature.samples import FLUX, flat_events, rows_of, write


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
    assert other.warnings == ["--gamma: the files say [1.0, 1000000.0, 1.5], but 2.0 is used"]


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
