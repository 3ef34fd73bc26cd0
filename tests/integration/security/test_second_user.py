"""A second user of the machine, `nobody`, can neither read, change nor rename anything of a run, a cluster or a server.

Each command runs with umask 000, the worst case, in a folder that everybody can enter. While it runs, `nobody` tries every file,
folder and socket below its folders, and everything that its processes have open for writing anywhere.
"""

import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from tests.integration.conftest import TRACKED, Bench, local_cluster_words, takes_jobs, wait_for
from tests.integration.ports import free_ports

pytestmark = [
    pytest.mark.ray,
    pytest.mark.timeout(900),
    pytest.mark.skipif(os.geteuid() != 0, reason="only root can act as a second user"),
]

ROOT = Path(__file__).parents[3]
NOBODY = 65534
ATTEMPTS = f"""
import json, os, stat, sys
os.setgroups([]); os.setgid({NOBODY}); os.setuid({NOBODY})
done = []
for path in json.load(sys.stdin):
    done += [["read", path]] * os.access(path, os.R_OK) + [["change", path]] * os.access(path, os.W_OK)
    above = os.path.dirname(path)
    if os.access(above, os.W_OK | os.X_OK) and not os.stat(above).st_mode & stat.S_ISVTX:
        done.append(["rename", path])
print(json.dumps(done))
"""


def what_nobody_can(paths: Iterable[Path]) -> list[list[str]]:
    """What `nobody` can do with paths: [attempt, path] for each attempt that would succeed."""
    command = [sys.executable, "-I", "-S", "-c", ATTEMPTS]
    listed = json.dumps(sorted(map(str, paths)))
    tried = subprocess.run(command, input=listed, capture_output=True, text=True, check=True)
    found: list[list[str]] = json.loads(tried.stdout)
    return found


def everything_below(*places: Path) -> set[Path]:
    """Every file, folder and socket at and below places; links stand for what they point to, which is listed too."""
    assert all(place.exists() for place in places), places
    found = set(places)
    for place in places:
        for folder, folders, names in os.walk(place):  # What disappears meanwhile is passed over.
            found |= {Path(folder) / name for name in (*folders, *names)}
    return {path for path in found if not path.is_symlink()}


def opened_by(processes: Iterable[psutil.Process]) -> set[Path]:
    """What processes have open for writing, and the sockets with a path at which they listen."""
    found = set()
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            found |= {file.path for file in process.open_files() if file.mode != "r"}
            found |= {str(link.laddr) for link in process.net_connections("unix") if str(link.laddr).startswith("/")}
    ours = {Path(path) for path in found if Path(path).exists()}
    return {path for path in ours if path.parts[1] not in ("proc", "sys") and path != Path("/dev/null")}


@pytest.fixture(scope="module")
def place(bench: Bench) -> Iterator[Bench]:
    """A bench in a folder that everybody can enter and read."""
    with tempfile.TemporaryDirectory(prefix="u-", dir="/tmp") as name:
        folder = Path(name)
        folder.chmod(0o755)
        shutil.copytree(bench.folder / "data", folder / "data")
        shutil.copy(bench.folder / "small.toml", folder)
        (folder / "home").mkdir(mode=0o755)
        (folder / "s").mkdir(mode=0o755)
        path = f"{Path(sys.executable).parent}:{bench.environment['PATH']}"
        known = {"HOME": str(folder / "home"), "RAY_TMPDIR": str(folder / "s"), "PATH": path}
        opened = Bench(folder, bench.environment | known)
        yield opened
        opened.clean_up()


def start(place: Bench, *command: str, **environment: str) -> "subprocess.Popen[str]":
    """Start a command with umask 000."""
    return place.start("bash", "-c", 'umask 000; exec "$@"', "bash", *command, **environment)


def family(started: "subprocess.Popen[str]") -> list[psutil.Process]:
    """A command and its descendants."""
    top = psutil.Process(started.pid)
    return [top, *top.children(recursive=True)]


def end(started: "subprocess.Popen[str]") -> None:
    started.send_signal(signal.SIGINT)
    started.communicate(timeout=400)


def crmuons(*words: str) -> tuple[str, ...]:
    return (sys.executable, "-m", "crmuons.cli", *words)


