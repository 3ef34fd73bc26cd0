"""An exported model generates what the model generates, without any package but torch and numpy."""

import ast
import shutil

import numpy as np
import pytest
import torch

from crmuons import config
from crmuons.generation.export import export, worst_difference
from crmuons.generation.load import load_generator
from crmuons.models import formulas, saved_model, served, standalone
from crmuons.models.bundle_model import BundleModel
from crmuons.models.bundles import Bundles
from crmuons.models.exported import bundles_source
from crmuons.models.features import Features
from crmuons.models.ragged import Ragged

KINDS = {
    "set": config.Model(width=16, layers=3, shower_latents=3, muon_latents=2, multiplicity_width=8),
    "predecessor": config.Model(kind="predecessor", multiplicity="regressor"),
}


def save(kind, folder, events):
    torch.manual_seed(3)
    model = BundleModel(KINDS[kind], Features(cartesian=kind == "predecessor").fit(events))
    return saved_model.save_model(folder / "model", model, {"model": KINDS[kind].model_dump()})


@pytest.fixture(scope="module", params=KINDS)
def saved(tmp_path_factory, toy_events, request):
    return save(request.param, tmp_path_factory.mktemp("saved"), toy_events())


@pytest.fixture
def model_dir(saved, tmp_path):
    """A copy of the model of the kind, which a test may change."""
    return shutil.copytree(saved, tmp_path / "model")


@pytest.fixture
def primaries(toy_events):
    return toy_events(700, seed=1).primaries  # 2100 events: more than two blocks.


COUNTS = torch.tensor([1, 10_000, 2, 1, 300, 7, 4096, 64])


def test_the_networks_stated_for_speed_are_those_that_are_trained(model_dir, primaries):
    model, _ = saved_model.load_model(model_dir)
    network, given, ragged = (
        standalone.StandaloneModel(model.state_dict()),
        torch.from_numpy(primaries),
        Ragged.from_counts(COUNTS),
    )
    some = given[: len(COUNTS)]
    noise = network.noise(len(COUNTS), int(COUNTS.sum()), torch.Generator().manual_seed(1))
    features = model.generator(model.condition(some, COUNTS), noise[0], noise[1], ragged)
    expected = model.features.to_muons(features, noise[2])
    assert (
        worst_difference(network.muons_of(some, COUNTS, ragged.event_of_muon, noise).numpy(), expected.numpy()) < 1e-5
    )
    counts = network.sample_counts(given, torch.Generator().manual_seed(1))
    assert torch.equal(counts, model.sample_counts(given, torch.Generator().manual_seed(1)))
    if network.components:
        condition = model.features.condition(given)
        for one, other in zip(network.mixture(given), model.multiplicity.parameters_of(condition), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)
    assert network.latents == (model.generator.shower_latents, model.generator.muon_latents)


@pytest.mark.parametrize("knots_at", ["even distances", "equal probabilities"])
def test_scores_become_the_quantiles_of_the_trained_features_without_a_search(toy_events, knots_at):
    model = BundleModel(KINDS["set"], Features().fit(toy_events()))
    if knots_at == "equal probabilities":  # As in old models.
        model.features.scores.copy_(torch.special.ndtri((torch.arange(257) + 0.5) / 257))
    network = standalone.StandaloneModel(model.state_dict())
    assert network.even is (knots_at == "even distances")
    scores = torch.cat([torch.linspace(-7, 7, 200_001), model.features.scores])  # Beyond the last knots too.
    azimuth = torch.zeros(len(scores))
    expected = model.features.to_muons(torch.stack([scores, scores], dim=1), azimuth)
    found = network._physical(torch.stack([scores, scores]), azimuth)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-8)


def test_a_network_that_is_not_stated_is_not_drawn_from(model_dir):
    model, _ = saved_model.load_model(model_dir)
    weights = model.state_dict() | {"generator.layers.0.gate.weight": torch.ones(1)}
    with pytest.raises(ValueError, match=r"does not know the weights 'generator\.layers\.0\.gate\.weight'"):
        standalone.StandaloneModel(weights)


