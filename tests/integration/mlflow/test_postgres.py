"""The group's tracking server as cluster/mlflow/serve.sh starts it, on a PostgreSQL of the test's own: accounts, a population, a browser."""

import base64
import json
import os
import pwd
import re
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPResponse
from pathlib import Path
from typing import Any

import pytest
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait

from tests.integration.conftest import TRACKED, Bench, output, wait_for
from tests.integration.mlflow.browser import compared_columns, start_browser, wait_for_texts
from tests.integration.ports import free_ports
from tune.trials import load_trials

ROOT = Path(__file__).parents[3]
POSTGRES = max(Path("/usr/lib/postgresql").glob("*/bin/initdb"), default=Path("none/initdb")).parent
PASSWORD = "muons-in-deep-ice"
SCREENSHOTS = os.environ.get("SCREENSHOTS")  # A directory: keeps the pictures, which docs/tracking.md shows.
SPACE = """
train.optimizer.lr = { loguniform = [1e-4, 1e-2] }
train.optimizer.betas = { choice = [[0.0, 0.9], [0.5, 0.99]] }
"""
TRIALS, STEPS = 4, 30

pytestmark = [
    pytest.mark.ray,
    pytest.mark.timeout(900),
    pytest.mark.skipif(not (POSTGRES / "initdb").exists(), reason="needs PostgreSQL (Debian: postgresql)"),
]


@pytest.fixture(scope="module")
def database() -> Iterator[str]:
    """The URI of an empty database; PostgreSQL refuses to run as root, so Debian's user for it runs it where we are root."""
    folder = Path(tempfile.mkdtemp(prefix="pg-", dir="/tmp"))  # pytest's own folders are for the one who runs it.
    as_user: list[str] = []
    if os.getuid() == 0:
        os.chown(folder, pwd.getpwnam("postgres").pw_uid, -1)
        as_user = ["runuser", "-u", "postgres", "--"]

    def run(program: str, *words: str) -> None:
        command = [*as_user, str(POSTGRES / program), *words]
        subprocess.run(command, check=True, cwd=folder, stdout=subprocess.DEVNULL, timeout=120)

    (port,) = free_ports(1)
    (folder / "password").write_text("between-the-servers")
    (folder / "password").chmod(0o644)
    data, where = str(folder / "data"), ("-h", "127.0.0.1", "-p", str(port), "-U", "mlflow")
    run("initdb", "-D", data, "-U", "mlflow", "-A", "scram-sha-256", "--pwfile", str(folder / "password"))
    settings = f"-c listen_addresses=127.0.0.1 -c unix_socket_directories='' -p {port} -c fsync=off"
    run("pg_ctl", "-D", data, "-o", settings, "-l", str(folder / "log"), "-w", "start")
    try:
        subprocess.run(
            [POSTGRES / "createdb", *where, "mlflow"], check=True, env={"PGPASSWORD": "between-the-servers"}, timeout=60
        )
        yield f"postgresql://mlflow:between-the-servers@127.0.0.1:{port}/mlflow"
    finally:
        run("pg_ctl", "-D", data, "-m", "immediate", "stop")
        shutil.rmtree(folder)


@dataclass
class Server:
    """A running tracking server."""

    uri: str
    secrets: Path
    process: "subprocess.Popen[str]"

    def ask(self, path: str, body: dict[str, object] | None = None) -> Any:
        """What the API answers the physicist."""
        with self._open(f"/api/2.0/mlflow/{path}", ("physicist", PASSWORD), body) as answered:
            return json.load(answered)

    def status(self, path: str, account: tuple[str, str] | None = None, body: dict[str, object] | None = None) -> int:
        """The status with which it answers."""
        try:
            with self._open(path, account, body) as answered:
                return answered.status
        except urllib.error.HTTPError as refused:
            return refused.code

    def _open(self, path: str, account: tuple[str, str] | None, body: dict[str, object] | None) -> HTTPResponse:
        headers = {"Content-Type": "application/json"}
        if account:
            headers["Authorization"] = "Basic " + base64.b64encode(":".join(account).encode()).decode()
        data = None if body is None else json.dumps(body).encode()
        return urllib.request.urlopen(urllib.request.Request(self.uri + path, data, headers), timeout=60)

    def is_up(self) -> bool:
        assert self.process.poll() is None, self.process.communicate()[0]
        try:
            return self.status("/health") == 200
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            return False


