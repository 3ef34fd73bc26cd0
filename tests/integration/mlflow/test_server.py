"""Tracking against a real `mlflow server` that stops, dies and comes back, and against trainers that are killed."""

import http.server
import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import mlflow
import psutil
import pytest
from selenium import webdriver

from crmuons import config
from crmuons.tracking import charts
from crmuons.tracking.sender import sync
from crmuons.tracking.tracker import Tracker
from crmuons.tracking.uri import default_uri
from tests.integration.mlflow.browser import charted_columns, compared_columns, follow, start_browser
from tests.integration.ports import free_ports

FEW = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}  # Eight processes less, which judge answers of language models.
SCREENSHOTS = os.environ.get("SCREENSHOTS")  # A directory for the picture that docs/tracking.md shows.
SETTINGS = {"experiment": "tests", "run_name": "bundle", "params": {"train.steps": 1}, "tags": {}}


class MlflowServer:
    """An MLflow server on a port of its own; it and its children form one process group."""

    def __init__(self, directory: Path, *words: str, before: Sequence[str] = ()) -> None:
        self._directory = directory
        self._before = before
        self._words = words
        (self.port,) = free_ports(1)
        self.uri = f"http://127.0.0.1:{self.port}"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        command = [
            *self._before,
            sys.executable,
            "-m",
            "mlflow",
            *self._words,
            "--port",
            str(self.port),
            "--workers",
            "1",
        ]
        with (self._directory / "log").open("ab") as log:
            self._process = subprocess.Popen(
                command, cwd=self._directory, env=os.environ | FEW, stdout=log, stderr=log, start_new_session=True
            )
        deadline = time.monotonic() + 120
        while not self._answers():
            assert time.monotonic() < deadline, (self._directory / "log").read_text()
            time.sleep(0.3)

    def send(self, number: signal.Signals) -> None:
        os.killpg(self._process.pid, number)

    def addresses(self) -> set[str]:
        """Where the server's processes listen."""
        top = psutil.Process(self._process.pid)
        sockets = [each for process in (top, *top.children(recursive=True)) for each in process.net_connections()]
        return {each.laddr.ip for each in sockets if each.status == psutil.CONN_LISTEN}

    def kill(self) -> None:
        if self._process is not None:
            self.send(signal.SIGKILL)
            self._process.wait()
            self._process = None

    def _answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.uri}/health", timeout=2) as answer:
                return answer.status == 200
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            return False


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MlflowServer]:
    directory = tmp_path_factory.mktemp("server")
    server = MlflowServer(directory, "server", "--backend-store-uri", f"sqlite:///{directory}/db")
    server.start()
    yield server
    server.kill()


@pytest.fixture
def client(server: MlflowServer, monkeypatch: pytest.MonkeyPatch) -> mlflow.MlflowClient:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return mlflow.MlflowClient(server.uri)


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[webdriver.Chrome]:
    """A headless browser."""
    yield from start_browser(tmp_path / "profile")


def steps(client: mlflow.MlflowClient, run_id: str, key: str = "loss") -> list[int]:
    return [metric.step for metric in client.get_metric_history(run_id, key)]


def log_steps(tracker: Tracker, first: int, last: int) -> float:
    """Log metrics of some steps, a figure with the last, and return the longest time a call took."""
    longest = 0.0
    for step in range(first, last):
        began = time.monotonic()
        tracker.metrics({"loss": float(step), "events_per_s": 1.0}, step)
        longest = max(longest, time.monotonic() - began)
    figure, axes = plt.subplots(figsize=(2, 2))
    axes.plot([first, last])
    tracker.figure(figure, "marginals/energy", last)
    plt.close(figure)
    return longest


def test_server_killed_in_mid_run_gets_every_metric_once_by_sync(server, client, tmp_path, caplog):
    tracker = Tracker.open(tmp_path, uri=server.uri, **SETTINGS)
    log_steps(tracker, 0, 50)
    run_id = tracker.wait_for_run(20)
    server.kill()
    assert log_steps(tracker, 50, 2000) < 15  # A request to a dead server may take 20 s: no call waits for one.
    began = time.monotonic()
    tracker.finish("FINISHED")
    assert time.monotonic() - began < 90  # flush_seconds is 60; MLflow by itself would try for a quarter of an hour
    assert f"crmuons sync {tmp_path}" in caplog.text
    assert tracker.unsent > 1900

    server.start()
    num_sent, synced = sync(tmp_path)
    assert (num_sent, synced) == (tracker.unsent, run_id)
    assert sync(tmp_path)[0] == 0
    assert steps(client, run_id) == list(range(2000))
    images = [info.path for info in client.list_artifacts(run_id, "images")]
    assert sorted(path.split("+")[2] for path in images if path.endswith(".png")) == ["2000", "50"]
    assert client.get_run(run_id).info.status == "FINISHED"


