"""Declared features of the muons in an evaluation: figures, tables, classifiers, and the frame of the direction."""

import json
from dataclasses import replace

import numpy as np
import pytest

from crmuons import config
from crmuons.data import arrow, features
from crmuons.data.events import EventArrays
from crmuons.evaluation.comparison import EventSample, classify
from crmuons.evaluation.datasets import EventSet
from crmuons.evaluation.headers import EventHeaders
from crmuons.evaluation.metrics import further
from crmuons.evaluation.metrics.classifiers import area_under_curve
from crmuons.evaluation.metrics.distances import Estimate, fidelity
from crmuons.evaluation.metrics.profiles import profiles
from crmuons.evaluation.metrics.quantities import Sample, shower_numbers
from crmuons.evaluation.reference import GENERATED, NULL, EvaluationSettings
from crmuons.evaluation.report import files, parts
from crmuons.evaluation.request import EvaluationRequest, evaluate_request
from crmuons.evaluation.tasks import in_process
from crmuons.models.bundle_model import BundleModel
from crmuons.models.features import Features
from crmuons.models.saved_model import save_model

EXTRA = features.parse(["t_ns", "dir_x", "dir_y", "charge", "energy_surface_gev", "correlation:signed"])


def showers(number, seed, first_id=0):
    """One event of a few muons for each shower; delay and angle grow with the radius, hard muons are mu+ more often."""
    rng = np.random.default_rng(seed)
    primaries = np.stack([10 ** rng.uniform(4, 6, number), rng.uniform(0, 1, number), *np.full((2, number), 2000.0)], 1)
    primaries[:, 2] = 0.938
    counts = rng.integers(1, 6, number)
    counts[::100] = 12  # Ten or more muons are displayed.
    muons = counts.sum()
    energy, radius, azimuth = (
        10 ** rng.normal(2.5, 0.4, muons),
        10 ** rng.normal(1, 0.4, muons),
        rng.uniform(0, 7, muons),
    )
    along, across = radius / 3000 + 1e-3 * rng.normal(size=muons), 2e-3 * rng.normal(size=muons)
    cos, sin = np.cos(azimuth), np.sin(azimuth)
    columns = [energy, radius * cos, radius * sin, radius / 50 * rng.gamma(4, 0.25, muons)]
    columns += [along * cos - across * sin, along * sin + across * cos]
    columns += [np.where(rng.random(muons) < np.where(energy > 300, 0.8, 0.4), 1, -1), energy * (2 + rng.random(muons))]
    columns += [rng.normal(size=muons)]
    ids = np.stack([np.arange(number) + first_id, np.full(number, 7)], axis=1).astype(np.uint64)
    return EventArrays(ids, primaries.astype(np.float32), counts, np.stack(columns, axis=1).astype(np.float32))


def with_turned_directions(events, seed=0):
    """The directions turned by a random angle each: their distributions stay, and the position knows nothing of them."""
    muons, angle = events.muons.copy(), np.random.default_rng(seed).uniform(0, 2 * np.pi, len(events.muons))
    x, y = events.muons[:, 4], events.muons[:, 5]
    muons[:, 4], muons[:, 5] = x * np.cos(angle) - y * np.sin(angle), x * np.sin(angle) + y * np.cos(angle)
    return replace(events, muons=muons)


def areas(truth, other, names):
    numbers = shower_numbers(truth.ids, other.ids)
    with in_process() as executor:
        samples = [
            EventSample(
                EventSet(EventHeaders.of(events), executor.put(events)), executor.put(Sample.of(events, part, EXTRA))
            )
            for events, part in zip((truth, other), numbers, strict=True)
        ]
        scores = classify(executor, *samples, 0, EXTRA)
        return {name: area_under_curve(executor.get(scores[name])) for name in names}


@pytest.fixture
def small_classifiers(monkeypatch):
    monkeypatch.setattr("crmuons.evaluation.metrics.set_classifier.STEPS", 60)
    monkeypatch.setattr("crmuons.evaluation.metrics.set_classifier.EVENTS_PER_STEP", 256)
    monkeypatch.setattr("crmuons.evaluation.metrics.classifiers.TREES", 10)


