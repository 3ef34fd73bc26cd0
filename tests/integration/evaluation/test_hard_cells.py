"""The hard cells of a whole evaluation, of a model and of a data set."""

import json

import pytest

from crmuons import config
from crmuons.data.arrow import to_table, write_events
from crmuons.evaluation.evaluate import Evaluation
from crmuons.evaluation.hard_cells import figures
from crmuons.evaluation.metrics.distances import Estimate
from crmuons.evaluation.reference import GENERATED, NULL, EvaluationSettings
from crmuons.evaluation.report import files
from crmuons.evaluation.request import EvaluationRequest, evaluate_request
from crmuons.evaluation.tasks import in_process
from crmuons.models.bundle_model import BundleModel
from crmuons.models.features import Features
from crmuons.models.saved_model import save_model
from tests.large_events import large_events


def evaluated(folder, **changes) -> Evaluation:
    request = EvaluationRequest(
        [str(folder / "true")], split="all", settings=EvaluationSettings(max_events=400), **changes
    )
    with pytest.MonkeyPatch.context() as patch, in_process() as executor:
        patch.setattr("crmuons.evaluation.metrics.classifiers.MIN_EVENTS", 10_000)  # No classifier of all is trained.
        patch.setattr(figures, "MIN_EFFECTIVE", 50)
        patch.setattr(figures, "TREES", 10)
        (found,) = evaluate_request(request, executor)
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    for name, start, seed in (("true", 0, 1), ("true", 4_000, 2), ("made", 50_000, 3)):
        (folder / name).mkdir(exist_ok=True)
        write_events(folder / name / f"{start}.parquet", [to_table(large_events(4_000, seed, first_id=start))])
    settings = config.Model(width=8, multiplicity_width=8, multiplicity_components=2)
    model = BundleModel(settings, Features().fit(large_events(2_000, 4)))
    save_model(folder / "model", model, {"model": settings.model_dump()})
    return folder


def test_all_of_the_truth_is_searched_and_the_other_figures_stay(folder, tmp_path):
    plain, found = (
        evaluated(folder, generated=[str(folder / "made")]),
        evaluated(folder, generated=[str(folder / "made")], hard_cells=100),
    )
    assert plain.hard_cells == []
    before, after = (files.to_json(part) for part in (plain, found))
    assert before.pop("hard_cells") == []
    cells = {cell["key"]: cell for cell in after.pop("hard_cells")}
    assert before == after
    one = cells["n_1"]
    # 800 events are compared; of all 8,000, a quarter has one muon: 100 or more in each half are found.
    assert one["events"]["true"] >= 90
    assert abs(one[GENERATED]["rate"]["value"] - 1) < 4 * one[GENERATED]["rate"]["error"]
    assert 0.3 < one[GENERATED]["auc_bundles"]["value"] < 0.7
    assert one["effective_events"]["true"] <= one["events"]["true"]
    assert cells["masses_beyond"][GENERATED]["rate"] == {"absent": "0 true events, 10 needed"}
    flat = found.flat()
    assert flat["generated/hard_cells/n_1/rate"] == one[GENERATED]["rate"]["value"]
    assert "truth/hard_cells/n_1/w1" in flat
    assert not [name for name in plain.flat() if "hard_cells" in name]


def test_a_model_makes_events_for_the_primaries_that_were_looked_at(folder, tmp_path, monkeypatch):
    found = evaluated(folder, models=[str(folder / "model")], hard_cells=100)
    one = next(cell for cell in found.hard_cells if cell.key == "n_1")
    assert isinstance(one.numbers[GENERATED]["rate"], Estimate)
    assert isinstance(one.numbers[NULL]["w1"], Estimate)
    monkeypatch.setattr(files, "_draw", lambda evaluation: {})
    monkeypatch.setattr("crmuons.evaluation.report.parts.figures", lambda *words: "")
    files.write_report(found, tmp_path)
    page = (tmp_path / "report.html").read_text()
    assert "<h2>Hard cells</h2>" in page
    assert "masses beyond the trained ones, rate / true rate: 0 true events, 10 needed" in page
    content = json.loads((tmp_path / "evaluation.json").read_text(), parse_constant=pytest.fail)
    assert len(content["hard_cells"]) == len(found.hard_cells) == 12
