"""Whole evaluations, with their classifiers and reports: every figure is there, or its reason; warnings are said."""

import json
import re
from dataclasses import replace

import numpy as np
import pytest
import torch

from crmuons import config
from crmuons.data.arrow import to_table, write_events
from crmuons.data.events import EventArrays
from crmuons.evaluation.metrics.distances import Estimate, Missing
from crmuons.evaluation.reference import GENERATED, NULL, EvaluationSettings
from crmuons.evaluation.report import files
from crmuons.evaluation.report.criteria import HEADLINES, judge
from crmuons.evaluation.request import EvaluationRequest
from crmuons.models.bundle_model import BundleModel
from crmuons.models.features import Features
from crmuons.models.saved_model import save_model
from tests.unit.evaluation.test_evaluate import evaluate_arrays, evaluated, toy_events


@pytest.fixture(scope="module")
def evaluation():
    """A small data set against another, small enough for some figures to be absent."""
    truth, generated = toy_events(900, seed=0), toy_events(450, seed=1, first_id=10_000)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("crmuons.evaluation.metrics.set_classifier.STEPS", 5)
        patch.setattr("crmuons.evaluation.metrics.classifiers.TREES", 10)  # 24 classifiers are trained.
        patch.setattr("crmuons.evaluation.metrics.classifiers.MIN_EVENTS", 400)
        yield evaluate_arrays(
            truth, generated, toy_events(700, seed=2, first_id=20_000), EvaluationSettings(max_events=900)
        )


def test_every_sample_has_every_figure_or_its_reason(evaluation):
    assert set(evaluation.numbers) == {GENERATED, NULL, "nearest primary", "parametric"}
    for headline in HEADLINES:
        assert isinstance(evaluation.numbers[GENERATED][headline.name], Estimate | Missing)
        assert judge(evaluation, headline) in {"at the floor", "meets the bar", "undecided", "misses the bar", "—"}
    assert isinstance(evaluation.numbers[GENERATED]["pit"], Missing)
    assert evaluation.numbers[GENERATED]["fpd"].reason.endswith("1000 needed")


def test_the_floor_has_a_spread_and_equal_sets_are_at_it(evaluation):
    null, generated = evaluation.numbers[NULL]["score"], evaluation.numbers[GENERATED]["score"]
    assert 0 < null.error < null.value
    assert generated.value < null.value + 4 * null.error
    assert evaluation.numbers["parametric"]["auc_bundles"].value > 0.45


def test_report_holds_all_figures_and_no_nan(evaluation, tmp_path, monkeypatch):
    # Half of the time of drawing is matplotlib's search for places, for which it draws twice; the figures of a validation hold that it works.
    monkeypatch.setattr("matplotlib.figure.Figure.get_layout_engine", lambda self: None)
    files.write_report(evaluation, tmp_path)
    content = json.loads((tmp_path / "evaluation.json").read_text(), parse_constant=pytest.fail)
    assert content["numbers"]["generated"]["fpd"]["absent"].endswith("1000 needed")
    assert content["numbers"]["truth"]["score"]["value"] == evaluation.numbers[NULL]["score"].value
    page = (tmp_path / "report.html").read_text()
    assert page.count("<img") == len(list((tmp_path / "figures").glob("*.png"))) == 8
    assert "Numbers that are absent, and why:" in page
    assert "src='http" not in page
    assert "title='" in page  # Absent numbers carry their reasons.


def test_the_reason_stands_beside_what_is_absent(evaluation):
    lines = files.summary(evaluation).splitlines()
    (pit,) = [line for line in lines if line.startswith("distance of the PIT")]
    assert pit.endswith(
        "—  (the PIT needs a model, whose distribution is known; a data set has one draw per primary)".replace(
            "  ", " "
        )
    )
    (fpd,) = [line for line in lines if line.startswith("FPD")]
    assert re.search(
        r"absent +absent +— \(\d+ events with muons, 1000 needed; floor: \d+ events with muons, 1000 needed\)$", fpd
    )
    assert all("(" in line for line in lines if "absent" in line)


@pytest.fixture
def saved_model(tmp_path):
    """An untrained model whose settings say that it was trained on tmp_path/data."""
    (tmp_path / "data").mkdir()
    events = toy_events(1200, seed=0)
    write_events(tmp_path / "data" / "events.parquet", [to_table(events)])
    settings = config.load(
        None, ["train.steps=1", f"data.train={tmp_path / 'data'}", "model.width=8", "model.multiplicity_width=8"]
    )
    torch.manual_seed(0)
    model = BundleModel(settings.model, Features().fit(events))
    about = {"model": settings.model.model_dump(mode="json"), "config": settings.model_dump(mode="json"), "step": 1}
    return str(save_model(tmp_path / "model", model, about))


def test_a_model_held_against_its_own_training_split_is_warned_about(saved_model, tmp_path):
    request = EvaluationRequest(
        [str(tmp_path / "data")], models=[saved_model], settings=EvaluationSettings(max_events=200)
    )
    unseen = evaluated(request)
    assert not any("was trained on" in warning for warning in unseen.warnings)
    seen = evaluated(replace(request, split="train"))
    assert any(
        "400 of 400 true events belong to showers that the model was trained on" in text for text in seen.warnings
    )
    assert isinstance(seen.numbers[GENERATED]["pit"], Estimate)
    true, generated = seen.shown
    assert (true.primaries == generated.primaries).all()


def test_primaries_outside_the_trained_range_are_counted(saved_model, tmp_path):
    events = toy_events(300, seed=1, first_id=50_000)
    high = EventArrays(events.ids, events.primaries * np.float32([1000, 1, 1, 1]), events.counts, events.muons)
    write_events(tmp_path / "high.parquet", [to_table(high)])
    request = EvaluationRequest(
        [str(tmp_path / "high.parquet")], "all", [saved_model], settings=EvaluationSettings(max_events=100)
    )
    assert any("true primaries lie outside the range" in text for text in evaluated(request).warnings)