def test_a_direction_is_compared_in_the_frame_of_its_muon():
    events = showers(200, seed=1)
    columns = {column.name: at for at, column in enumerate(further.columns(EXTRA))}
    values = further.values(events, EXTRA)
    radius = np.hypot(events.muons[:, 1], events.muons[:, 2])
    outward = (events.muons[:, 1] * events.muons[:, 4] + events.muons[:, 2] * events.muons[:, 5]) / radius
    np.testing.assert_allclose(values[:, columns["dir_along"]], outward, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(values[:, columns["energy_surface_gev"]], np.log10(events.muons[:, 7]), rtol=1e-5)
    np.testing.assert_array_equal(values[:, columns["charge"]], events.muons[:, 6])


def test_directions_that_know_nothing_of_the_position_are_seen(small_classifiers):
    # Each component has the right distribution; only along the radius they differ.
    truth, other = showers(1200, seed=1), with_turned_directions(showers(1200, seed=2, first_id=10_000))
    found = areas(truth, other, ["auc_bundles", "auc_muons"])
    assert found["auc_bundles"].value > 0.6
    assert found["auc_muons"].value > 0.6
    floor = areas(truth, showers(1200, seed=3, first_id=20_000), ["auc_bundles"])["auc_bundles"]
    assert abs(floor.value - 0.5) < 4 * floor.error


def test_a_wrong_distribution_of_a_feature_is_its_own_distance():
    truth, other = showers(400, seed=1), showers(400, seed=2)
    other.muons[:, 3] *= 1.5
    numbers = fidelity(truth, other, EXTRA)
    assert numbers["w1_t_ns"] > 3 * numbers["w1_dir_along"]
    assert numbers["w1_muon_correlation"] < 0.2  # The user's own feature, and not the bundle's quantity
    assert numbers["w1_correlation"] != numbers["w1_muon_correlation"]


def test_profiles_hold_the_factor_by_which_delays_were_multiplied():
    truth, other = showers(3000, seed=1), showers(3000, seed=1)
    other.muons[:, 3] *= 1.2
    found = profiles(*(Sample.of(events, None, EXTRA) for events in (truth, other)), further.columns(EXTRA))
    delays = [part for part in found if part.quantity.startswith("t_ns") and isinstance(part.deviation, Estimate)]
    assert {part.axis for part in delays} == {"distance from the axis", "energy"}
    assert {part.interval for part in delays} >= {"3.16 to 10 m", "100 to 1,000 GeV"}
    for part in delays:
        assert part.deviation.value == pytest.approx(0.2, abs=1e-4)
        assert part.verdict != "within 5 %"
    others = [part for part in found if isinstance(part.deviation, Estimate) and part not in delays]
    assert {part.verdict for part in others} == {"within 5 %"}
    assert len({part.quantity for part in others}) == 6  # Angle, along, across, surface energy, charge, the own one.


def test_the_mean_of_a_profile_has_the_error_of_its_showers():
    # Copies of an event in one shower add no knowledge: error = std / sqrt(showers), not / sqrt(muons).
    events = showers(400, seed=1)
    single = replace(events, counts=np.ones(400, np.int64), muons=events.muons[:400])
    tripled = EventArrays(single.ids, single.primaries, np.full(400, 3), np.repeat(single.muons, 3, axis=0))
    (once, thrice) = (
        profiles(*(2 * [Sample.of(part, None, EXTRA)]), further.columns(EXTRA)) for part in (single, tripled)
    )
    for a, b in zip(once, thrice, strict=True):
        if isinstance(a.true, Estimate):
            assert b.true.value == pytest.approx(a.true.value, rel=1e-6)
            assert b.true.error == pytest.approx(a.true.error, rel=1e-6)


@pytest.fixture(scope="module")
def evaluation(tmp_path_factory):
    """Generated files against true files; both declare features, and one of them is only in the true ones."""
    folder = tmp_path_factory.mktemp("data")
    declared = (*features.BASE, *EXTRA)
    arrow.write_events(folder / "true.parquet", [arrow.to_table(showers(900, 1), declared)], features=declared)
    made, fewer = showers(450, 2, first_id=10_000), declared[:-1]
    made = replace(made, muons=made.muons[:, :-1])
    arrow.write_events(folder / "made.parquet", [arrow.to_table(made, fewer)], features=fewer)
    with pytest.MonkeyPatch.context() as patch, in_process() as executor:
        patch.setattr("crmuons.evaluation.metrics.classifiers.MIN_EVENTS", 10_000)  # No classifier is trained.
        request = EvaluationRequest(
            truth=[str(folder / "true.parquet")],
            split="all",
            generated=[str(folder / "made.parquet")],
            settings=EvaluationSettings(max_events=450),
        )
        (found,) = evaluate_request(request, executor)
    return found


def test_a_data_set_is_compared_in_the_features_that_both_declare(evaluation):
    assert [feature.name for feature in evaluation.further] == [
        "t_ns",
        "dir_x",
        "dir_y",
        "charge",
        "energy_surface_gev",
    ]
    assert any(text.endswith("have it: correlation") for text in evaluation.warnings)
    for sample in (GENERATED, NULL):
        assert isinstance(evaluation.numbers[sample]["w1_dir_along"], Estimate)


def test_the_report_shows_the_features(evaluation, tmp_path, monkeypatch):
    monkeypatch.setattr("matplotlib.figure.Figure.get_layout_engine", lambda self: None)
    png = parts.png
    monkeypatch.setattr(parts, "png", lambda figure: b"")  # The integration tests draw them all: 1.5 CPU-seconds.
    figures = files.write_report(evaluation, tmp_path)
    assert png(figures["muon_features"]).startswith(b"\x89PNG")
    panels = [axis.get_xlabel() for axis in figures["muon_features"].axes if axis.get_xlabel()]
    assert panels == [column.label for column in further.columns(evaluation.further)]
    page = (tmp_path / "report.html").read_text()
    for text in (
        "Further numbers of the muons",
        "W1/σ: t_ns [ns] of a muon",
        "angle to the axis [mrad] against energy",
    ):
        assert text in page
    content = json.loads((tmp_path / "evaluation.json").read_text(), parse_constant=pytest.fail)
    assert {"within 5 %", "undecided", "beyond 5 %"} >= {part["verdict"] for part in content["profiles"]["truth"]} - {
        ""
    }
    displays = figures["event_displays"].axes  # Positions alone set its range, not delays or energies.
    assert max(axis.get_xlim()[1] for axis in displays if axis.get_xlabel() == "x / m") < 500


def test_without_further_features_a_report_has_no_section():
    assert further.columns(()) == []
    sample = Sample.of(replace(showers(120, 1), muons=showers(120, 1).muons[:, :3]), None, EXTRA)  # A baseline's.
    assert not [name for name in (*sample.muons, *sample.bundles) if name.startswith("extra_")]


def test_a_model_is_compared_in_the_features_that_the_truth_has(tmp_path, monkeypatch):
    monkeypatch.setattr("crmuons.evaluation.metrics.classifiers.MIN_EVENTS", 10_000)  # No classifier is trained.
    truth, declared = showers(400, 3), (*features.BASE, *EXTRA[:2], features.KNOWN["dir_y"])
    fewer = replace(truth, muons=truth.muons[:, [0, 1, 2, 3, 4, 5]])
    arrow.write_events(tmp_path / "true.parquet", [arrow.to_table(fewer, declared)], features=declared)
    settings = config.Model(width=8, multiplicity_width=8, multiplicity_components=2)
    model = BundleModel(settings, Features(extra=EXTRA).fit(truth))
    saved = save_model(tmp_path / "model", model, {"model": settings.model_dump()})
    with in_process() as executor:
        request = EvaluationRequest(
            truth=[str(tmp_path / "true.parquet")],
            split="all",
            models=[str(saved)],
            settings=EvaluationSettings(max_events=200),
        )
        (found,) = evaluate_request(request, executor)
    assert [feature.name for feature in found.further] == ["t_ns", "dir_x", "dir_y"]
    assert found.shown[1].muons.shape[1] == 6
    assert any(text.endswith("have it: charge, energy_surface_gev, correlation") for text in found.warnings)
