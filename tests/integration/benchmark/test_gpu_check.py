"""`crmuons benchmark gpu` on a CPU: all parts, without the packages that a bare GPU machine lacks."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from crmuons.benchmark.gpu import data, run
from crmuons.benchmark.gpu.machine import Machine

ROOT = Path(__file__).parents[3]
# A finder for packages that must not be imported; crmuons itself has no metadata there.
BARE = """
import importlib.machinery, importlib.metadata, sys
REFUSED = {"ray", "mlflow", "pelicanfs", "aiohttp", "yarl", "optuna", "psutil", "pandas", "matplotlib", "sklearn", "segno", "threadpoolctl"}
class Refuse:
    def find_spec(self, name, path=None, target=None):
        return importlib.machinery.ModuleSpec(name, self) if name in REFUSED else None
    def create_module(self, spec):
        raise ModuleNotFoundError(f"No module named {spec.name!r}: refused", name=spec.name)
    def exec_module(self, module): ...
sys.meta_path.insert(0, Refuse())
version = importlib.metadata.version
def installed(name):
    if name in {"crmuons", "ray"}:
        raise importlib.metadata.PackageNotFoundError(name)
    return version(name)
importlib.metadata.version = installed
"""


def check(tmp_path, *words):
    environment = os.environ | {
        "OMP_NUM_THREADS": "1",
        "HOME": str(tmp_path),
        "PYTHONPATH": f"{ROOT}:{tmp_path / 'site'}",
    }
    command = [
        sys.executable,
        "-m",
        "crmuons.cli",
        "benchmark",
        "gpu",
        "--device",
        "cpu",
        "--tiny",
        "--out",
        tmp_path / "out",
        *words,
    ]
    return subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False)


@pytest.fixture
def bare(tmp_path):
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(BARE)
    return tmp_path


def test_the_whole_check_runs_without_ray_mlflow_and_pelicanfs(bare):
    done = check(bare)
    assert done.returncode == 0, done.stderr
    results = json.loads((bare / "out" / "results.json").read_text())
    assert results["evaluate"]["left out"] == "No module named 'sklearn': refused"  # It says what it needs.
    assert all(
        found["within bound"] for found in results["parity"].values() if isinstance(found, dict) and "worst" in found
    )
    assert results["ranks"]["eager, 2 ranks"]["the same weights"] is True
    assert results["data"]["sparse"]["events/s, loader"] > 0
    assert results["job"]["eager"]["events/s"] > 0
    assert results["train"]["steps"] == 40
    assert "== ranks" in done.stdout
    assert "generate, on the device" in (bare / "out" / "paragraph.md").read_text()


def test_a_part_without_time_is_left_out(bare):
    done = check(bare, "--parts", "machine", "step", "--limit", "5")
    assert done.returncode == 1
    assert "crmuons benchmark: step/error: no time was left for it" in done.stderr
    results = json.loads((bare / "out" / "results.json").read_text())
    assert {name: found["error"] for name, found in results.items()} == dict.fromkeys(
        ("machine", "step"), "no time was left for it"
    )


def test_a_part_that_hangs_is_ended_and_said_so(tmp_path):
    going = run.Check(Machine("cpu", tiny=True, folder=tmp_path), tmp_path, 60.0)
    process = run._start(going, data.prepared, "never made")  # It waits for data that nobody makes.
    run._end(process, 2.0)
    run._collect(going, "data", process, 2.0)
    assert not process.is_alive()
    assert "it was ended after 2 s" in json.loads((tmp_path / "results.json").read_text())["data"]["error"]


def test_an_unknown_part_is_refused(bare):
    done = check(bare, "--parts", "speed")
    assert done.returncode == 1
    assert "--parts speed: expected machine, parity, step" in done.stderr
