"""The group's tracking server as cluster/mlflow/serve.sh starts it, on a PostgreSQL of the test's own: accounts, a sweep, a browser."""

import base64
import json
import os
import pwd
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait

from tests.integration.conftest import TRACKED, Bench, output, wait_for
from tests.integration.federation.servers import free_ports

ROOT = Path(__file__).parents[2]
POSTGRES = max(Path("/usr/lib/postgresql").glob("*/bin/initdb"), default=Path("none/initdb")).parent
BROWSER, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
PASSWORD = "muons-in-deep-ice"
SCREENSHOTS = os.environ.get("SCREENSHOTS")  # A directory: keeps the pictures, which docs/tracking.md shows.
SPACE = """
train.optimizer.lr = { loguniform = [3e-4, 3e-3] }
train.penalty.lambda_gp = { loguniform = [1.0, 20.0] }
"""

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

    def status(self, path: str, account: tuple[str, str] | None = None, body: dict[str, object] | None = None) -> int:
        """The status with which it answers."""
        headers = {"Content-Type": "application/json"}
        if account:
            headers["Authorization"] = "Basic " + base64.b64encode(":".join(account).encode()).decode()
        data = None if body is None else json.dumps(body).encode()
        try:
            with urllib.request.urlopen(urllib.request.Request(self.uri + path, data, headers), timeout=60) as answered:
                return answered.status
        except urllib.error.HTTPError as refused:
            return refused.code

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
    words = ("--port", str(port), "--artifacts-destination", str(bench.folder / "artifacts"), "--workers", "1")
    started = bench.start(str(ROOT / "cluster" / "mlflow" / "serve.sh"), *words, PATH=path)
    server = Server(f"http://127.0.0.1:{port}", secrets, started)
    wait_for(server.is_up, within=400)
    yield server
    os.killpg(started.pid, signal.SIGTERM)
    started.communicate(timeout=400)


@pytest.fixture(scope="module")
def swept(bench: Bench, server: Server) -> None:
    """A sweep of three short trials that a physicist with an account sends to the server."""
    admin = ("admin", (server.secrets / "admin-password").read_text().strip())
    account = {"username": "physicist", "password": PASSWORD}
    assert server.status("/api/2.0/mlflow/users/create", admin, account) == 200
    (bench.folder / "pair.toml").write_text(SPACE)
    words = ("data.train=data", "run.name=to-server", "train.steps=20", "train.validate_every=20", TRACKED)
    options = (
        "--space",
        "pair.toml",
        "--samples",
        "2",
        "--concurrency",
        "1",
        "--scheduler",
        "none",
        "--search",
        "random",
    )
    known = {
        "MLFLOW_TRACKING_URI": server.uri,
        "MLFLOW_TRACKING_USERNAME": "physicist",
        "MLFLOW_TRACKING_PASSWORD": PASSWORD,
    }
    said = output(bench.crmuons("sweep", "small.toml", *words, *options, **known), 0, within=400)
    assert PASSWORD not in said


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


def test_a_browser_shows_the_sweep_its_comparison_and_a_figure(
    server: Server, swept: None, tmp_path: Path, open_page: Callable[[str, str], webdriver.Chrome]
) -> None:
    page = open_page(server.uri, "/#/experiments")
    pictures = Path(SCREENSHOTS or tmp_path)

    def shows(*texts: str) -> None:
        WebDriverWait(page, 90).until(
            lambda _: all(text in page.find_element(By.TAG_NAME, "body").text for text in texts)
        )

    shows("crmuons")
    number = page.find_element(By.LINK_TEXT, "crmuons").get_attribute("href").split("/experiments/")[1].split("/")[0]
    runs = runs_of(server, number)
    trials = {name: run for name, run in runs.items() if name.startswith("trial-")}
    assert sorted(trials) == ["trial-0000", "trial-0001"]
    assert {run["info"]["status"] for run in runs.values()} == {"FINISHED"}

    page.get(f"{server.uri}/#/experiments/{number}/runs")
    shows("to-server")
    page.save_screenshot(pictures / "mlflow_runs.png")

    chosen = json.dumps([run["info"]["run_id"] for run in trials.values()])
    page.get(f'{server.uri}/#/compare-runs?runs={chosen}&experiments=["{number}"]')
    shows("Comparing 2 Runs", "trial-0001", "train.optimizer.lr", "train.penalty.lambda_gp")
    page.save_screenshot(pictures / "mlflow_comparison.png")

    parent = runs["to-server"]["info"]["run_id"]
    page.get(f"{server.uri}/#/experiments/{number}/runs/{parent}/artifacts/figures/scores.png")
    page.refresh()  # Otherwise the page keeps what it showed.
    shows("figures", "scores.png")
    widest = "return Math.max(...[...document.images].filter(i => i.src.startsWith('blob:')).map(i => i.naturalWidth))"
    WebDriverWait(page, 90).until(lambda _: (page.execute_script(widest) or 0) > 500)
    page.save_screenshot(pictures / "mlflow_artifact.png")


def runs_of(server: Server, experiment: str) -> dict[str, dict[str, dict[str, str]]]:
    """The runs of an experiment by name."""
    body = json.dumps({"experiment_ids": [experiment]}).encode()
    account = base64.b64encode(f"physicist:{PASSWORD}".encode()).decode()
    headers = {"Authorization": f"Basic {account}", "Content-Type": "application/json"}
    request = urllib.request.Request(f"{server.uri}/api/2.0/mlflow/runs/search", body, headers)
    with urllib.request.urlopen(request, timeout=60) as answered:
        return {run["info"]["run_name"]: run for run in json.load(answered)["runs"]}


@pytest.fixture
def open_page(tmp_path: Path) -> Iterator[Callable[[str, str], webdriver.Chrome]]:
    """Opens pages in a headless browser, as the physicist."""
    if BROWSER is None or DRIVER is None:
        pytest.skip("needs Chromium and its driver (Debian: chromium, chromium-driver)")
    options = webdriver.ChromeOptions()
    options.binary_location = BROWSER
    for word in (
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--window-size=1500,950",
        f"--user-data-dir={tmp_path}/profile",
    ):
        options.add_argument(word)
    browser = webdriver.Chrome(options, webdriver.ChromeService(DRIVER))

    def opened(uri: str, path: str) -> webdriver.Chrome:
        scheme, host = uri.split("://")
        browser.get(
            f"{scheme}://physicist:{PASSWORD}@{host}/"
        )  # The browser is asked for an account, and remembers it.
        browser.get(uri + path)
        return browser

    yield opened
    browser.quit()