def assert_closed(place: Bench, started: "subprocess.Popen[str]", *places: Path) -> None:
    """Assert that `nobody` can do nothing with these places, nor with anything that the processes have open."""
    processes = {*family(started), *place.ray_processes()}
    everything = everything_below(*places) | opened_by(processes)
    assert len(everything) > 10
    assert what_nobody_can(everything) == []


def test_the_attempts_succeed_where_nothing_is_closed(place: Bench) -> None:
    """Break the claim once: each attempt is found."""
    (folder := place.folder / "open").mkdir()
    folder.chmod(0o777)
    (folder / "file").touch()
    (folder / "file").chmod(0o606)
    found = what_nobody_can([folder / "file"])
    assert found == [[attempt, str(folder / "file")] for attempt in ("read", "change", "rename")]
    (folder / "file").chmod(0o600)
    folder.chmod(0o1777)
    assert what_nobody_can([folder / "file"]) == []


def test_a_run_and_its_cluster(place: Bench) -> None:
    run = place.run("closed")
    settings = ("train.steps=1000000", "run.name=closed", "scaling.num_workers=1", TRACKED)
    started = start(place, *crmuons("train", "small.toml", "data.train=data", *settings))
    wait_for(lambda: (run / "checkpoints").is_dir() and list((run / "checkpoints").glob("step-*")), by=started)
    wait_for((place.folder / "mlflow.db").exists, by=started)
    wait_for((place.folder / "mlruns").exists, by=started)
    (cluster,) = (place.folder / "s").iterdir()
    experiments = (place.folder / "mlruns").iterdir()
    assert_closed(
        place, started, run, cluster, place.folder / "mlflow.db", *experiments, place.folder / "home/.ray/auth_token"
    )
    kept = [path for path in what_nobody_can([place.folder / "runs", place.folder / "mlruns"]) if path[0] != "read"]
    assert kept == []  # The names of runs can be read, no more.
    end(started)
    assert what_nobody_can(everything_below(run)) == []


def test_a_sweep(place: Bench) -> None:
    (place.folder / "space.toml").write_text("train.optimizer.lr = { loguniform = [1e-4, 1e-2] }\n")
    settings = ("data.train=data", "run.name=swept", "train.steps=1000000")
    options = ("--space", "space.toml", "--samples", "2", "--concurrency", "1", "--cpus-per-trial", "1")
    started = start(place, *crmuons("sweep", "small.toml", *settings, *options))
    sweep = place.run("swept")
    wait_for(lambda: list(sweep.glob("**/step-*")), by=started)
    (cluster,) = (place.folder / "s").iterdir()
    assert_closed(place, started, sweep, cluster)
    end(started)


def test_a_cluster_of_the_script(place: Bench) -> None:
    dashboard, words = local_cluster_words()
    started = start(place, str(ROOT / "cluster" / "local" / "start.sh"), *words)
    token = place.folder / "home/.ray/auth_token"
    wait_for(lambda: takes_jobs(f"http://127.0.0.1:{dashboard}", token), by=started)
    (cluster,) = (place.folder / "s").iterdir()
    assert_closed(place, started, cluster, token)
    end(started)


def test_a_server(place: Bench) -> None:
    secrets = place.folder / "home/.mlflow-server"
    secrets.mkdir(mode=0o755)
    (secrets / "database").write_text(f"sqlite:///{secrets}/runs.db")
    (port,) = map(str, free_ports(1))
    artifacts = place.folder / "artifacts"
    artifacts.mkdir(mode=0o700)
    words = ("--user", "root", "--port", port, "--artifacts-destination", str(artifacts), "--workers", "1")
    started = start(place, str(ROOT / "cluster" / "mlflow" / "serve.sh"), *words)
    wait_for((secrets / "runs.db").exists, by=started)
    wait_for(
        lambda: any(
            link.laddr.port == int(port) and link.status == psutil.CONN_LISTEN
            for process in family(started)
            for link in process.net_connections("tcp")
        ),
        by=started,
    )
    listed = everything_below(secrets, artifacts) | opened_by(family(started))
    assert {secrets / "admin-password", secrets / "auth.ini", secrets / "cookie-key"} <= listed
    assert stat.S_IMODE(secrets.stat().st_mode) == 0o700
    assert what_nobody_can(listed) == []
    os.killpg(started.pid, signal.SIGTERM)
    started.communicate(timeout=400)