@pytest.fixture(scope="module")
def server(bench: Bench, database: str) -> Iterator[Server]:
    secrets = Path(bench.environment["HOME"]) / ".mlflow-server"
    secrets.mkdir()
    (secrets / "database").write_text(database)
    (port,) = free_ports(1)
    path = f"{Path(sys.executable).parent}:{bench.environment['PATH']}"
    as_root = ("--user", "root") if os.geteuid() == 0 else ()  # Another user may not reach the checkout.
    words = (
        *as_root,
        "--port",
        str(port),
        "--artifacts-destination",
        str(bench.folder / "artifacts"),
        "--workers",
        "1",
    )
    started = bench.start(str(ROOT / "cluster" / "mlflow" / "serve.sh"), *words, PATH=path)
    server = Server(f"http://127.0.0.1:{port}", secrets, started)
    wait_for(server.is_up, within=400)
    yield server
    os.killpg(started.pid, signal.SIGTERM)
    started.communicate(timeout=400)


@pytest.fixture(scope="module")
def said(bench: Bench, server: Server) -> str:
    """What a population of short trials said, which a physicist with an account sends to the server."""
    admin = ("admin", (server.secrets / "admin-password").read_text().strip())
    account = {"username": "physicist", "password": PASSWORD}
    assert server.status("/api/2.0/mlflow/users/create", admin, account) == 200
    (bench.folder / "space.toml").write_text(SPACE)
    settings = (
        "data.train=data", "run.name=population", f"train.steps={STEPS}", "train.validate_every=6", "run.checkpoint_every=6",
        TRACKED,
    )  # fmt: skip
    options = ("--scheduler", "pbt", "--samples", str(TRIALS), "--concurrency", str(TRIALS), "--cpus-per-trial", "0.25")
    known = {
        "MLFLOW_TRACKING_URI": server.uri,
        "MLFLOW_TRACKING_USERNAME": "physicist",
        "MLFLOW_TRACKING_PASSWORD": PASSWORD,
    }
    command = ("sweep", "small.toml", *settings, "--space", "space.toml", *options)
    return output(bench.crmuons(*command, **known), 0, within=400)


def test_nobody_gets_in_without_an_account_and_secrets_are_the_owners_alone(server: Server) -> None:
    runs = "/api/2.0/mlflow/experiments/search?max_results=5"
    assert server.status(runs) == 401
    assert server.status(runs, ("admin", "password1234")) == 401
    assert server.status(runs, ("admin", (server.secrets / "admin-password").read_text().strip())) == 200
    assert {stat.S_IMODE(file.stat().st_mode) for file in server.secrets.iterdir() if file.name != "database"} == {
        0o600
    }
    arguments = Path(f"/proc/{server.process.pid}/cmdline").read_text()
    assert "between-the-servers" not in arguments


def test_no_account_chooses_where_the_server_keeps_artifacts(server: Server) -> None:
    """A place of the server, such as its own secrets, could be read by HTTP."""
    stranger = ("stranger", "a-password-of-theirs")
    admin = ("admin", (server.secrets / "admin-password").read_text().strip())
    created = {"username": stranger[0], "password": stranger[1]}
    assert server.status("/api/2.0/mlflow/users/create", admin, created) == 200
    for number, place in enumerate((f"file://{server.secrets}", str(server.secrets), "http://127.0.0.1:9/x")):
        body = {"name": f"stranger-{number}", "artifact_location": place}
        assert server.status("/api/2.0/mlflow/experiments/create", stranger, body) == 403
        assert server.status("/ajax-api/2.0/mlflow/experiments/create", stranger, body) == 403
    assert server.status("/api/2.0/mlflow/experiments/create", stranger, {"name": "plain"}) == 200


