"""Further features of a muon, from data to generated bundles: learned, drawn, saved, exported, and absent without data.features."""

import re
from contextlib import nullcontext

import numpy as np
import pytest
import torch

from crmuons import config
from crmuons.data import arrow, features, manifest
from crmuons.data.events import EventArrays
from crmuons.data.sample import sample_events
from crmuons.data.selection import Selection
from crmuons.generation import export
from crmuons.generation.generator import BundleGenerator
from crmuons.models import saved_model
from crmuons.models.bundle_model import BundleModel
from crmuons.models.extra import ExtraFeatures, draw_level
from crmuons.models.features import Features
from crmuons.models.standalone import StandaloneModel
from crmuons.simulation.simulate import SimulationSettings, simulate
from crmuons.training.driver import LocalLauncher, run_training

WORDS = ["t_ns", "dir_x", "dir_y", "charge", "energy_surface_gev", "twist_rad:angle:rad"]
EXTRA = features.parse(WORDS)
ALL = (*features.BASE, *EXTRA)


@pytest.fixture(scope="module")
def events(toy_events):
    return with_extra(toy_events(800, seed=3))


def with_extra(plain, seed=0):
    """Muons fly away from the axis, later the farther they are; hard ones are mu+ more often."""
    rng = np.random.default_rng(seed)
    energy, x, y = plain.muons.T.astype(float)
    number = len(energy)
    radius = np.hypot(x, y)
    along = radius / 3000 + 1e-4 * rng.normal(size=number)
    across = 2e-3 * rng.normal(size=number)
    columns = (
        radius**2 / 500 * rng.gamma(4, 0.25, number),
        (along * x - across * y) / radius,
        (along * y + across * x) / radius,
        np.where(rng.random(number) < np.where(energy > 300, 0.8, 0.3), 1, -1),
        energy * (1 + rng.gamma(2, 1, number)),
        rng.uniform(-np.pi, np.pi, number),
    )
    muons = np.concatenate([plain.muons, np.stack(columns, axis=1).astype(np.float32)], axis=1)
    return EventArrays(plain.ids, plain.primaries, plain.counts, muons)


def model_of(events, **settings):
    torch.manual_seed(0)
    chosen = config.Model(width=8, multiplicity_width=8, multiplicity_components=2, **settings)
    return BundleModel(chosen, Features(extra=EXTRA).fit(events)), chosen


def test_columns_come_back_and_a_direction_is_turned_with_its_muon(events):
    model, _ = model_of(events)
    muons = torch.from_numpy(events.muons)
    columns = model.features.columns(muons)
    assert columns.shape[1] == 2 + 5
    assert model.features.num_muon_features == 2  # The others are drawn.
    torch.testing.assert_close(model.features.muons(muons), columns[:, :2], rtol=0, atol=0)
    assert (columns.mean(0).abs() < 0.05).all()  # Normal,
    assert ((columns.std(0) - 1).abs() < 0.05).all()  # each by itself.
    azimuth = torch.atan2(muons[:, 2], muons[:, 1])
    back = model.features.to_muons(columns, azimuth)
    smooth = [0, 1, 2, 3, 4, 5, 7, 8]
    np.testing.assert_allclose(back, muons[:, smooth], rtol=2e-3, atol=2e-5)
    turned = model.features.to_muons(columns, azimuth + 1.0)
    along = (turned[:, 1] * turned[:, 4] + turned[:, 2] * turned[:, 5]) / torch.hypot(turned[:, 1], turned[:, 2])
    before = (muons[:, 1] * muons[:, 4] + muons[:, 2] * muons[:, 5]) / torch.hypot(muons[:, 1], muons[:, 2])
    np.testing.assert_allclose(along, before, rtol=1e-3, atol=2e-5)