def test_stopped_server_holds_up_nothing_and_stores_nothing_twice(server, client, tmp_path, monkeypatch, caplog):
    # A request times out at the client while it waits in the stopped server, which answers it later: it arrives twice.
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    monkeypatch.setattr("crmuons.tracking.sender.SECONDS_BETWEEN_BATCHES", 0.2)
    caplog.set_level(logging.INFO)
    tracker = Tracker.open(tmp_path, uri=server.uri, **SETTINGS)
    tracker.wait_for_run(20)
    server.send(signal.SIGSTOP)
    assert log_steps(tracker, 0, 500) < 0.5
    time.sleep(3.0)
    assert "takes no results now" in caplog.text
    server.send(signal.SIGCONT)
    log_steps(tracker, 500, 600)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
    tracker.finish("FINISHED")
    assert tracker.unsent == 0
    assert steps(client, tracker.run_id) == list(range(600))
    assert len(client.search_runs([client.get_run(tracker.run_id).info.experiment_id], "status = 'RUNNING'")) == 0


def test_server_of_errors_ends_the_run_in_bounded_time(tmp_path, caplog):
    class Broken(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_error(500)

        do_POST = do_GET  # noqa: N815

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Broken) as broken:
        threading.Thread(target=broken.serve_forever, kwargs={"poll_interval": 0.02}).start()
        tracker = Tracker.open(tmp_path, uri=f"http://127.0.0.1:{broken.server_port}", **SETTINGS)
        assert log_steps(tracker, 0, 100) < 15
        began = time.monotonic()
        tracker.finish("FINISHED")
        assert time.monotonic() - began < 90  # flush_seconds is 60; MLflow by itself would try for a quarter of an hour
        broken.shutdown()
    assert tracker.run_id is None
    assert "500 error responses" in caplog.text


TRAINER = """
import sys, time
from pathlib import Path
from crmuons.tracking.tracker import Tracker
directory, uri, first = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
tracker = Tracker.open(directory, uri=uri, experiment="tests", run_name="trainer", params={}, tags={})
for step in range(first, first + 100):
    tracker.metrics({"loss": step}, step)
if first:
    tracker.finish("FINISHED")
else:
    tracker.wait_for_run(60)
print("logged", tracker.run_id, flush=True)
time.sleep(0 if first else 600)
"""


def trainer(directory: Path, uri: str, first: int) -> "subprocess.Popen[str]":
    command = [sys.executable, "-c", TRAINER, directory, uri, str(first)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def test_killed_trainer_is_resumed_in_the_same_run(server, client, tmp_path):
    killed = trainer(tmp_path, server.uri, 0)
    run_id = killed.stdout.readline().split()[1]
    killed.kill()
    killed.communicate()
    assert sync(tmp_path)[1] == run_id
    assert client.get_run(run_id).info.status == "KILLED"
    resumed = trainer(tmp_path, server.uri, 50)
    assert resumed.communicate()[0].split() == ["logged", run_id]
    assert steps(client, run_id) == list(range(150))
    assert client.get_run(run_id).info.status == "FINISHED"


@pytest.mark.parametrize("elsewhere", [False, True], ids=["not writable", "another machine's"])
def test_a_root_that_is_a_path_of_the_server_holds_up_no_metric_and_is_told(tmp_path, caplog, elsewhere):
    """A server without --artifacts-destination has clients write to a path: that of the server, on the client."""
    if elsewhere and os.geteuid() != 0:
        pytest.skip("a server that sees other files than this process needs a mount namespace, which root may make")
    root = tmp_path / "root" if elsewhere else Path("/proc/mlflow")  # Nobody can write to /proc.
    options = (
        "--default-artifact-root",
        str(root),
        "--no-serve-artifacts",
        "--backend-store-uri",
        f"sqlite:///{tmp_path}/db",
    )
    hidden = ("unshare", "--mount", "sh", "-c", f'mkdir -p {root} && mount -t tmpfs none {root} && exec "$@"', "sh")
    server = MlflowServer(tmp_path, "server", *options, before=hidden if elsewhere else ())
    server.start()
    try:
        tracker = Tracker.open(tmp_path / "run", uri=server.uri, **SETTINGS)
        log_steps(tracker, 0, 10)
        tracker.finish("FINISHED")
        client = mlflow.MlflowClient(server.uri)
        assert steps(client, tracker.run_id) == list(range(10))
        assert client.get_run(tracker.run_id).info.status == "FINISHED"
    finally:
        server.kill()
    assert f"the MLflow server keeps artifacts at its path {root}" in caplog.text
    assert "start it with --artifacts-destination" in caplog.text
    assert "2 artifacts of this run are not in MLflow, its metrics and state are" in caplog.text
    assert not any(root.rglob("*"))  # Nothing stays on the wrong machine.


def test_processes_that_start_at_once_share_one_new_sqlite_file(tmp_path):
    uri = default_uri(tmp_path)
    running = [trainer(tmp_path / f"run{number}", uri, 100) for number in range(3)]
    run_ids = [process.communicate()[0].split()[1] for process in running]
    client = mlflow.MlflowClient(uri)
    assert len(set(run_ids)) == 3
    for run_id in run_ids:
        assert steps(client, run_id) == list(range(100, 200))
        assert client.get_run(run_id).info.status == "FINISHED"
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith("mlflow")] == ["mlflow.db"]


