"""The same run as a Ray job, on a cluster with a token: submitted from a copy of the checkout, watched, stopped, continued."""

import json
import re
import secrets
import shutil
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from crmuons.ray_backend.metrics import SHOWN, gauge_name
from crmuons.ray_backend.private import network_address
from crmuons.runs import checkpoint
from tests.integration.conftest import RAY_PORTS, TRACKED, Bench, output, takes_jobs, wait_for
from tests.integration.ports import free_ports

pytestmark = [pytest.mark.ray, pytest.mark.timeout(900)]

ROOT = Path(__file__).parents[3]
RAY = str(Path(sys.executable).with_name("ray"))
SECRET = "hush-hush"
BEARER = "eyJhbGciOiJub25lIn0.dG9rZW4gb2YgdGhlIHN1Ym1pdHRlcg.c2lnbmF0dXJl"


@pytest.fixture(scope="module")
def head(bench: Bench) -> Iterator[dict[str, str]]:
    """A head node as docs/running.md starts it; gives the environment of those who submit to it."""
    token = bench.folder / "token"
    token.write_text(secrets.token_hex(32))
    token.chmod(0o600)
    known = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token), "RAY_JOB_STOP_WAIT_TIME_S": "30"}
    dashboard, port = free_ports(2)
    words = ("--port", str(port), "--dashboard-host=127.0.0.1", "--dashboard-port", str(dashboard), *RAY_PORTS)
    started = bench.start(
        RAY, "start", "--head", *words, "--num-cpus=2", "--disable-usage-stats", "--block",
        "--temp-dir", bench.ray_directory("jobs"), **known, MLFLOW_TRACKING_PASSWORD=SECRET, BEARER_TOKEN=BEARER,
    )  # fmt: skip
    known["BEARER_TOKEN"] = BEARER
    known["HEAD"] = f"{network_address()}:{port}"  # For nodes that join.
    known["RAY_ADDRESS"] = f"http://127.0.0.1:{dashboard}"
    wait_for(lambda: takes_jobs(known["RAY_ADDRESS"], token))
    yield known
    started.kill()  # A graceful end takes half a minute.
    for process in bench.ray_processes():
        process.kill()


@pytest.fixture(scope="module")
def checkout(bench: Bench) -> Path:
    """A checkout with data beside the code, which must not travel."""
    copy = bench.folder / "checkout"
    for part in ("crmuons", "jobs"):
        shutil.copytree(ROOT / part, copy / part, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / ".gitignore", copy)
    for heavy in ("data", "runs", "demo", ".venv"):
        (copy / heavy).mkdir()
        (copy / heavy / "heavy").write_bytes(bytes(2**20))
    return copy


def submit(bench: Bench, head: dict[str, str], checkout: Path, name: str, *words: str, submission: str = ""):
    run = (
        "train.steps=20",
        f"run.storage_path={bench.folder}/runs",
        f"run.name={name}",
        "scaling.num_workers=1",
        *words,
    )
    environment = {name: value for name, value in bench.environment.items() if name != "PYTHONPATH"}
    bench.environment, before = environment, bench.environment
    try:
        return bench.start(
            RAY, "job", "submit", "--submission-id", submission or name, "--working-dir", ".", "--",
            sys.executable, "-m", "jobs.train", str(bench.folder / "small.toml"), *run, cwd=checkout, **head,
        )  # fmt: skip
    finally:
        bench.environment = before


def shown_to_prometheus(bench: Bench, run: Path) -> dict[str, float]:
    """The run's metrics on every page in Ray's list that answers without a token."""
    listed = list(Path(bench.environment["RAY_TMPDIR"]).glob("j*/prom_metrics_service_discovery.json"))
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