def test_a_surface_energy_is_never_below_the_energy_and_a_direction_never_longer_than_one(events):
    layout = model_of(events)[0].features.layout
    energy = torch.logspace(1, 6, 500)
    columns = [torch.linspace(-9, 9, 500).roll(100 * number) for number in range(len(layout.smooth))]
    for number in layout.direction:
        columns[number] = columns[number] * 1e9
    made = dict(
        zip([layout.names[at] for at in layout.smooth], layout.from_columns(columns, energy, energy), strict=True)
    )
    assert (made["energy_surface_gev"] >= energy).all()
    # No muon has a transverse momentum above its momentum; what the clamp leaves is a direction of length 1.
    assert torch.hypot(made["dir_x"], made["dir_y"]).max() == pytest.approx(1, abs=1e-6)


def test_scaled_columns_of_simulated_muons_depend_little_on_their_energy(tmp_path):
    names = ("t_ns", "dir_x", "dir_y", "energy_surface_gev")
    extra = features.parse(names)
    simulate(SimulationSettings(features=names), num_events=600, out=tmp_path / "data", seed=1)
    files = manifest.event_files([str(tmp_path / "data")])
    (events,), _ = sample_events(files, [(Selection(features=extra), 600)], max_quarantined_share=0)
    muons = torch.from_numpy(events.muons)

    def ranks_follow_energy(column):
        ranks = torch.stack([column.argsort().argsort(), muons[:, 0].argsort().argsort()]).double()
        return float(torch.corrcoef(ranks)[0, 1].abs())

    for scaled, most in ((True, 0.35), (False, 1.0)):
        delay, along, across, surface = ExtraFeatures([(f.name, f.kind) for f in extra], scaled).to_columns(muons)
        found = [ranks_follow_energy(column) for column in (delay, along.abs(), across.abs(), surface)]
        assert max(found) < most, found
        assert scaled or min(found) > 0.4, found


def test_features_of_before_the_scaling_stay_what_they_were(events):
    before = Features(extra=EXTRA, scaled=False).fit(events)
    state = before.state_dict()
    assert "extra_scaled" not in state
    network = model_of(events)[0].state_dict()
    assert StandaloneModel(network).extra.scaled
    del network["features.extra_scaled"]
    assert not StandaloneModel(network).extra.scaled
    loaded = Features.of_state(state, cartesian=False)
    loaded.load_state_dict(state)
    muons = torch.from_numpy(events.muons)
    torch.testing.assert_close(loaded.layout.to_columns(muons)[0], muons[:, 3], rtol=0, atol=0)
    torch.testing.assert_close(loaded.muons(muons), before.muons(muons), rtol=0, atol=0)


def test_without_further_features_nothing_is_stored_or_drawn(toy_events):
    state = Features().fit(toy_events(100)).state_dict()
    assert not [name for name in state if "extra" in name or "declaration" in name or "levels" in name]
    assert BundleModel(config.Model(width=8), Features()).discrete is None


def test_the_standalone_model_agrees_and_draws_every_level(events, tmp_path):
    model, settings = model_of(events)
    saved_model.save_model(tmp_path / "model", model, {"model": settings.model_dump()})
    export.export(tmp_path / "model", tmp_path / "exported")  # It compares the two.
    readme = export._readme(StandaloneModel(model.state_dict()), onnx=True)
    assert (
        "uniform [muons, 6] in [0, 1), normal [muons, 5] and shared [events, 5] standard normal -> muons [muons, 9].\n"
        in readme
    )
    generator = BundleGenerator(saved_model.load_model(tmp_path / "model")[0], {})
    assert generator.muon_features == ALL
    made = generator.generate(events.primaries, seed=1, counts=events.counts)
    table = arrow.to_table(made, ALL)
    assert arrow.legal_arrays(table, features=ALL) is not None
    assert set(np.unique(made.muons[:, 6])) == {-1.0, 1.0}
    again = generator.generate(events.primaries, seed=1, counts=events.counts)
    np.testing.assert_array_equal(made.muons, again.muons)


