"""Further features of a muon from prepared data to generated bundles, by the commands."""

import pyarrow.parquet as pq

import crmuons
from crmuons import config
from crmuons.cli import main
from crmuons.data import arrow, features
from crmuons.training.driver import LocalLauncher, run_training
from tests.unit.models.test_extra_features import ALL, WORDS, with_extra


def test_a_run_learns_the_features_and_every_later_command_has_them(toy_events, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    arrow.write_events(tmp_path / "e.parquet", [arrow.to_table(with_extra(toy_events(700)), ALL)], features=ALL)
    assert main(["prepare", "e.parquet", "--out", "ready", "--features", *WORDS]) == 0
    words = ["run.name=r", "train.steps=3", "train.events_per_worker=64", "scaling.num_workers=0", "model.width=8"]
    words += ["train.validate_every=3", "train.validation_events=200", "tracking.enabled=false"]
    for name, source in (("raw", "e.parquet"), ("prepared", "ready")):
        chosen = [*words[1:], f"run.name={name}", f"data.train={source}", f"data.features={WORDS}"]
        run_training(config.load(None, chosen), LocalLauncher())
    metrics = (tmp_path / "runs" / "raw" / "metrics.jsonl").read_text()
    assert "train/discrete_loss" in metrics
    assert "train/smooth_loss" in metrics
    muons = crmuons.load("runs/prepared").generate(
        {"energy_gev": [1e6] * 50, "zenith_rad": 0.3, "mass_gev": "p", "depth_m": 1900}, seed=1
    )
    assert list(muons.columns) == [feature.name for feature in ALL]
    command = ["generate", "--model", "runs/raw", "--spectrum", "events=50", "--out", "out", "--format", "corsika8"]
    assert main(command) == 0  # It needs no --fill.
    assert features.declared(pq.read_schema("out/events-00000.parquet"), "out") == ALL
    assert pq.read_table("out/_corsika8/events-00000.parquet").num_rows > 0
    capsys.readouterr()
    assert main(["inspect", "out/events-00000.parquet"]) == 0
    assert "muon t_ns" in capsys.readouterr().out
