"""Scenarios 1, 7 and 9: ways to run code as another user of the machine, and to get into their cluster; none succeeds.

The tests use commands and scripts alone, so that they also run on an older checkout, where each succeeds: copy this file
and strangers.py there.
"""

import os
import re
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.integration.conftest import RAY_PORTS, Bench, takes_jobs, wait_for
from tests.integration.ports import free_ports
from tests.integration.security.strangers import (
    DAEMON,
    NOBODY,
    PLANT,
    ROOT,
    end,
    give_to_nobody,
    needs_root,
    ray_of,
    serving,
)

pytestmark = pytest.mark.timeout(900)


@pytest.fixture
def shared(bench: Bench) -> Iterator[Path]:
    """A folder as /tmp is: everybody may write there, and rename what is their own."""
    with tempfile.TemporaryDirectory(prefix="s-", dir="/tmp") as name:
        folder = Path(name)
        folder.chmod(0o1777)
        yield folder


# 1. Another user of the machine runs code as you.

JOB = """
import os, time, ray
ray.init(logging_level="error")
@ray.remote
def word():
    import helper
    return helper.WORD
open(os.environ["READY"], "w").close()
while not os.path.exists(os.environ["GO"]):
    time.sleep(0.2)
print("the task said", ray.get(word.remote()))
"""


@needs_root
@pytest.mark.ray
def test_1_no_other_user_changes_the_code_of_a_job(bench: Bench, shared: Path, tmp_path: Path) -> None:
    (job := tmp_path / "job").mkdir()
    (job / "main.py").write_text(JOB)
    (job / "helper.py").write_text("WORD = 'original'\n")
    port, dashboard, client = map(str, free_ports(3))
    words = ("--port", port, "--dashboard-port", dashboard, "--ray-client-server-port", client, "--num-cpus=1")
    path = f"{Path(sys.executable).parent}:{bench.environment['PATH']}"
    known = {"RAY_TMPDIR": str(shared), "READY": str(tmp_path / "ready"), "GO": str(tmp_path / "go"), "PATH": path}
    script = ROOT / "cluster/local/start.sh"
    started = bench.start(str(script), "--block", *words, *RAY_PORTS, **known)
    address, token = f"http://127.0.0.1:{dashboard}", Path(bench.environment["HOME"], ".ray/auth_token")
    wait_for(lambda: takes_jobs(address, token), by=started)
    submit = (
        f"source cluster/environment.sh; exec ray job submit --address {address} --working-dir {job} -- python main.py"
    )
    submitted = bench.start("bash", "-c", submit, cwd=ROOT, **known)
    wait_for((tmp_path / "ready").exists, by=submitted)
    plant = [sys.executable, "-I", "-S", "-c", PLANT, str(shared), "helper.py", "WORD = 'planted'\n"]
    planted = subprocess.run(plant, capture_output=True, text=True, check=True).stdout
    (tmp_path / "go").touch()
    said, _ = submitted.communicate(timeout=400)
    end(started, shared)
    assert "the task said original" in said, said
    assert planted == ""


@needs_root
def test_1_a_folder_that_a_stranger_made_for_a_slurm_job_is_not_used(shared: Path) -> None:
    """As the user `daemon`: root could remove the stranger's folder."""
    shutil.copytree(ROOT / "cluster", shared / "checkout/cluster")
    for folder in ("checkout", "bin", "home"):
        (shared / folder).mkdir(exist_ok=True)
        os.chown(shared / folder, DAEMON, DAEMON)
    (ray := shared / "bin/ray").write_text('#!/bin/sh\nfor word; do echo "$word"; done\n')
    ray.chmod(0o755)
    job = f"t{os.getpid()}"
    traps = [Path(f"/tmp/ray-{job}-1"), shared / f"ray-{DAEMON}"]
    for trap in traps:
        trap.mkdir(mode=0o777)
        (trap / "kept").touch()
        give_to_nobody(trap, trap / "kept")
    (port,) = free_ports(1)
    known = {
        "SLURM_JOB_ID": job, "SLURM_PROCID": "1", "SLURM_CPUS_PER_TASK": "1", "HOME": str(shared / "home"),
        "RAY_TMPDIR": str(shared), "PATH": f"{ray.parent}:/usr/bin:/bin",
    }  # fmt: skip
    with serving(lambda *_: (404, {}, b"")) as url:
        del port
        words = ["setpriv", f"--reuid={DAEMON}", f"--regid={DAEMON}", "--clear-groups", "bash", "cluster/slurm/node.sh"]
        done = subprocess.run(
            [*words, url.removeprefix("http://")], cwd=shared / "checkout", env=known, capture_output=True, text=True,
            timeout=60, check=False,
        )  # fmt: skip
    try:
        chosen = {Path(found) for found in re.findall(r"--temp-dir=(\S+)", done.stdout)}
        assert len(chosen) == 1, done.stderr
        for folder in chosen:
            assert not any(folder.is_relative_to(trap) for trap in traps)
    finally:
        for trap in traps:
            shutil.rmtree(trap, ignore_errors=True)


