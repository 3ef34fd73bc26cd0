"""Two commands on one output: exactly one writes, and the next takes over from one that was killed. Real processes.

On a disk with locks, on a file system without them, and at an object store (moto's S3 server, on loopback).
"""

import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable

import pytest

from tests.integration.conftest import TRACKED, Bench, output, wait_for
from tests.integration.ports import free_ports

STORAGES = ("disk", "without locks", "objects")
WITHIN_S = 60.0  # A command that follows a killed one trains after this time; it starts in 5 to 15 s.
# As flock(2) answers on NFS without a lock daemon.
WITHOUT_LOCKS = """
import errno, sys
from crmuons.storage.staging import locks
def flock(descriptor, operation):
    raise OSError(errno.ENOLCK, "No locks available")
locks.flock, sys.argv[0] = flock, "crmuons"
from crmuons.cli import main
sys.exit(main())
"""
# A container has a table of processes of its own, so that its processes are as those of another machine.
ELSEWHERE = ("unshare", "--pid", "--fork", "--mount-proc", "--kill-child")
LONG = ("train.steps=100000", "run.resume=auto")


@pytest.fixture(scope="module")
def bucket(bench: Bench):
    """The environment of commands that use a bucket of S3."""
    for package in ("moto", "s3fs"):
        if importlib.util.find_spec(package) is None:
            pytest.skip("the object store is moto's S3 server: pip install 'moto[server]' s3fs")
    (port,) = free_ports(1)
    # It writes a line for each request; a pipe that nobody reads would be full after some hundreds, and hold it up.
    quiet = 'exec "$0" -m moto.server -p "$1" > moto.log 2>&1'
    server = bench.start("sh", "-c", quiet, sys.executable, str(port))
    url = f"http://127.0.0.1:{port}"
    keys = {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b", "AWS_DEFAULT_REGION": "us-east-1"}

    def answers() -> bool:
        try:
            with urllib.request.urlopen(urllib.request.Request(f"{url}/bucket", method="PUT"), timeout=5):
                return True
        except OSError:
            return False

    wait_for(answers, within=60, by=server)
    yield keys | {"AWS_ENDPOINT_URL": url}
    server.kill()


@pytest.fixture
def start(bench: Bench, request: pytest.FixtureRequest) -> Callable[..., subprocess.Popen[str]]:
    """Start `crmuons train` on a storage, as on the machine `side`; returns the process."""

    def started(storage: str, name: str, side: str, *words: str, elsewhere: bool = False) -> subprocess.Popen[str]:
        program = ("-c", WITHOUT_LOCKS) if storage == "without locks" else ("-m", "crmuons.cli")
        command = (sys.executable, *program, "train", "small.toml", "data.train=data", f"run.name={name}", *words)
        if storage != "objects":
            return bench.start(*(ELSEWHERE if elsewhere else ()), *command)
        environment = request.getfixturevalue("bucket") | {"XDG_CACHE_HOME": str(bench.folder / side)}
        words = (*command, "run.storage_path=s3://bucket/runs")
        return bench.start(*(ELSEWHERE if elsewhere else ()), *words, **environment)

    return started


def steps(bench: Bench, storage: str, name: str, side: str) -> list[int]:
    """The steps in the metrics of a run, as this machine has them."""
    found = [bench.run(name)] if storage != "objects" else list((bench.folder / side).glob(f"crmuons/*/runs/{name}"))
    texts = [(run / "metrics.jsonl").read_text() for run in found if (run / "metrics.jsonl").is_file()]
    lines = [line for text in texts for line in text.splitlines(keepends=True)]
    return [json.loads(line)["step"] for line in lines if line.endswith("\n")]


@pytest.mark.parametrize("delay_s", [0, 3])
@pytest.mark.parametrize("storage", STORAGES)
def test_of_several_drivers_exactly_one_trains(bench, start, storage, delay_s):
    """The second begins at once or a little later, the third when one of them trains."""
    name = f"several-{STORAGES.index(storage)}-{delay_s}"
    drivers = {"a": start(storage, name, "a", *LONG)}
    time.sleep(delay_s)
    drivers["b"] = start(storage, name, "b", *LONG)
    wait_for(lambda: any(process.poll() is not None for process in drivers.values()))
    (refused,) = (side for side, process in drivers.items() if process.poll() is not None)
    trains = "a" if refused == "b" else "b"
    wait_for(lambda: max(steps(bench, storage, name, trains), default=0) > 0, by=drivers[trains])
    drivers["c"] = start(storage, name, "c", *LONG)
    owner = drivers[trains].pid
    for side in (refused, "c"):
        reason = output(drivers[side], 1)
        assert re.search(rf"is in use by \w+ on \S+ since 20.* \(process {owner}: crmuons train .*run\.name", reason)
    reached = max(steps(bench, storage, name, trains))
    wait_for(lambda: max(steps(bench, storage, name, trains)) > reached, by=drivers[trains])
    drivers[trains].send_signal(signal.SIGINT)
    output(drivers[trains], 130)
    trained = steps(bench, storage, name, trains)
    assert trained == sorted(set(trained))
    if storage == "objects":
        assert steps(bench, storage, name, refused) == steps(bench, storage, name, "c") == []
    else:
        assert not (bench.run(name) / ".owner").exists()


@pytest.mark.parametrize("elsewhere", [False, True])
@pytest.mark.parametrize("storage", STORAGES)
def test_the_next_driver_takes_over_from_a_killed_one(bench, start, storage, elsewhere):
    if elsewhere and subprocess.run([*ELSEWHERE, "true"], check=False, capture_output=True).returncode:
        pytest.skip("no table of processes of its own can be made here (unshare --pid)")
    name = f"killed-{STORAGES.index(storage)}-{elsewhere}"
    first = start(storage, name, "a", *LONG, elsewhere=elsewhere)
    wait_for(lambda: max(steps(bench, storage, name, "a"), default=0) >= 20, by=first)
    os.killpg(first.pid, signal.SIGKILL)
    first.wait()
    before, begin = len(steps(bench, storage, name, "b")), time.monotonic()
    second = start(storage, name, "b", *LONG)
    wait_for(lambda: len(steps(bench, storage, name, "b")) > before + 2, by=second)
    assert time.monotonic() - begin < WITHIN_S
    second.send_signal(signal.SIGINT)
    output(second, 130)
    trained = steps(bench, storage, name, "b")
    assert trained == sorted(set(trained))


def test_ctrl_c_in_the_second_does_not_end_the_first_and_readers_read(bench, start):
    first = start("disk", "long", "a", *LONG, TRACKED)
    wait_for(lambda: max(steps(bench, "disk", "long", "a"), default=0) >= 40, by=first)
    second = start("disk", "long", "b", *LONG)
    second.send_signal(signal.SIGINT)
    second.communicate(timeout=60)
    assert second.returncode
    assert "in use by" in output(bench.crmuons("sync", "runs/long"), 1)
    said = output(
        bench.crmuons("evaluate", "--model", "runs/long", "--truth", "data", "--out", "report", "--events", "300"), 0
    )
    assert "MLflow does not get these results" in said
    assert "give the same command when it has ended" in said
    assert first.poll() is None
    first.send_signal(signal.SIGINT)
    output(first, 130)
    assert "entries of" in output(bench.crmuons("sync", "runs/long"), 0)


SIMULATE = ("simulate", "--events", "60000")


@pytest.mark.parametrize("command", ["simulate", "prepare", "generate"])
def test_of_two_commands_with_one_out_one_writes_a_whole_data_set(bench, command):
    out = f"out-{command}"
    words = {
        "simulate": SIMULATE,
        "prepare": ("prepare", "data"),
        "generate": ("generate", "--model", "runs/model", "--primaries", "data"),
    }[command]
    if command == "generate":
        output(bench.train("run.name=model", "train.steps=10"), 0)
    pair = [bench.crmuons(*words, "--out", out) for _ in range(2)]
    said = [process.communicate(timeout=300)[0] for process in pair]
    assert not any("Traceback" in each for each in said)
    codes = sorted(process.returncode for process in pair)
    # The second may begin after the first has ended: then there is nothing to do, or the directory is not empty.
    assert codes in ([0, 1], [0, 0]), said
    assert all("in use by" in text or "not empty" in text for text, p in zip(said, pair, strict=True) if p.returncode)
    assert not list((bench.folder / out).rglob(".*.partial"))
    assert not (bench.folder / out / ".owner").exists()
    rows = output(bench.crmuons("inspect", out), 0)
    assert re.search("60,?000" if command == "simulate" else "4,?000", rows), rows