def test_plain_mlflow_ui_shows_the_runs_of_its_directory_on_loopback_alone(tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    tracker = Tracker.open(tmp_path / "run", uri=default_uri(tmp_path), **SETTINGS)
    log_steps(tracker, 0, 10)
    tracker.finish("FINISHED")
    page = MlflowServer(tmp_path, "ui")
    page.start()
    try:
        assert page.addresses() == {"127.0.0.1"}
        client = mlflow.MlflowClient(page.uri)
        experiment = client.get_experiment_by_name("tests")
        assert [run.info.run_id for run in client.search_runs([experiment.experiment_id])] == [tracker.run_id]
        assert steps(client, tracker.run_id) == list(range(10))
        image = next(info.path for info in client.list_artifacts(tracker.run_id, "images") if info.path.endswith("png"))
        query = urllib.parse.urlencode({"path": image, "run_uuid": tracker.run_id})
        with urllib.request.urlopen(f"{page.uri}/get-artifact?{query}") as answer:
            assert answer.read(8) == b"\x89PNG\r\n\x1a\n"
    finally:
        page.kill()


def test_comparing_runs_shows_the_score_against_the_settings_that_differ(server, client, tmp_path, browser):
    """The page of a selection takes MLflow's own choice of three settings; the experiment's page links to all four."""
    choices = [(1e-3, "[0.0, 0.99]", 1), (2e-3, "[0.5, 0.9]", 2), (5e-4, "[0.5, 0.99]", 1), (3e-3, "[0.0, 0.9]", 3)]
    for number, (lr, betas, n_critic) in enumerate(choices):
        words = (f"run.name=run-{number}", f"run.seed={number}", "train.steps=2", f"train.n_critic={n_critic}")
        rates = (f"train.optimizer.lr={lr}", f"train.optimizer.betas={betas}", f"train.penalty.lambda_gp={number + 1}")
        directory = tmp_path / f"run-{number}"
        directory.mkdir()
        params = config.load(None, [*words, *rates]).flat()
        tracker = Tracker.open(directory, uri=server.uri, **SETTINGS | {"experiment": "compared", "params": params})
        for step in range(3):
            tracker.metrics({"validation/mean_muons_ratio": 1.0, "validation/score": 0.1 + 50 * lr / (step + 1)}, step)
            tracker.metrics({"train/critic_loss": 1.0}, step)
        tracker.finish("FINISHED")
    experiment = client.get_experiment_by_name("compared").experiment_id
    runs = json.dumps([run.info.run_id for run in client.search_runs([experiment])])
    browser.get(f'{server.uri}/#/compare-runs?runs={runs}&experiments=["{experiment}"]')
    assert compared_columns(browser) == [
        "train.n_critic",
        "train.optimizer.betas",
        "train.optimizer.lr",
        "validation/score",
    ]

    browser.get(f"{server.uri}/#/experiments/{experiment}/runs")
    follow(browser, "The score against the settings of all runs")
    assert charted_columns(browser) == [*charts.PARAMETERS, charts.METRIC]
    if SCREENSHOTS:
        browser.save_screenshot(Path(SCREENSHOTS) / "mlflow_comparison.png")
