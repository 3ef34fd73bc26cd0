"""`crmuons.load`: primaries as a table in, the generator's own muons as a pandas frame or an awkward array out."""

import re

import numpy as np
import pandas as pd
import pytest
import torch

import crmuons
from crmuons import config
from crmuons.data import schema
from crmuons.models import saved_model
from crmuons.models.bundle_model import BundleModel
from crmuons.models.features import Features
from crmuons.simulation.nuclei import mass_gev

IRON = mass_gev("Fe")
TABLE = {"energy_gev": [1e5, 1e6, 3e7], "zenith_rad": 0.3, "mass_gev": "Fe", "depth_m": [1_500, 1_900, 2_400]}


@pytest.fixture(scope="module")
def model(toy_events, tmp_path_factory):
    torch.manual_seed(0)
    settings = config.Model(width=8, multiplicity_width=8, multiplicity_components=2)
    whole = BundleModel(settings, Features().fit(toy_events(300)))
    folder = tmp_path_factory.mktemp("run") / "model"
    return crmuons.load(saved_model.save_model(folder, whole, {"model": settings.model_dump()}))


def test_a_frame_has_the_generators_muons_under_the_number_of_their_primary(model):
    frame = model.generate(TABLE, seed=4)
    primaries = np.array([[1e5, 0.3, IRON, 1500], [1e6, 0.3, IRON, 1900], [3e7, 0.3, IRON, 2400]], np.float32)
    expected = model.generator.generate(primaries, seed=4)
    assert list(frame.columns) == list(schema.MUON_FEATURES)
    np.testing.assert_array_equal(frame.to_numpy(), expected.muons)
    np.testing.assert_array_equal(frame.index.get_level_values("event"), np.repeat(np.arange(3), expected.counts))
    assert (frame.groupby("event").size() == expected.counts[expected.counts > 0]).all()
    assert not frame.equals(model.generate(TABLE, seed=5))


def test_frames_arrays_and_records_of_the_same_primaries_give_the_same_muons(model):
    frame = pd.DataFrame({**TABLE, "mass_gev": [IRON] * 3, "name": ["a", "b", "c"]})
    array = frame[list(schema.PRIMARY_FEATURES)].to_numpy()
    records = np.array([tuple(row) for row in array], [(name, "f8") for name in schema.PRIMARY_FEATURES])
    expected = model.generate(TABLE, seed=1)
    for given in (frame, array, records):
        assert model.generate(given, seed=1).equals(expected)


def test_awkward_events_keep_those_without_muons(model):
    ak = pytest.importorskip("awkward", reason="the extra crmuons[awkward] is not installed")
    events = model.generate(TABLE, seed=4, counts=[2, 0, 3], library="ak")
    assert ak.num(events.muons).tolist() == [2, 0, 3]
    frame = model.generate(TABLE, seed=4, counts=[2, 0, 3])
    for name in schema.MUON_FEATURES:
        np.testing.assert_array_equal(ak.to_numpy(ak.flatten(events.muons[name])), frame[name])
    np.testing.assert_array_equal(ak.to_numpy(events.primary.depth_m), [1500, 1900, 2400])
    assert model.generate(events.primary, seed=4).equals(model.generate(TABLE, seed=4))


def test_awkward_that_is_missing_is_said_with_the_extra(model, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "awkward", None)
    with pytest.raises(ImportError, match=r"library='ak' needs the package awkward: pip install 'crmuons\[awkward\]'"):
        model.generate(TABLE, library="ak")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"depth_m": None}, "the primaries have no column 'depth_m' (found energy_gev, zenith_rad, mass_gev)"),
        ({"depth_m": [1500, 1900]}, "different lengths (energy_gev 3, zenith_rad 1, mass_gev 1, depth_m 2)"),
        ({"mass_gev": "Xe"}, "'Xe' is none of p, He"),
        ({"energy_gev": ["many", "more", "most"]}, "column 'energy_gev' of the primaries holds "),
        ({"depth_m": 1.9}, "this looks like kilometres"),
        ({"zenith_rad": 40.0}, "zenith_rad is outside [0, pi/2]"),
    ],
)
def test_a_wrong_table_is_refused_by_its_column(model, change, message):
    table = {name: value for name, value in (TABLE | change).items() if value is not None}
    with pytest.raises(ValueError, match=re.escape(message)):
        model.generate(table)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"library": "np"}, "library='np': expected 'pd' for a pandas frame or 'ak' for an awkward array"),
        ({"counts": [1, 2]}, "expected a whole number for each of 3 events, or one for all"),
        ({"counts": 2.5}, "expected a whole number for each of 3 events"),
        ({"counts": -1}, "has -1 muons, expected 0 to"),
        ({"seed": -1}, "seed -1: expected a whole number from 0"),
        ({"max_muons": 0}, "max_muons 0: expected a whole number from 1"),
    ],
)
def test_wrong_options_are_refused_with_their_value(model, options, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        model.generate(TABLE, **options)


def test_a_place_without_a_model_is_named():
    with pytest.raises(FileNotFoundError, match="no model at nowhere"):
        crmuons.load("nowhere")


def test_a_model_in_mlflow_is_looked_up_in_the_store(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match="models:/muons@best is looked up in MLflow, and there is no"):
        crmuons.load("models:/muons@best")
