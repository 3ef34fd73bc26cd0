"""Weights of generated events: the column and IceCube's tables give what simweights gives for the whole data set."""

import json

import numpy as np
import pyarrow.parquet as pq
import pytest
import simweights
import torch

from crmuons import config
from crmuons.cli import main
from crmuons.generation.spectrum import Spectrum, pdg, simweights_tables
from crmuons.generation.weights import FLUXES, FluxWeights, flux_named
from crmuons.models import saved_model
from crmuons.models.bundle_model import BundleModel
from crmuons.models.features import Features
from crmuons.simulation.nuclei import NUCLEI, symbol

FILL = ["--fill", "dir_x=0", "dir_y=0", "t_ns=0", "charge=-1"]
FIVE = "composition=p:2,He:1,N:1,Al:1,Fe:1"


@pytest.fixture(scope="module")
def model(tmp_path_factory, toy_events):
    torch.manual_seed(3)
    settings = config.Model(width=8, multiplicity_width=8)
    whole = BundleModel(settings, Features().fit(toy_events(300)))
    return saved_model.save_model(tmp_path_factory.mktemp("run") / "model", whole, {"model": settings.model_dump()})


@pytest.fixture(scope="module")
def generated(model, tmp_path_factory):
    """A data set of three shards with weights and IceCube's tables."""
    out = tmp_path_factory.mktemp("generated") / "out"
    command = ["generate", "--model", str(model), "--out", str(out), "--counts", "1", "--events-per-shard", "1024"]
    command += [
        "--spectrum",
        "events=2500",
        "energy_gev=1e4:1e8",
        FIVE,
        "--weight",
        "GaisserH3a",
        "--format",
        "icecube",
    ]
    assert main([*command, *FILL]) == 0
    return out


def test_the_weights_are_those_of_simweights(generated):
    expected = simweights.CorsikaWeighter(simweights_tables(generated)).get_weights(simweights.GaisserH3a())
    column = np.concatenate([pq.read_table(path)["weight_hz"] for path in sorted(generated.glob("*.parquet"))])
    assert len(column) == 2500
    np.testing.assert_allclose(column, expected, rtol=1e-12)
    assert column.sum() == pytest.approx(expected.sum(), rel=1e-9)
    assert (column > 0).all()


def test_simweights_reads_the_hdf5_files_and_their_sum_is_the_data_set(generated):
    h5py = pytest.importorskip("h5py")
    files = [h5py.File(path) for path in sorted((generated / "_icecube").glob("*.hdf5"))]
    assert len(files) == 3
    weighter = sum(simweights.CorsikaWeighter(file) for file in files)
    expected = simweights.CorsikaWeighter(simweights_tables(generated)).get_weights(simweights.GaisserH4a())
    np.testing.assert_allclose(weighter.get_weights(simweights.GaisserH4a()), expected, rtol=1e-9)
    columns = {"primary_type", "n_events", "oversampling", "cylinder_height", "cylinder_radius", "min_zenith", "max_zenith",
               "min_energy", "max_energy", "power_law_index"}  # fmt: skip
    assert set(files[0]["I3CorsikaInfo"].dtype.names) == columns
    for file in files:
        file.close()


def test_the_tables_hold_what_the_main_branch_of_simweights_reads(generated):
    tables = simweights_tables(generated)
    weight_map, primary = tables["CorsikaWeightMap"], tables["PolyplopiaPrimary"]
    np.testing.assert_array_equal(weight_map["PrimaryEnergy"], primary["energy"])
    np.testing.assert_array_equal(weight_map["PrimaryType"], primary["type"])
    assert (weight_map["Weight"] == 1).all()


@pytest.mark.parametrize("flux", FLUXES)
def test_every_nucleus_of_every_flux_has_a_name(flux):
    codes = {int(code) for code in flux_named(flux, "--weight").pdgids}  # Some fluxes are read from tables of text.
    assert codes <= {pdg(name) for name in NUCLEI}
    names = [name for name in NUCLEI if pdg(name) in codes]
    one = [name for at, name in enumerate(names) if NUCLEI[name][1] not in {NUCLEI[other][1] for other in names[:at]}]
    spectrum = Spectrum(100, composition=tuple((name, 1.0) for name in one))
    assert (FluxWeights(spectrum, flux)(next(iter(spectrum)).values) > 0).all()


def test_symbols_keep_their_meaning():
    assert [symbol(name) for name in ("p", "P", "H", "proton", "fe", "P31", "co")] == [
        "p",
        "p",
        "p",
        "p",
        "Fe",
        "P31",
        "Co",
    ]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["--weight", "GaisserH3a"],
            "--weight GaisserH3a: it has no flux of O, which the spectrum's composition names",
        ),
        (["--weight", "H3a"], "--weight H3a: expected one of GaisserH3a"),
        (["--weight", "Hoerandel", "--format", "icetray"], "--format icetray: expected tracks, corsika8, icecube"),
        (["--format", "f2k"], "needs dir_x, dir_y, t_ns, which the muons lack (they have energy_gev, x_m, y_m)"),
        (
            ["--fill", "t_ns=0"],
            "--fill is for the formats of other tools; choose one with --format, or leave --fill out",
        ),
    ],
)
def test_what_cannot_be_weighted_or_written_is_refused_before_anything_is_generated(
    model, tmp_path, words, message, capsys
):
    out = tmp_path / "out"
    command = ["generate", "--model", str(model), "--out", str(out), "--spectrum", "events=100", "composition=p:1,O:1"]
    assert main([*command, *words]) != 0
    assert message in capsys.readouterr().err
    assert not list(out.glob("*.parquet")) if out.exists() else True


def test_primaries_from_files_have_no_weights(model, tmp_path, toy_events, write_toy, capsys):
    primaries = write_toy(tmp_path / "p.parquet", toy_events(10)).url
    command = ["generate", "--model", str(model), "--out", str(tmp_path / "out"), "--primaries", primaries]
    assert main([*command, "--weight", "GaisserH3a"]) == 1
    assert "the probability of primaries from files is not known; draw them with --spectrum" in capsys.readouterr().err


def test_nuclei_of_the_same_mass_cannot_be_drawn_together():
    with pytest.raises(ValueError, match="two of Ar, Ca have the same number of nucleons"):
        Spectrum(10, composition=(("Ar", 1.0), ("Ca", 1.0)))


def test_a_request_without_weights_is_recorded_as_before(model, tmp_path):
    out = tmp_path / "out"
    assert main(["generate", "--model", str(model), "--out", str(out), "--spectrum", "events=10"]) == 0
    assert set(json.loads((out / "_request.json").read_text())["request"]) == {
        "model", "primaries", "num_events", "seed", "counts", "max_muons_per_event", "events_per_shard", "device"
    }  # fmt: skip
