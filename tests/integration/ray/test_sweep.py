"""`crmuons sweep` on a local Ray cluster: killed, continued, and read from MLflow.

Ray Tune's own `Tuner.restore` fails the first test: it loses trials and repeats steps (docs/sweeps.md).
"""

import json

import mlflow
import pytest

from tests.integration.conftest import TRACKED, Bench, output, wait_for
from tune.trials import load_trials

pytestmark = [pytest.mark.ray, pytest.mark.timeout(900)]

SPACE = """
train.optimizer.lr = { loguniform = [1e-4, 1e-2] }
train.optimizer.betas = { choice = [[0.0, 0.9], [0.5, 0.99]] }
"""
TRIALS, STEPS = 4, 20


def sweep(bench: Bench):
    """Start a sweep of some trials, two at a time."""
    (bench.folder / "space.toml").write_text(SPACE)
    settings = (
        "data.train=data",
        "run.name=swept",
        "run.resume=auto",
        f"train.steps={STEPS}",
        "train.validate_every=10",
    )
    options = ("--space", "space.toml", "--samples", str(TRIALS), "--concurrency", "2", "--cpus-per-trial", "0.5")
    return bench.crmuons("sweep", "small.toml", *settings, TRACKED, *options)


def ended(bench: Bench) -> dict[str, int]:
    """The trials that have ended, and when (ns)."""
    files = [*bench.run("swept").glob("trial-*/done.json"), *bench.run("swept").glob("trial-*/stopped.json")]
    return {file.parent.name: file.stat().st_mtime_ns for file in files}


def test_a_killed_sweep_is_continued_without_repeating_anything_and_its_best_preset_reproduces_the_score(
    bench: Bench,
) -> None:
    killed = sweep(bench)
    wait_for(lambda: ended(bench), by=killed)
    wait_for(lambda: len(load_trials(bench.run("swept"))) >= 3, by=killed)
    killed.kill()  # SIGKILL: it cannot clean up.
    killed.communicate()
    wait_for(lambda: not bench.ray_processes(), within=120)
    before = ended(bench)
    begun = {trial.number: trial.settings().train for trial in load_trials(bench.run("swept"))}
    assert 0 < len(before) < TRIALS

    said = output(sweep(bench), 0, within=400)
    trials = load_trials(bench.run("swept"))
    assert [trial.number for trial in trials] == list(range(TRIALS))
    assert {trial.state() for trial in trials} <= {"finished", "stopped"}
    assert {name: ended(bench)[name] for name in before} == before
    assert {number: trials[number].settings().train for number in begun} == begun
    assert "best.toml trains the same model again" in said
    for trial in trials:
        steps = [json.loads(line)["step"] for line in (trial.run.metrics).read_text().splitlines()]
        assert steps == sorted(set(steps))
    assert not bench.ray_processes()

    rows = json.loads((bench.run("swept") / "trials.json").read_text())
    best = rows[0]["score"]
    again = bench.crmuons("train", str(bench.run("swept") / "best.toml"), "run.name=again")
    assert f"finished after {STEPS} steps" in output(again, 0)
    scores = [
        json.loads(line).get("validation/score")
        for line in (bench.run("again") / "metrics.jsonl").read_text().splitlines()
    ]
    assert min(score for score in scores if score is not None) == best
    check_mlflow(bench, rows)


def check_mlflow(bench: Bench, rows: list[dict[str, object]]) -> None:
    """MLflow has one parent run, an ended child run per trial, and the best model under its alias."""
    client = mlflow.MlflowClient(f"sqlite:///{bench.folder}/mlflow.db")
    experiment = client.get_experiment_by_name("crmuons").experiment_id
    (parent,) = client.search_runs([experiment], "tags.kind = 'sweep'")
    children = client.search_runs([experiment], f"tags.`mlflow.parentRunId` = '{parent.info.run_id}'")
    assert parent.info.status == "FINISHED"
    assert sorted(child.info.run_name for child in children) == [f"trial-{number:04d}" for number in range(TRIALS)]
    states = {child.info.run_name: (child.info.status, child.data.tags["sweep.state"]) for child in children}
    status = {"finished": "FINISHED", "stopped": "KILLED"}
    assert states == {f"trial-{row['trial']:04d}": (status[row["state"]], row["state"]) for row in rows}
    artifacts = {each.path for each in client.list_artifacts(parent.info.run_id)}
    assert artifacts >= {"best.toml", "trials.csv", "trials.json", "figures"}
    assert "figures/parallel_coordinates.png" in {
        each.path for each in client.list_artifacts(parent.info.run_id, "figures")
    }
    assert parent.data.metrics["sweep/best_score"] == rows[0]["score"]
    version = client.get_model_version_by_alias("crmuons", "best")
    assert version.tags["trial"] == f"trial-{rows[0]['trial']:04d}"
    one = next(child for child in children if child.info.run_name == version.tags["trial"])
    assert version.run_id == one.info.run_id
    assert len(client.get_metric_history(one.info.run_id, "validation/score")) == 3
    assert any(image.path.endswith(".png") for image in client.list_artifacts(one.info.run_id, "images"))
