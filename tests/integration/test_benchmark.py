"""`crmuons benchmark` as a user runs it: a table, JSON, and the figures in MLflow."""

import json

import mlflow
import pytest

from crmuons.cli import main


@pytest.mark.parametrize("suite", ["scale"])
def test_a_suite_prints_a_table_and_json_and_is_tracked(suite, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    assert main(["benchmark", suite, "--rounds", "2", "--threads", "1", "--out", "results"]) == 0
    *table, told = capsys.readouterr().out.splitlines()
    results = json.loads(told)
    assert json.loads((tmp_path / "results" / "results.json").read_text()) == results
    assert [figure["name"] for figure in results["figures"]] == [
        *("scale, 1 worker", "scale, 2 workers", "scale, 2 workers that exchange nothing"),
    ]
    # One sum over ranks an update, and two updates a step.
    assert [figure.get("collectives_a_step") for figure in results["figures"]] == [2, 2, None]
    assert any(line.startswith("scale, 2 workers") for line in table)
    (run,) = mlflow.MlflowClient(uri).search_runs(
        [mlflow.MlflowClient(uri).get_experiment_by_name("crmuons benchmark").experiment_id]
    )
    assert run.data.metrics["scale__2_workers/ratio"] == pytest.approx(results["figures"][1]["ratio"])
    assert main(["benchmark", suite, "--out", "results"]) == 1
    assert "results is not empty" in capsys.readouterr().err
