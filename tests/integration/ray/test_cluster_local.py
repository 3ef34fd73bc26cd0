"""The cluster of cluster/local/start.sh: its dashboard answers only requests with the token."""

import re
import signal
import stat
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterable, Iterator
from pathlib import Path

import psutil
import pytest

from crmuons.ray_backend.cluster import _warn_of_others
from crmuons.ray_backend.temporary import is_open_to_others
from tests.integration.conftest import Bench, local_cluster_words, output, takes_jobs, wait_for

pytestmark = [pytest.mark.ray, pytest.mark.timeout(900)]

ROOT = Path(__file__).parents[3]
RAY = str(Path(sys.executable).with_name("ray"))


@pytest.fixture(scope="module")
def dashboard(bench: Bench) -> Iterator[str]:
    """The address of the dashboard while the script runs. Ctrl-C then ends the script and all its processes."""
    dashboard, words = local_cluster_words()
    started = bench.start(str(ROOT / "cluster" / "local" / "start.sh"), *words)
    address = f"http://127.0.0.1:{dashboard}"
    wait_for(lambda: takes_jobs(address, token_file(bench)))
    yield address
    of_ray = psutil.Process(started.pid).children(recursive=True)
    assert of_ray
    started.send_signal(signal.SIGINT)
    started.communicate(timeout=400)
    _, alive = psutil.wait_procs(of_ray, timeout=120)
    assert not alive


def token_file(bench: Bench) -> Path:
    """The file of the cluster's token."""
    return Path(bench.environment["HOME"]) / ".ray" / "auth_token"


def submit(bench: Bench, address: str, *command: str) -> "subprocess.Popen[str]":
    """Submit a job as the script's first lines say."""
    words = f'source cluster/environment.sh && exec "$0" job submit --address {address} -- "$@"'
    return bench.start("bash", "-c", words, RAY, *command, cwd=ROOT)


def answer(url: str, token: str | None = None, body: bytes | None = None) -> int:
    """The HTTP status of the answer."""
    headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {token}"} if token else {})
    try:
        with urllib.request.urlopen(urllib.request.Request(url, body, headers), timeout=30) as answered:
            return answered.status
    except urllib.error.HTTPError as refused:
        return refused.code


def test_jobs_run_for_those_who_hold_the_token(bench: Bench, dashboard: str) -> None:
    said = output(submit(bench, dashboard, "echo", "it", "runs"), 0)
    assert "it runs" in said
    token = token_file(bench)
    assert stat.S_IMODE(token.stat().st_mode) == 0o600
    assert answer(f"{dashboard}/api/jobs/", token.read_text()) == 200


def test_nobody_else_is_answered(bench: Bench, dashboard: str) -> None:
    job = b'{"entrypoint": "true"}'
    for token in (None, "f" * 64):
        for path in ("/api/jobs/", "/api/version", "/nodes?view=summary", "/api/v0/tasks", "/logs", "/metrics"):
            assert answer(dashboard + path, token) in {401, 403}, path
        assert answer(f"{dashboard}/api/jobs/", token, job) in {401, 403}
    refused = bench.start(RAY, "job", "submit", "--address", dashboard, "--", "true", RAY_AUTH_MODE="disabled")
    said, _ = refused.communicate(timeout=400)
    assert refused.returncode != 0
    assert "401" in said or "nauthorized" in said or "uthenticat" in said


def listening(processes: Iterable[psutil.Process]) -> set[str]:
    """The addresses at which processes listen."""
    return {
        connection.laddr.ip.removeprefix("::ffff:")
        for process in processes
        for connection in process.net_connections(kind="tcp")
        if connection.status == psutil.CONN_LISTEN
    }


def test_all_of_it_listens_on_this_machine_alone(bench: Bench, dashboard: str) -> None:
    assert listening(bench.ray_processes()) == {"127.0.0.1"}


def test_no_other_user_reaches_the_clusters_files(bench: Bench, dashboard: str) -> None:
    """Ray makes its own directories 0777: a stranger could replace the code of a job in one that can be reached."""
    assert_private(bench.ray_processes())


def assert_private(processes: Iterable[psutil.Process]) -> None:
    """Assert that every session directory these processes name is one that no other user can enter."""
    words = [word for process in processes for word in process.cmdline()]
    sessions = {found for word in words for found in re.findall(r"(/[^=,\s]*/session_[-_0-9]+)", word)}
    assert sessions
    for session in sessions:
        assert stat.S_IMODE(Path(session).stat().st_mode) & stat.S_IWOTH  # As Ray makes it.
        assert not is_open_to_others(Path(session))


LOCAL = """
import os, time
from crmuons.ray_backend.cluster import cluster
with cluster(num_cpus=1):
    import ray
    ray.get(ray.remote(lambda: 1).remote())
    print("started", flush=True)
    while not os.path.exists("end"):
        time.sleep(0.2)
"""


def test_the_cluster_of_a_command_is_private_and_on_loopback_and_has_no_dashboard(bench: Bench) -> None:
    started = bench.start(sys.executable, "-c", LOCAL)
    try:
        said = []
        while "started\n" not in said:
            said.append(started.stdout.readline())
            assert said[-1], said  # It has ended.
        top = psutil.Process(started.pid)
        processes = [top, *top.children(recursive=True)]
        assert listening(processes) == {"127.0.0.1"}
        assert_private(processes)
        assert not [name for each in processes if "ray-dashboard-" in (name := " ".join(each.cmdline()))]
    finally:
        (bench.folder / "end").touch()
    assert started.wait(200) == 0


def test_an_open_cluster_is_told(
    bench: Bench, dashboard: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    _warn_of_others(tmp_path)
    assert not caplog.records
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        session = Path(folder, "session")
        session.mkdir()
        Path(folder).chmod(0o755)
        session.chmod(0o777)
        _warn_of_others(session)
    assert "every user of this machine can change the cluster's files" in caplog.text