# 7. and 9. Ports that listen on the network; a stranger's listener, links and directories in /tmp.


LISTENER = f"""
import os, socket, time
os.setgroups([]); os.setgid({NOBODY}); os.setuid({NOBODY})
at = [socket.create_server(('127.0.0.1', port)) for port in (6379, 8265)]
print("up", flush=True)
time.sleep(900)
"""


@pytest.fixture(scope="module")
def training(bench: Bench) -> Iterator[tuple[Bench, Path, "subprocess.Popen[str]"]]:
    """A training of one worker, with what a stranger left in its folder for temporary files and at Ray's usual port."""
    with tempfile.TemporaryDirectory(prefix="s-", dir="/tmp") as name:
        shared = Path(name)
        shared.chmod(0o1777)
        stranger = shared / "strangers"
        stranger.mkdir(mode=0o777)
        (shared / "ray").mkdir(mode=0o777)
        (shared / "ray/ray_current_cluster").write_text("127.0.0.1:6379")
        (shared / f"ray-{os.getuid()}").symlink_to(stranger)
        give_to_nobody(stranger, shared / "ray", shared / "ray/ray_current_cluster", shared / f"ray-{os.getuid()}")
        listener = subprocess.Popen([sys.executable, "-c", LISTENER], stdout=subprocess.PIPE, text=True)
        assert listener.stdout is not None
        listener.stdout.readline()  # Where the ports are taken it has ended, and somebody else listens there.
        words = ("train.steps=1000000", "run.name=beside", "scaling.num_workers=1")
        started = bench.train(*words, RAY_TMPDIR=str(shared))
        try:
            checkpoints = bench.run("beside") / "checkpoints"
            wait_for(lambda: checkpoints.is_dir() and list(checkpoints.glob("step-*")), by=started)
            yield bench, shared, started
        finally:
            end(started, shared)
            listener.kill()
            listener.communicate()


@needs_root
@pytest.mark.ray
def test_7_a_training_on_one_machine_listens_on_loopback_alone(training: tuple[Bench, Path, Any]) -> None:
    """All but torch's rendezvous, a port of the worker of rank 0, which takes no address (docs/security.md)."""
    _, shared, _ = training
    everywhere = [
        " ".join(process.cmdline())
        for process in ray_of(shared)
        for link in process.net_connections("tcp")
        if link.status == psutil.CONN_LISTEN and link.laddr.ip.removeprefix("::ffff:") != "127.0.0.1"
    ]
    assert [name.partition(".")[0].strip() for name in everywhere] == ["ray::RayTrainWorker"]


@needs_root
@pytest.mark.ray
def test_9_a_training_follows_nothing_that_a_stranger_left(training: tuple[Bench, Path, Any]) -> None:
    _, shared, started = training
    assert started.poll() is None
    words = [word for process in ray_of(shared) for word in process.cmdline()]
    sessions = {Path(found) for word in words for found in re.findall(r"(/[^=,\s]*/session_[-_0-9]+)", word)}
    assert sessions
    for session in sessions:
        above = [folder for folder in session.resolve().parents if folder.is_relative_to(shared) and folder != shared]
        owners = {folder.stat().st_uid for folder in above}
        assert owners == {os.getuid()}, session
        assert stat.S_IMODE(above[-1].stat().st_mode) == 0o700
    left = {path.name for place in ("strangers", "ray") for path in (shared / place).iterdir()}
    assert left == {"ray_current_cluster"}
