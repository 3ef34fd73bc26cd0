"""`crmuons benchmark amplification` as a user runs it, with its figures in MLflow; a second call goes on."""

import json
from dataclasses import replace

import mlflow
import numpy as np
import pytest

from crmuons.benchmark.amplification import run as amplification_run
from crmuons.cli import main
from tests.unit.benchmark.test_amplification import data, words  # noqa: F401 - a fixture

VALUES = ("model", "nearest primary", "parametric", "amplification")


def test_an_amplification_is_tracked_and_more_seeds_are_another_run(toy_events, write_toy, tmp_path, monkeypatch):
    pool, truth = toy_events(80, seed=1, mean=20.0), toy_events(700, seed=2, mean=20.0)
    write_toy(tmp_path / "pool" / "a.parquet", pool)
    write_toy(tmp_path / "truth" / "a.parquet", replace(truth, ids=truth.ids + np.uint64(1000)))
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("crmuons.evaluation.metrics.set_classifier.STEPS", 20)
    monkeypatch.setattr("crmuons.evaluation.metrics.classifiers.TREES", 10)
    line = (
        "benchmark amplification --data pool --truth truth --showers 20,40 --threads 1 --sample-events 1050 --out few "
        "--settings train.steps=2 train.events_per_worker=32 data.validation_share=0.2 model.width=8 model.multiplicity_width=8"
    )
    client = mlflow.MlflowClient(uri)
    for seeds in (1, 2):
        assert main([*line.split(), "--seeds", str(seeds)]) == 0
        runs = client.search_runs([client.get_experiment_by_name("crmuons benchmark").experiment_id])
        assert len(runs) == seeds
        run = next(run for run in runs if run.data.params["seeds"] == str(seeds))
        for name in (f"{figure}/{each}" for figure in ("auc_bundles", "auc_muons", "score") for each in VALUES):
            assert [point.step for point in client.get_metric_history(run.info.run_id, name)] == [20, 40]
        assert {file.path for file in client.list_artifacts(run.info.run_id)} >= {"results.json", "amplification.png"}


def test_a_second_call_measures_only_what_is_new(data, tmp_path, capsys, monkeypatch):  # noqa: F811
    out = tmp_path / "out"
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(amplification_run, "_track", lambda *_: None)  # MLflow is of another test.
    assert main(words(data, out, "--showers", "20,40", "--seeds", "1")) == 0
    first = capsys.readouterr().out
    written = {file: file.stat().st_mtime_ns for file in (*out.glob("figures/*"), *out.glob("runs/*/done.json"))}
    assert sorted(path.name for path in (out / "runs").iterdir()) == ["20-showers-seed-0", "40-showers-seed-0"]
    # One figure of a model is lost: its training is not.
    (out / "figures" / "model-20-showers-seed-0.json").unlink()
    assert main(words(data, out, "--showers", "20,40", "--seeds", "1")) == 0
    assert capsys.readouterr().out == first
    kept = {file for file in written if file.stat().st_mtime_ns == written[file]}
    assert {file.name for file in set(written) - kept} == {"model-20-showers-seed-0.json"}
    results = json.loads((out / "results.json").read_text(), parse_constant=pytest.fail)
    assert [row["showers"] for row in results["rows"] if row["figure"] == "score"] == [20, 40]
    assert "value" in results["rows"][-1]["amplification"]
    assert "needed" in results["rows"][0]["amplification"]["absent"]  # 750 events train no classifier.
    assert (out / "amplification.png").stat().st_size > 10_000
    assert "joint AUC is absent: model, 20 showers: 750 events in one sample, 1000 needed" in first
    # Other trainings do not go beside these.
    assert main([*words(data, out, "--showers", "20", "--seeds", "1"), "train.n_critic=2"]) == 1
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.endswith("was begun with another value of settings; give the same as then, or name another --out")
