"""`crmuons benchmark amplification` as a user runs it, with its figures in MLflow."""

from dataclasses import replace

import mlflow
import numpy as np

from crmuons.cli import main

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
