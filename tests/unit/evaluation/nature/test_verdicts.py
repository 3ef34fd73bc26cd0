"""Verdicts follow the data: agreement, too many and too few muons, and what the data do not cover."""

import numpy as np
import pytest

from crmuons.data.events import EventArrays
from crmuons.evaluation.nature import compare
from crmuons.evaluation.nature.rows import AGREES, HIGH, LOW, OUTSIDE, SHOWN, Reference, make_row
from crmuons.evaluation.nature.sample import Sample
from crmuons.evaluation.nature.weights import Drawn
from tests.unit.evaluation.nature.samples import FLUX, flat_events, rows_of


def changed(events, muons=None, keep=None):
    """The same events with other muons, or with some of them."""
    muons = events.muons if muons is None else muons
    if keep is None:
        return EventArrays(events.ids, events.primaries, events.counts, muons)
    event = np.repeat(np.arange(len(events.counts)), events.counts)[keep]
    return EventArrays(events.ids, events.primaries, np.bincount(event, minlength=len(events.counts)), muons[keep])


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
