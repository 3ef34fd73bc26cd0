"""The command `crmuons validate`: how primaries were drawn, what is refused, and models."""

import re

import pytest
import torch

from crmuons import cli, config
from crmuons.evaluation.nature import report
from crmuons.evaluation.nature.request import ValidationRequest, validate
from crmuons.evaluation.nature.rows import OUTSIDE
from crmuons.evaluation.tasks import in_process
from crmuons.generation.load import is_model
from crmuons.models import saved_model
from crmuons.models.bundle_model import BundleModel
from crmuons.models.features import Features
from crmuons.simulation.simulate import SimulationSettings, simulate
from tests.unit.evaluation.nature.samples import flat_events, write


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