def test_a_stopped_job_saves_a_checkpoint_from_which_the_same_job_goes_on_to_the_end(
    bench: Bench, head, checkout: Path
) -> None:
    run = bench.run("job")
    words = (f"data.train={bench.folder}/data", "run.checkpoint_every=10", "run.resume=auto", TRACKED)

    def step() -> int:
        metrics = run / "metrics.jsonl"
        lines = metrics.read_text().rpartition("\n")[0].splitlines() if metrics.is_file() else []
        return json.loads(lines[-1])["step"] if lines else 0

    first = submit(bench, head, checkout, "job", *words, "train.steps=100000", submission="first")
    wait_for(lambda: step() > 60, by=first)  # Some of the checkpoints that Ray knows are pruned by then.
    all_metrics = {gauge_name(metric) for metric in SHOWN}
    wait_for(lambda: shown_to_prometheus(bench, run).keys() >= all_metrics, by=first)
    shown = shown_to_prometheus(bench, run)
    assert shown["crmuons_speed_events_per_second"] > 0
    assert 0 <= shown["crmuons_speed_data_wait_share"] <= 1
    output(bench.start(RAY, "job", "stop", "first", **head), 0)
    assert "continuing run" not in first.communicate(timeout=400)[0]
    stopped_at = max(checkpoint.steps(run / "checkpoints"))
    assert stopped_at == step()

    end = stopped_at + 60
    said = output(submit(bench, head, checkout, "job", *words, f"train.steps={end}", submission="second"), 0)
    assert "continuing run" in said
    assert f"run      {run} (finished after {end} steps)\nmodel    {run}/model" in said
    assert (run / "model" / "weights.pt").is_file()
    check_what_travelled_and_what_is_kept(bench, head, said)


def check_what_travelled_and_what_is_kept(bench: Bench, head, said: str) -> None:
    """The code alone went to the cluster, and the token of those who submit is in no list, log or file."""
    shipped = [path for path in Path(bench.environment["RAY_TMPDIR"]).rglob("working_dir_files/*") if path.is_dir()]
    assert shipped
    assert not list(Path(bench.environment["RAY_TMPDIR"]).rglob("heavy"))
    listed = output(bench.start(RAY, "job", "list", **head), 0)
    assert "submission_id='second'" in listed
    assert BEARER not in listed
    assert BEARER not in said
    kept = [
        bench.folder / "mlflow.db",
        *bench.run("job").rglob("*"),
        *Path(bench.environment["RAY_TMPDIR"]).rglob("*.log"),
    ]
    assert not [path for path in kept if path.is_file() and BEARER.encode() in path.read_bytes()]


def test_a_job_that_fails_ends_with_the_reason(bench: Bench, head, checkout: Path) -> None:
    process = submit(bench, head, checkout, "relative", "data.train=data/sim")
    said, _ = process.communicate(timeout=400)
    assert process.returncode == 1
    assert "crmuons train: nothing to read at 'data/sim': no such file or directory" in said
    assert "give absolute paths" in said
    assert "Traceback" not in said


def can_hide_directories() -> bool:
    unshare = shutil.which("unshare")
    return unshare is not None and subprocess.run([unshare, "--mount", "true"], check=False).returncode == 0


@pytest.fixture
def stranger(bench: Bench, head: dict[str, str]) -> Iterator[None]:
    """A second node, which sees directories of its own where the head has the data and the runs."""
    hidden = [bench.folder / "data", bench.folder / "runs"]
    hidden[1].mkdir(exist_ok=True)
    join = (RAY, "start", "--address", head["HEAD"], "--node-ip-address=127.0.0.2", "--node-name=stranger", "--num-cpus=2",
            *RAY_PORTS, "--block")  # fmt: skip
    hide = " && ".join(f"mount -t tmpfs none {path}" for path in hidden)
    known = head | {"RAY_ADDRESS": head["HEAD"]}
    waiting = bench.start(sys.executable, "-m", "jobs.wait_for_nodes", "2", **known)
    for _ in range(3):  # On a busy machine Ray gives a node up that takes more than 30 s to start.
        started = bench.start("unshare", "--mount", "sh", "-c", f'{hide} && exec "$@"', "sh", *join, **head)
        wait_for(lambda started=started: {waiting.poll(), started.poll()} != {None})
        if waiting.poll() is not None:
            break
    output(waiting, 0)
    yield
    for process in (*psutil.Process(started.pid).children(recursive=True), started):
        process.kill()


@pytest.mark.skipif(not can_hide_directories(), reason="giving a node directories of its own needs root")
def test_what_a_node_cannot_reach_is_told_before_the_run_starts(bench: Bench, head, stranger, checkout: Path) -> None:
    words = (f"data.train={bench.folder}/data", "scaling.num_workers=2", "scaling.cpus_per_worker=1.5")
    process = submit(bench, head, checkout, "strange", *words, "scaling.threads_per_worker=1")
    said, _ = process.communicate(timeout=400)
    assert process.returncode == 1
    assert f"(stranger): run.storage_path = {bench.folder}/runs is not the driver's directory" in said
    assert re.search(rf"\(stranger\): {bench.folder}/data/\S+ of data.train cannot be read", said)
    assert "Traceback" not in said
    assert "source" not in said  # The job's working directory brought the driver's crmuons.
    assert not bench.run("strange").exists()
    assert not list((bench.folder / "runs").glob(".preflight-*"))
