"""Densities of the smooth further features: normalised, drawn as they say, learned, trained in every kind of step."""

import itertools
import math
import re

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from crmuons import config
from crmuons.data import arrow
from crmuons.data.events import EventArrays
from crmuons.data.features import BASE, parse
from crmuons.generation import export
from crmuons.generation.generator import BundleGenerator
from crmuons.models import saved_model
from crmuons.models.bundle_model import BundleModel
from crmuons.models.eager_optimizers import Adam
from crmuons.models.extra import LARGEST_SCORE, ExtraFeatures
from crmuons.models.features import Features
from crmuons.models.smooth import SmoothFeatures
from crmuons.models.standalone import StandaloneModel
from crmuons.training import objective, setup
from crmuons.training.driver import LocalLauncher, run_training
from crmuons.training.packed import PackedBatch
from crmuons.training.trainer import Trainer
from tests.trainers import TINY, FixedNoise, relative
from tests.unit.models.test_extra_features import EXTRA, with_extra

SETTINGS = {"model": TINY, "train": {"steps": 100, "events_per_worker": 24}}


@pytest.fixture(scope="module")
def events(toy_events):
    return with_extra(toy_events(400, seed=3))


@pytest.fixture
def network():
    torch.manual_seed(0)
    return SmoothFeatures([1, 0]).requires_grad_(requires_grad=False)


def trainer_of(events, kind=Trainer, *, static=False, drawn=True, **train):
    settings = config.from_dict(SETTINGS | {"train": SETTINGS["train"] | train})
    features = Features(extra=EXTRA, drawn=drawn).fit(events)
    return kind(settings, features, torch.device("cpu"), static=static)


def stepped(trainer, batches, steps=2):
    given = itertools.cycle([trainer.prepare(batch) for batch in batches])
    return [trainer.step(given) for _ in range(steps)][-1]


def part(events, start, stop):
    ends = np.cumsum(events.counts)
    muons = events.muons[ends[start - 1] if start else 0 : ends[stop - 1]]
    return EventArrays(events.ids[start:stop], events.primaries[start:stop], events.counts[start:stop], muons)


def test_the_density_of_two_columns_is_normalised(network):
    grid = torch.linspace(-12, 12, 401)
    first, second = torch.meshgrid(grid, grid, indexing="ij")
    columns = torch.stack([torch.full_like(first, 0.3), torch.full_like(first, -1.0), first, second], dim=-1)
    condition = torch.tensor([0.5, -1, 0, 1, 2]).expand(grid.numel() ** 2, 5)
    density = (-network.loss(columns.reshape(-1, 4), condition)).exp() / (2 * math.pi)
    assert float(density.sum() * (grid[1] - grid[0]) ** 2) == pytest.approx(1, abs=1e-3)


def test_columns_are_drawn_with_their_density(network):
    number = 40_000
    source = torch.Generator().manual_seed(1)
    given, condition = (
        torch.tensor([[0.3, -1.0]]).expand(number, 2),
        torch.tensor([[0.5, -1, 0, 1, 2]]).expand(number, 5),
    )
    noise = [draw(number, 2, generator=source) for draw in (torch.rand, torch.randn, torch.randn)]
    drawn = network.draw(given, condition, *noise)
    # By the density on a grid, as in the test before; the second column is drawn first.
    grid = torch.linspace(-12, 12, 201)
    first, second = torch.meshgrid(grid, grid, indexing="ij")
    columns = torch.stack([torch.full_like(first, 0.3), torch.full_like(first, -1.0), first, second], dim=-1)
    weight = (-network.loss(columns.reshape(-1, 4), condition[:1].expand(len(grid) ** 2, 5))).exp().reshape(first.shape)
    weight /= weight.sum()
    of_grid = (first, second, first * second, first.square())
    of_drawn = (drawn[:, 2], drawn[:, 3], drawn[:, 2] * drawn[:, 3], drawn[:, 2].square())
    for value, found in zip(of_grid, of_drawn, strict=True):
        mean = float((weight * value).sum())
        error = math.sqrt(float((weight * (value - mean).square()).sum()) / number)
        assert float(found.mean()) == pytest.approx(mean, abs=5 * error)


def test_muons_of_two_events_say_nothing_of_what_one_shares(network):
    columns, condition = torch.randn(8, 4), torch.randn(8, 5)
    apart = network.pair_loss(columns, condition, torch.zeros(4))
    torch.testing.assert_close(apart.sum(), network.loss(columns, condition).sum())
    assert not torch.equal(network.pair_loss(columns, condition, torch.ones(4)), apart)