def test_in_a_population_the_worst_go_on_from_the_best_with_settings_near_theirs(
    bench: Bench, server: Server, said: str
) -> None:
    assert PASSWORD not in said
    taken = {int(trial): int(donor) for trial, donor in re.findall(r"trial-(\d+) exploits trial-(\d+): ", said)}
    trials = load_trials(bench.run("population"))
    assert [trial.state() for trial in trials] == ["finished"] * TRIALS
    for trial in trials:
        steps = [json.loads(line)["step"] for line in trial.run.metrics.read_text().splitlines()]
        assert steps == sorted(set(steps))
        assert steps[-1] == STEPS
    runs = runs_of(server, experiment(server))
    tags = {name: {tag["key"]: tag["value"] for tag in run["data"]["tags"]} for name, run in runs.items()}
    parent = runs.pop("population")
    assert tags["population"]["kind"] == "sweep"
    assert sorted(runs) == [f"trial-{number:04d}" for number in range(TRIALS)]
    assert {run["info"]["status"] for run in (parent, *runs.values())} == {"FINISHED"}
    assert {tags[name]["mlflow.parentRunId"] for name in runs} == {parent["info"]["run_id"]}
    changed = {name for name in runs if any(tag.startswith("changed.") for tag in tags[name])}
    assert changed == {f"trial-{number:04d}" for number in taken}
    if not taken:  # A unit test has it happen.
        pytest.skip("no trial was the worst when it was compared: they kept step, and the one compared was ahead")


def test_a_browser_shows_the_sweep_its_comparison_and_a_figure(
    server: Server, said: str, tmp_path: Path, open_page: Callable[[str, str], webdriver.Chrome]
) -> None:
    page = open_page(server.uri, "/#/experiments")
    pictures = Path(SCREENSHOTS or tmp_path)

    wait_for_texts(page, "crmuons")
    number = experiment(server)
    assert page.find_element(By.LINK_TEXT, "crmuons").get_attribute("href").split("/experiments/")[1].startswith(number)
    runs = runs_of(server, number)
    trials = {name: run for name, run in runs.items() if name.startswith("trial-")}

    page.get(f"{server.uri}/#/experiments/{number}/runs")
    wait_for_texts(page, "population")
    page.save_screenshot(pictures / "mlflow_runs.png")

    chosen = json.dumps([run["info"]["run_id"] for run in trials.values()])
    page.get(f'{server.uri}/#/compare-runs?runs={chosen}&experiments=["{number}"]')
    wait_for_texts(page, f"Comparing {TRIALS} Runs", "trial-0001", "train.optimizer.lr", "train.optimizer.betas")
    assert compared_columns(page) == ["train.optimizer.betas", "train.optimizer.lr", "validation/score"]

    parent = runs["population"]["info"]["run_id"]
    page.get(f"{server.uri}/#/experiments/{number}/runs/{parent}/artifacts/figures/scores.png")
    page.refresh()  # Otherwise the page keeps what it showed.
    wait_for_texts(page, "figures", "scores.png")
    widest = "return Math.max(...[...document.images].filter(i => i.src.startsWith('blob:')).map(i => i.naturalWidth))"
    WebDriverWait(page, 90).until(lambda _: (page.execute_script(widest) or 0) > 500)
    page.save_screenshot(pictures / "mlflow_artifact.png")


def experiment(server: Server) -> str:
    """The number of the experiment that the sweep is part of."""
    return server.ask("experiments/get-by-name?experiment_name=crmuons")["experiment"]["experiment_id"]


def runs_of(server: Server, experiment: str) -> dict[str, dict[str, Any]]:
    """The runs of an experiment by name."""
    return {run["info"]["run_name"]: run for run in server.ask("runs/search", {"experiment_ids": [experiment]})["runs"]}


@pytest.fixture
def open_page(tmp_path: Path) -> Iterator[Callable[[str, str], webdriver.Chrome]]:
    """Opens pages in a headless browser, as the physicist."""
    with contextmanager(start_browser)(tmp_path / "profile") as browser:

        def opened(uri: str, path: str) -> webdriver.Chrome:
            scheme, host = uri.split("://")
            browser.get(f"{scheme}://physicist:{PASSWORD}@{host}/")  # The browser remembers the account.
            browser.get(uri + path)
            return browser

        yield opened
