"""`crmuons train` on local Ray clusters: workers and drivers are killed, held up and interrupted."""

import json
import os
import signal
import sys
import threading
import time
from pathlib import Path

import mlflow
import psutil
import pytest
import torch

from crmuons import load
from crmuons.cli import main
from crmuons.runs import checkpoint
from tests.integration.conftest import TRACKED, Bench, output, wait_for
from tests.integration.http.faulty_web import serving

# Ray warns of settings of its own, which fail no command.
pytestmark = [pytest.mark.ray, pytest.mark.timeout(900), pytest.mark.filterwarnings("default")]


def of_ray(name: str) -> list[psutil.Process]:
    """Ray's processes of a name, on a cluster that this process started."""
    found = []
    for process in psutil.Process().children(recursive=True):
        try:
            if name in " ".join(process.cmdline()):
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
    victims = of_ray("RayTrainWorker")
    assert len(victims) == 2
    victims[-1].kill()
    wait_for(lambda: not victims[-1].is_running() or victims[-1].status() == psutil.STATUS_ZOMBIE)


def test_two_workers_learn_further_features_although_one_is_killed_before_and_after_the_first_checkpoint(
    bench: Bench, cluster
) -> None:
    run, names = bench.run("killed"), ["t_ns", "dir_x", "dir_y", "charge"]
    simulated = ("--events", "2000", "--energy-range", "1e5", "1e7", "--features", *names)
    assert main(["simulate", *simulated, "--out", str(bench.folder / "wide")]) == 0
    words = ("train.steps=60", "scaling.num_workers=2", "run.checkpoint_every=20", "run.name=killed", TRACKED)
    process = bench.train("data.train=wide", f"data.features={names}", *words, **cluster)
    wait_for(lambda: 2 <= last_step(run) < 20, by=process)
    assert checkpoint.latest(run / "checkpoints") is None
    assert not of_ray("PlacementGroupCleaner")  # The job ends with the run.
    assert not of_ray("DatasetManager")
    kill_a_worker()
    wait_for(lambda: checkpoint.latest(run / "checkpoints"), by=process)
    kill_a_worker()
    assert "finished after 60 steps" in output(process, 0, within=400)
    assert [line["step"] for line in metrics(run)] == [0, *range(2, 61, 2)]
    assert json.loads((run / "done.json").read_text())["steps"] == 60
    assert {"train/discrete_loss"} <= metrics(run)[-2].keys() | metrics(run)[-1].keys()
    muons = load(str(run)).generate({"energy_gev": [1e6] * 50, "zenith_rad": 0.3, "mass_gev": "p", "depth_m": 1900})
    assert list(muons.columns) == ["energy_gev", "x_m", "y_m", *names]
    assert set(muons["charge"]) == {-1, 1}
    check_mlflow(bench, run)


def check_mlflow(bench: Bench, run: Path) -> None:
    """MLflow has one run with all metrics, although processes were killed."""
    client = mlflow.MlflowClient(f"sqlite:///{bench.folder}/mlflow.db")
    experiment = client.get_experiment_by_name("crmuons")
    found = [each for each in client.search_runs([experiment.experiment_id]) if each.info.run_name == run.name]
    assert [each.info.status for each in found] == ["FINISHED"]
    (one,) = found
    assert one.data.params["model.width"] == "16"
    assert one.data.params["train.steps"] == "60"
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
    said = output(bench.start(sys.executable, "-c", program, client.tracking_uri, model.model_uri), 0)
    assert said.splitlines()[-1] == "['primary_major_id', 'primary_minor_id', 'primary', 'muons']"


def said(run: Path, words: str) -> bool:
    return any(words in path.read_text() for path in run.glob("notices-*.txt"))


def test_the_screen_says_what_a_worker_waits_for_and_since_when(bench: Bench, cluster) -> None:
    run = bench.run("waits")
    goes_on = threading.Event()
    goes_on.set()

    def hold(_request: object) -> None:
        goes_on.wait(120)

    files = {f"/data/{path.name}": path.read_bytes() for path in (bench.folder / "data").glob("*.parquet")}
    with serving(files, fault=hold) as site:
        process = bench.train(
            f"data.train={site.url}/data/", "train.steps=1000000", "scaling.num_workers=2", "run.name=waits",
            CRMUONS_HTTP_READ_S="200", **cluster,
        )  # fmt: skip
        wait_for(lambda: last_step(run) >= 4, by=process)
        goes_on.clear()
        wait_for(lambda: said(run, "no data since"), by=process)
        goes_on.set()
        wait_for(lambda: said(run, "data have come after"), by=process)
        stopped = of_ray("RayTrainWorker")[-1]
        stopped.suspend()
        wait_for(lambda: said(run, "waiting for the other workers since"), by=process)
        stopped.resume()
        process.send_signal(signal.SIGINT)
        screen = output(process, 130)
    for words in ("no data since", "data have come after", "waiting for the other workers since"):
        assert any(line.startswith("worker ") and words in line for line in screen.splitlines()), screen


def test_a_killed_driver_and_interrupted_runs_are_continued_to_the_end(bench: Bench) -> None:
    run = bench.run("broken")
    words = ("train.steps=100000", "run.name=broken", "run.resume=auto", "scaling.threads_per_worker=1")
    driver = bench.train(*words, "scaling.num_workers=1")
    wait_for(lambda: checkpoint.latest(run / "checkpoints"))
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