def test_a_feature_of_one_value_and_a_far_one_keep_the_density_finite_and_what_is_drawn_in_range():
    network = SmoothFeatures([0])
    columns = torch.tensor([[0.0, 0.0, 0.0]] * 50 + [[0.0, 0.0, 1e4]])
    optimizer = Adam(network.parameters(), 0.05)
    for _ in range(60):
        optimizer.zero_grad()
        loss = network.loss(columns, torch.zeros(51, 5)).mean()
        loss.backward()
        optimizer.step()
        assert torch.isfinite(loss)
    with torch.no_grad():
        drawn = network.draw(columns[:, :2], torch.zeros(51, 5), torch.rand(51, 1), *(1e3 * torch.randn(2, 51, 1)))
    assert drawn[:, 2].abs().max() <= LARGEST_SCORE


def test_the_surface_energy_is_drawn_first_and_the_delay_last():
    names = ["t_ns", "speed", "dir_x", "dir_y", "charge", "energy_surface_gev"]
    layout = ExtraFeatures([(name, "discrete" if name == "charge" else "signed") for name in names])
    columns = [names[at] for at in layout.smooth]
    assert [columns[number] for number in layout.order] == ["energy_surface_gev", "dir_x", "dir_y", "speed", "t_ns"]


def test_the_generator_and_the_critic_see_energies_and_radii_alone(events):
    trainer = trainer_of(events)
    metrics = stepped(trainer, [part(events, 0, 24)])
    assert trainer.model.generator.out.out_features == trainer.critic.embed.in_features == 2
    assert {"smooth_loss", "smooth_gradient_norm", "discrete_loss"} <= metrics.keys()
    assert all(torch.isfinite(value) for name, value in metrics.items())


