"""`crmuons train` on local Ray clusters: workers and drivers are killed and interrupted, and Prometheus reads the metrics."""

import json
import os
import re
import signal
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import mlflow
import psutil
import pytest
import torch

from crmuons import load
from crmuons.cli import main
from crmuons.ray_backend.metrics import SHOWN, gauge_name
from crmuons.runs import checkpoint
from tests.integration.conftest import TRACKED, Bench, output, wait_for

# Ray warns of settings of its own, which fail no command.
pytestmark = [pytest.mark.ray, pytest.mark.timeout(900), pytest.mark.filterwarnings("default")]


def workers() -> list[psutil.Process]:
    """The Ray Train workers that are training, on a cluster that this process started."""
    found = []
    for process in psutil.Process().children(recursive=True):
        try:
            if "RayTrainWorker" in " ".join(process.cmdline()):
                found.append(process)
        except psutil.Error:
            continue
    return found


def metrics(run: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def last_step(run: Path) -> float:
    """Of the metrics written so far; -1 before the first."""
    path = run / "metrics.jsonl"
    whole = path.read_text().rpartition("\n")[0].splitlines() if path.is_file() else []
    return json.loads(whole[-1])["step"] if whole else -1


def kill_a_worker() -> None:
    victims = workers()
    assert len(victims) == 2
    victims[-1].kill()
    wait_for(lambda: not victims[-1].is_running() or victims[-1].status() == psutil.STATUS_ZOMBIE)


def test_two_workers_finish_although_one_is_killed_before_and_after_the_first_checkpoint(bench: Bench, cluster) -> None:
    run = bench.run("killed")
    words = ("train.steps=60", "scaling.num_workers=2", "run.checkpoint_every=20", "run.name=killed", TRACKED)
    process = bench.train(*words, **cluster)
    wait_for(lambda: 2 <= last_step(run) < 20, by=process)
    assert checkpoint.latest(run / "checkpoints") is None
    kill_a_worker()
    wait_for(lambda: checkpoint.latest(run / "checkpoints"), by=process)
    kill_a_worker()
    assert "finished after 60 steps" in output(process, 0, within=400)
    assert [line["step"] for line in metrics(run)] == [0, *range(2, 61, 2)]
    assert json.loads((run / "done.json").read_text())["steps"] == 60
    check_mlflow(bench, run)


def check_mlflow(bench: Bench, run: Path) -> None:
    """MLflow has one run with all metrics, although processes were killed."""
    mlflow.set_tracking_uri(f"sqlite:///{bench.folder}/mlflow.db")
    experiment = mlflow.get_experiment_by_name("crmuons")
    found = [
        each
        for each in mlflow.search_runs([experiment.experiment_id], output_format="list")
        if each.info.run_name == run.name
    ]
    assert [each.info.status for each in found] == ["FINISHED"]
    (one,) = found
    assert one.data.params["model.width"] == "16"
    assert one.data.params["train.steps"] == "60"
    client = mlflow.MlflowClient()
    history = client.get_metric_history(one.info.run_id, "train/critic_loss")
    assert [point.step for point in history] == list(range(2, 61, 2))
    assert any(image.path.endswith(".png") for image in client.list_artifacts(one.info.run_id, "images"))
    # In another process, like any reader of the store.
    (model,) = client.search_logged_models([experiment.experiment_id], f"source_run_id = '{one.info.run_id}'")
    program = (
        "import sys, mlflow, pandas as pd; mlflow.set_tracking_uri(sys.argv[1]); "
        "primary = pd.DataFrame({'energy_gev': [1e6], 'zenith_rad': [0.3], 'mass_gev': [0.938], 'depth_m': [1500.0]}); "
        "print(list(mlflow.pyfunc.load_model(sys.argv[2]).predict(primary)))"
    )
    said = output(bench.start(sys.executable, "-c", program, mlflow.get_tracking_uri(), model.model_uri), 0)
    assert said.splitlines()[-1] == "['primary_major_id', 'primary_minor_id', 'primary', 'muons']"


def test_two_workers_learn_further_features_and_go_on_after_an_interruption(
    bench: Bench, cluster, monkeypatch, capsys
) -> None:
    monkeypatch.chdir(bench.folder)
    run, names = bench.run("features"), ["t_ns", "dir_x", "dir_y", "charge"]
    simulated = ("simulate", "--events", "2000", "--energy-range", "1e5", "1e7", "--out", "wide", "--features", *names)
    assert main(simulated) == 0
    words = ("train", "small.toml", "data.train=wide", f"data.features={names}", "scaling.num_workers=2")
    words += ("run.name=features", "run.resume=auto")
    process = bench.crmuons(*words, "train.steps=100000", **cluster)
    wait_for(lambda: last_step(run) >= 4, by=process)
    os.killpg(process.pid, signal.SIGINT)
    assert "run.resume=auto continues" in output(process, 130, within=120)
    end = int(last_step(run)) + 4
    assert main([*words, f"train.steps={end}"]) == 0
    assert f"finished after {end} steps" in capsys.readouterr().out
    lines = metrics(run)
    assert [line["step"] for line in lines] == sorted({line["step"] for line in lines})
    assert {"train/discrete_loss"} <= lines[-1].keys() | lines[-2].keys()
    muons = load(str(run)).generate({"energy_gev": [1e6] * 50, "zenith_rad": 0.3, "mass_gev": "p", "depth_m": 1900})
    assert list(muons.columns) == ["energy_gev", "x_m", "y_m", *names]
    assert set(muons["charge"]) == {-1, 1}


def shown_to_prometheus(bench: Bench, run: Path) -> dict[str, float]:
    """The run's metrics on every page in Ray's list that answers without a token."""
    listed = list(Path(bench.environment["RAY_TMPDIR"]).glob("ray-*/ray/prom_metrics_service_discovery.json"))
    if not listed:
        return {}
    (entry,) = json.loads(listed[0].read_text())
    found = {}
    for target in entry["targets"]:
        try:
            with urllib.request.urlopen(f"http://{target}/metrics", timeout=10) as answer:
                page = answer.read().decode()
        except (urllib.error.URLError, ConnectionError):  # Not up yet, or asks for the token.
            continue
        samples = re.findall(rf'^ray_(\w+)\{{[^}}]*\brun="{run.name}"[^}}]*\}} (\S+)$', page, re.MULTILINE)
        found |= {name: float(value) for name, value in samples}
    return found


def test_a_killed_driver_and_interrupted_runs_are_continued_to_the_end(bench: Bench) -> None:
    run = bench.run("broken")
    words = ("train.steps=100000", "run.name=broken", "run.resume=auto", "scaling.threads_per_worker=1")
    driver = bench.train(*words, "scaling.num_workers=1")
    wait_for(lambda: checkpoint.latest(run / "checkpoints"))
    all_metrics = {gauge_name(metric) for metric in SHOWN}
    wait_for(lambda: shown_to_prometheus(bench, run).keys() >= all_metrics)
    shown = shown_to_prometheus(bench, run)
    assert shown["crmuons_speed_events_per_second"] > 0
    assert 0 <= shown["crmuons_speed_data_wait_share"] <= 1

    driver.kill()  # SIGKILL: it cannot clean up.
    driver.communicate()
    wait_for(lambda: not bench.ray_processes(), within=120)  # Its processes end with it, and write no more.
    reached = last_step(run)

    resumed = bench.train(*words, "scaling.num_workers=1")
    wait_for(lambda: last_step(run) > reached)
    os.killpg(resumed.pid, signal.SIGINT)  # As a terminal does: to the whole group.
    begin = time.monotonic()
    said = output(resumed, 130, within=120)
    assert time.monotonic() - begin < 30
    assert "the same command with run.resume=auto continues" in said
    assert not (run / "done.json").exists()
    assert not bench.ray_processes()

    stopped = last_step(run)
    assert checkpoint.latest(run / "checkpoints").name == f"step-{stopped:08.0f}"
    again = bench.train(*words)
    wait_for(lambda: last_step(run) > stopped)
    again.terminate()  # SIGTERM, to the driver alone.
    assert "run.resume=auto continues" in output(again, 130, within=120)

    end = int(last_step(run)) + 20
    assert f"finished after {end} steps" in output(bench.train(*words, f"train.steps={end}"), 0)
    steps = [line["step"] for line in metrics(run)]
    assert steps == sorted(set(steps))
    assert not bench.ray_processes()


REFUSED = {
    ("scaling.num_workers=99",): "scaling.num_workers = 99 needs 99 CPUs, the cluster has",
    ("scaling.num_workers=1", "scaling.use_gpu=true"): "scaling.num_workers = 1 needs 1 GPUs, the cluster has",
    ("scaling.num_workers=1", "scaling.cpus_per_worker=999"): "leave less than one of the cluster's",
}


@pytest.mark.parametrize("words", REFUSED, ids=" ".join)
@pytest.mark.usefixtures("cluster")
def test_more_than_the_cluster_has_is_refused_at_once(
    bench: Bench, monkeypatch, capsys, words: tuple[str, ...]
) -> None:
    if "scaling.use_gpu=true" in words and torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    monkeypatch.chdir(bench.folder)
    assert main(["train", "small.toml", "data.train=data", "train.steps=2", "run.name=refused", *words]) == 1
    (sentence,) = capsys.readouterr().err.splitlines()
    assert REFUSED[words] in sentence
    assert not bench.run("refused").exists()
