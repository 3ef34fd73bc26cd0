"""`crmuons benchmark` as a user runs it: a table, JSON, and the figures in MLflow."""

import json
import re

import mlflow
import pytest

from crmuons.cli import main
from tests.integration.conftest import Bench

FIGURES = {
    "train": ["train, 0 workers, events read"],
    "generate": ["generate, muons"],
}


@pytest.mark.parametrize("suite", FIGURES)
def test_a_suite_prints_a_table_and_json_and_is_tracked(bench: Bench, suite, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    words = ("--data", str(bench.folder / "data"), "--workers", "0", "--events", "64", "--out", "results")
    assert main(["benchmark", suite, "--rounds", "2", "--threads", "1", *words]) == 0
    *table, told = capsys.readouterr().out.splitlines()
    results = json.loads(told)
    assert json.loads((tmp_path / "results" / "results.json").read_text()) == results
    assert [figure["name"] for figure in results["figures"]] == FIGURES[suite]
    assert {len(figure["seconds"]) for figure in results["figures"]} == {2}
    assert results["machine"]["threads"] == 1
    for name in FIGURES[suite]:
        assert any(line.startswith(name) for line in table)
    (run,) = mlflow.MlflowClient(uri).search_runs(
        [mlflow.MlflowClient(uri).get_experiment_by_name("crmuons benchmark").experiment_id]
    )
    last = results["figures"][-1]
    assert run.data.metrics[re.sub("[^a-z0-9]", "_", last["name"]) + "/ratio"] == pytest.approx(last["ratio"])
    if suite == "train":
        assert 0 <= last["data_wait_share"] <= 1
    assert main(["benchmark", suite, "--out", "results"]) == 1
    assert "results is not empty" in capsys.readouterr().err