def test_the_exported_file_generates_what_crmuons_generates(model_dir, primaries):
    counts = np.arange(len(primaries)) % 40
    expected = load_generator(model_dir).generate(primaries, seed=2, counts=counts)
    drawn, muons = Bundles(model_dir).generate(primaries, seed=2, counts=counts)
    np.testing.assert_array_equal(drawn, counts)
    np.testing.assert_array_equal(muons, expected.muons)


def test_both_say_alike_what_lies_outside_the_trained_range(model_dir, primaries):
    far = primaries.copy()
    far[3, 0] *= 1e4
    far[7, 3] = 9e4
    generator, bundles = load_generator(model_dir), Bundles(model_dir)
    np.testing.assert_array_equal(bundles.outside_training(far), generator.outside_training(far))
    assert {3, 7} <= set(np.flatnonzero(bundles.outside_training(far)))
    assert not bundles.outside_training(primaries).all()


@pytest.fixture(scope="module")
def bundles(saved):
    return Bundles(saved)


@pytest.mark.parametrize(
    "primary", [[-1, 0, 1, 2000], [1e5, 2, 1, 2000], [1e5, 0, 0, 2000], [1e5, 0, 1, 2], [np.nan, 0, 1, 20]]
)
def test_illegal_primaries_are_refused(bundles, primary):
    with pytest.raises(ValueError, match=r"primary 1 is .*expected energy_gev > 0"):
        bundles.generate(np.array([[1e5, 0.1, 1, 2000], primary]))
    with pytest.raises(ValueError, match=r"shape \(3,\), expected \(events, 4\)"):
        bundles.generate(np.ones(3))


def test_the_exported_file_is_python_3_8():
    ast.parse(bundles_source(), feature_version=(3, 8))


def test_the_exported_file_begins_with_its_usage_and_imports_nothing_of_crmuons():
    tree = ast.parse(bundles_source())
    assert "from bundles import Bundles" in ast.get_docstring(tree)
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)]
    modules = {name.name for node in imports for name in node.names} | {
        getattr(node, "module", None) for node in imports
    }
    assert {"torch", "numpy"} <= modules
    assert not any(str(name).startswith("crmuons") for name in modules)


def test_an_export_that_generates_something_else_is_refused_and_leaves_nothing(model_dir, tmp_path, monkeypatch):
    monkeypatch.setattr(standalone, "SLOPE", 0.3)
    monkeypatch.setattr(formulas, "RADIUS_OFFSET_M", 0.01)
    monkeypatch.setattr(standalone, "relu", torch.nn.functional.softplus)
    with pytest.raises(ValueError, match="nothing was exported"):
        export(model_dir, tmp_path / "exported")
    assert {entry.name for entry in tmp_path.iterdir()} == {"model"}


def test_a_directory_that_holds_something_is_not_overwritten(model_dir):
    with pytest.raises(ValueError, match=r"model is not empty; name a new directory with --out"):
        export(model_dir, model_dir)


@pytest.fixture(scope="module")
def whole(tmp_path_factory, toy_events):
    return save("set", tmp_path_factory.mktemp("whole"), toy_events())


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["features.knots", "features.primary_std", "multiplicity.network.4.bias"])
def test_every_loader_refuses_a_tensor_with_nan_by_its_name(name, value, tmp_path, whole):
    """A run, a checkpoint, a directory, an exported one and MLflow's model: all of them generated NaN muons."""
    model_dir = shutil.copytree(whole, tmp_path / "model")
    checkpoint = tmp_path / "run" / "checkpoints" / "step-00000001"
    for other in (tmp_path / "exported", checkpoint):
        shutil.copytree(model_dir, other)
    for folder in (model_dir, tmp_path / "exported", checkpoint):
        weights = torch.load(folder / "weights.pt", weights_only=True)
        weights[name].view(-1)[1] = value
        torch.save(weights, folder / "weights.pt")
    for load, place in (
        (load_generator, model_dir),
        (load_generator, tmp_path / "run"),
        (load_generator, checkpoint),
        (Bundles, tmp_path / "exported"),
        (served._load_pyfunc, tmp_path / "exported"),
    ):
        with pytest.raises(
            ValueError, match=rf"weights\.pt: tensor '{name}' holds 1 values that are NaN .* copy the file"
        ):
            load(str(place))