def test_every_fourth_muon_gives_the_loss_of_all(events, monkeypatch):
    """Where the muons are the same by eights, exactly: two of eight are taken."""
    some = part(events, 0, 24)
    eights = EventArrays(some.ids, some.primaries, 8 * some.counts, np.repeat(some.muons, 8, axis=0))
    trainer = trainer_of(events, muons_per_event=None)
    batch = trainer.prepare(eights)
    found = trainer.generator_terms(batch)
    monkeypatch.setattr(objective, "FURTHER_EVERY", 1)
    expected = trainer.generator_terms(batch)
    for name in ("smooth_loss", "discrete_loss"):
        torch.testing.assert_close(found[name], expected[name], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("events_taken", [(0, 24), (7, 20)])
def test_a_padded_step_moves_the_densities_as_a_step(events, events_taken):
    trainers = [trainer_of(events, FixedNoise, static=static) for static in (False, True)]
    batch = part(events, *events_taken)
    plain, static = (stepped(trainer, [batch]) for trainer in trainers)
    assert isinstance(trainers[1].prepare(batch), PackedBatch)
    for name in ("smooth_loss", "discrete_loss"):
        assert float(static[name]) == pytest.approx(float(plain[name]), rel=1e-4)
    gradients = [trainer.first_gradients["smooth"] for trainer in trainers]
    assert relative(*gradients) < 1e-5


def test_the_last_muon_of_a_padded_batch_shares_no_loss_with_a_dummy(events):
    """One muon in eight begins a pair: with 8 k + 1 muons the last one does, and a batch that is not padded leaves it out."""
    some = part(events, 0, 24)
    largest, surplus = int(some.counts.argmax()), (len(some.muons) - 1) % 8
    counts = some.counts.copy()
    counts[largest] -= surplus
    assert counts[largest] > 0
    first = int(some.counts[:largest].sum())
    batch = EventArrays(some.ids, some.primaries, counts, np.delete(some.muons, np.s_[first : first + surplus], axis=0))
    assert len(batch.muons) % 8 == 1
    trainers = [trainer_of(events, FixedNoise, static=static, muons_per_event=None) for static in (False, True)]
    plain, static = (stepped(trainer, [batch], steps=1) for trainer in trainers)
    for name in ("smooth_loss", "discrete_loss"):
        assert float(static[name]) == pytest.approx(float(plain[name]), rel=1e-5)
    assert relative(*(trainer.first_gradients["smooth"] for trainer in trainers)) < 1e-5


def test_the_losses_wait_for_no_number_of_the_device(events):
    class NoReads(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            assert function not in {torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default}, (
                function
            )
            return function(*args, **(kwargs or {}))

    trainer = trainer_of(events)
    batch = trainer.prepare(part(events, 0, 24))
    with NoReads():
        terms = trainer.generator_terms(batch)
    assert {"smooth_loss", "discrete_loss"} <= terms.keys()


def test_a_batch_without_muons_moves_no_density(events):
    trainer = trainer_of(events)
    none = EventArrays(events.ids[:5], events.primaries[:5], np.zeros(5, np.int64), events.muons[:0])
    before = [weights.clone() for weights in trainer.model.smooth.parameters()]
    stepped(trainer, [none], steps=1)
    assert all(torch.equal(*both) for both in zip(before, trainer.model.smooth.parameters(), strict=True))


def test_a_run_of_before_goes_on_with_the_generator_making_all_features(events, tmp_path):
    state = Features(extra=EXTRA, drawn=False).fit(events).state_dict()
    assert "extra_drawn" not in state
    assert not Features.of_state(state, cartesian=False).drawn
    trainer = trainer_of(events, drawn=False)
    metrics = stepped(trainer, [part(events, 0, 24)])
    assert trainer.model.smooth is None
    assert "smooth_loss" not in metrics
    assert trainer.model.generator.out.out_features == trainer.critic.embed.in_features == 7
    saved_model.save_model(
        tmp_path / "model", trainer.averaged, {"model": config.from_dict(SETTINGS).model.model_dump()}
    )
    export.export(tmp_path / "model", tmp_path / "exported")  # It compares the networks with those that train.
    network = StandaloneModel(trainer.averaged.state_dict())
    assert network.drawing.noise == ("uniform",)
    made = BundleGenerator(trainer.averaged, {}).generate(events.primaries[:3], seed=1, counts=np.array([1, 2, 1]))
    assert made.muons.shape == (4, 9)


def test_prepared_features_of_before_are_fitted_again_for_a_new_run(events, monkeypatch):
    before = Features(extra=EXTRA, drawn=False).fit(events)
    content = saved_model.BytesIO()
    torch.save(before.state_dict(), content)
    monkeypatch.setattr(setup.manifest, "features_of", lambda *_: content.getvalue())
    selection = setup.Selection(features=EXTRA)
    assert setup._features([], events, selection, cartesian=False).drawn


def test_a_discrete_feature_alone_is_learned_and_drawn(toy_events):
    charge = parse(["charge"])
    events = with_extra(toy_events(300, seed=3))
    own = EventArrays(events.ids, events.primaries, events.counts, np.ascontiguousarray(events.muons[:, [0, 1, 2, 6]]))
    trainer = Trainer(config.from_dict(SETTINGS), Features(extra=charge).fit(own), torch.device("cpu"))
    assert "discrete_loss" in stepped(trainer, [part(own, 0, 24)])
    made = BundleGenerator(trainer.averaged, {}).generate(own.primaries, seed=1, counts=own.counts)
    assert set(np.unique(made.muons[:, 3])) == {-1.0, 1.0}


def test_a_parent_of_before_gives_its_features_but_not_its_place_to_others(toy_events, events, tmp_path):
    settings = config.from_dict(SETTINGS)
    model = BundleModel(settings.model, Features(extra=EXTRA, drawn=False).fit(events))
    saved_model.save_model(tmp_path / "parent", model, {"model": settings.model.model_dump()})

    arrow.write_events(tmp_path / "e.parquet", [arrow.to_table(events, (*BASE, *EXTRA))], features=(*BASE, *EXTRA))
    words = [f"data.train={tmp_path}/e.parquet", f"run.storage_path={tmp_path}/runs", "scaling.num_workers=0"]
    words += ["train.steps=1", f"train.init_from={tmp_path}/parent", *(f"model.{k}={v}" for k, v in TINY.items())]
    words += ["data.features=['t_ns','dir_x','dir_y','charge','energy_surface_gev','twist_rad:angle:rad']"]
    for more, message in (
        ("train.refit_features=true", "its generator makes its further features, which new models draw"),
        ("train.frozen=['smooth']", "has no density of smooth further features; leave 'smooth' out"),
    ):
        with pytest.raises(ValueError, match=re.escape(message)):
            run_training(config.load(None, [*words, more]), LocalLauncher())