def test_a_charge_on_the_edge_between_two_values_is_no_other_model(events):
    # Rounding flips one muon in 10^6 or 10^7; it stopped one export in some hundreds.
    network = StandaloneModel(model_of(events)[0].state_dict())
    flipped = events.muons.copy()
    flipped[5, 6] *= -1
    export.check_muons("the graph", network, flipped, events.muons)
    flipped[: len(flipped) // 50, 6] = -events.muons[: len(flipped) // 50, 6]
    with pytest.raises(ValueError, match=r"charge of [0-9.]+% of the muons of the graph differs"):
        export.check_muons("the graph", network, flipped, events.muons)
    moved = events.muons.copy()
    moved[5, 3] += np.sqrt(np.square(moved[:, 3].astype(float)).mean())  # Another Gaussian of the mixture.
    export.check_muons("the graph", network, moved, events.muons)
    moved[: len(moved) // 50, 3] = np.nan
    with pytest.raises(ValueError, match=r"t_ns of 2\.0% of the muons of the graph differs"):
        export.check_muons("the graph", network, moved, events.muons)
    moved[:, 3], moved[5, 0] = events.muons[:, 3], 2 * moved[5, 0]
    with pytest.raises(ValueError, match=r"the graph differs by 1\.0e\+00 from the model"):
        export.check_muons("the graph", network, moved, events.muons)


def test_a_delay_far_above_the_others_rounds_in_proportion(events):
    # 0.14 % of the delays of a trained model differed by 1e-5 of their root mean square, and none by 1e-5 of itself.
    network = StandaloneModel(model_of(events)[0].state_dict())
    long = events.muons.copy()
    long[: len(long) // 200, 3] *= 1e4  # These reach more than ten times the root of the mean square.
    for difference, good in ((5e-5, True), (1e-3, False)):
        rounded = long.copy()
        rounded[: len(long) // 200, 3] *= 1 + difference
        with nullcontext() if good else pytest.raises(ValueError, match="t_ns of"):
            export.check_muons("the graph", network, rounded, long)


def test_a_level_is_drawn_with_its_probability():
    probabilities = torch.tensor([0.1, 0.6, 0.3])
    drawn = draw_level(
        probabilities.log()[:, None].expand(3, 100_000), torch.tensor([-1.0, 0.0, 2.0]), torch.rand(100_000)
    )
    for value, probability in zip((-1.0, 0.0, 2.0), probabilities.tolist(), strict=True):
        # 4 standard errors of sqrt(p (1 - p) / n)
        assert abs(float((drawn == value).float().mean()) - probability) < 4 * np.sqrt(probability / 1e5)


def test_features_that_the_data_lack_or_nobody_knows_are_refused(toy_events, tmp_path, write_toy):
    plain = write_toy(tmp_path / "e.parquet", toy_events(100)).url
    base = [f"data.train={plain}", "train.steps=1", "scaling.num_workers=0", f"run.storage_path={tmp_path}/runs"]
    for words, message in (
        (["data.features=['t_ns']"], "its muons have no 't_ns' (they have energy_gev, x_m, y_m)"),
        (["data.features=['time']"], "data.features: time is not known; expected energy_gev"),
        (["data.features=['x_m']"], "x_m is there already"),
        (["data.features=['charge']", "model.kind=predecessor"], "its muons have no 'charge'"),
    ):
        with pytest.raises(ValueError, match=re.escape(message)):
            run_training(config.load(None, [*base, *words]), LocalLauncher())
    with pytest.raises(ValueError, match="predecessor knows energy_gev, x_m, y_m alone"):
        Features(cartesian=True, extra=EXTRA)


def test_the_layout_keeps_the_declared_order():
    layout = ExtraFeatures([("charge", "discrete"), ("dir_y", "signed"), ("t_ns", "signed"), ("dir_x", "signed")])
    assert (layout.smooth, layout.discrete, layout.direction) == ([1, 2, 3], [0], [2, 0])
