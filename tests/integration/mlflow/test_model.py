"""A logged model works on a machine without crmuons: `load_model` and `mlflow models serve`, in a real environment."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import sysconfig
import time
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np
import pytest

from crmuons import config
from crmuons.data import features
from crmuons.data.events import EventArrays
from crmuons.generation.load import load_generator
from crmuons.models import saved_model
from crmuons.models.bundle_model import BundleModel
from crmuons.models.features import Features
from crmuons.tracking.pyfunc import save_logged_model
from tests.integration.ports import free_ports

PRIMARIES = np.array([[1e6, 0.1, 0.938, 1600], [5e6, 0.4, 52.1, 2000]], np.float32)

LOAD = """
import importlib.util, json, sys
assert importlib.util.find_spec("crmuons") is None
import mlflow, pandas as pd
columns = ["energy_gev", "zenith_rad", "mass_gev", "depth_m"]
primaries = pd.DataFrame(json.loads(sys.argv[2]), columns=columns, dtype=float)
bundles = mlflow.pyfunc.load_model(sys.argv[1]).predict(primaries, params={"seed": 7})
print(json.dumps(bundles.to_dict("list")))
"""


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment with all packages of this one except crmuons."""
    folder = tmp_path_factory.mktemp("elsewhere")
    packages, here = folder / "packages", Path(sysconfig.get_path("purelib"))
    packages.mkdir()
    for path in here.iterdir():
        if "crmuons" not in path.name and path.suffix != ".pth":
            (packages / path.name).symlink_to(path)
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder / "venv"], check=True)
    python = folder / "venv" / "bin" / "python"
    code = "import sysconfig; print(sysconfig.get_path('purelib'))"
    purelib = subprocess.run([python, "-c", code], check=True, capture_output=True, text=True).stdout.strip()
    Path(purelib, "packages.pth").write_text(f"{packages}\n")
    uvicorn = python.with_name("uvicorn")  # As its installation would write it: `mlflow models serve` starts it.
    uvicorn.write_text(f"#!{python}\nfrom uvicorn import main\nmain()\n")
    uvicorn.chmod(0o755)
    return python


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """An untrained model: as a directory of crmuons, and as MLflow logs it."""
    return make_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def model_with_features(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A model that makes direction, charge and delay too."""
    return make_model(tmp_path_factory.mktemp("features"), features.parse(["dir_x", "dir_y", "charge", "t_ns"]))


def make_model(folder: Path, extra: tuple[features.MuonFeature, ...] = ()) -> tuple[Path, Path]:
    random, settings = np.random.default_rng(0), config.Model()
    primaries = random.uniform([1e5, 0.0, 0.9, 1500], [1e7, 1.0, 52, 2500], (200, 4)).astype(np.float32)
    muons = random.lognormal(2.0, 1.0, (2000, 3)).astype(np.float32)
    if extra:
        columns = [*random.normal(0, 1e-2, (2, 2000)), random.choice([-1, 1], 2000), random.gamma(2, 1, 2000)]
        muons = np.column_stack([muons, *columns]).astype(np.float32)
    sample = EventArrays(np.zeros((200, 2), np.uint64), primaries, np.full(200, 10), muons)
    about = {"format": 1, "model": settings.model_dump(mode="json")}
    own = saved_model.save_model(folder / "own", BundleModel(settings, Features(extra=extra).fit(sample)), about)
    save_logged_model(folder / "logged", own, PRIMARIES)
    return own, folder / "logged"


def environment(tmp_path: Path) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "MLFLOW", "COV"))}
    return kept | {"HOME": str(tmp_path), "OMP_NUM_THREADS": "1"}


def expected(own: Path) -> tuple[list[int], list[list[float]]]:
    events = load_generator(own).generate(PRIMARIES, seed=7)
    return events.counts.tolist(), events.muons.tolist()


@pytest.mark.parametrize(("which", "width"), [("model", 3), ("model_with_features", 7)])
def test_a_model_loads_where_crmuons_is_not_installed(which, width, python, request, tmp_path):
    own, logged = request.getfixturevalue(which)
    done = subprocess.run(
        [python, "-I", "-c", LOAD, logged, json.dumps(PRIMARIES.tolist())],
        cwd=tmp_path, env=environment(tmp_path), capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    bundles = json.loads(done.stdout)
    counts, muons = expected(own)
    assert [len(event) for event in bundles["muons"]] == counts
    assert [muon for event in bundles["muons"] for muon in event] == muons
    assert {len(muon) for muon in muons} == {width}
    assert bundles["primary_major_id"] == [0, 1]


def test_mlflow_serves_a_model_where_crmuons_is_not_installed(python, model, tmp_path):
    own, logged = model
    (port,) = free_ports(1)
    command = [python, "-m", "mlflow", "models", "serve", "-m", logged, "--env-manager", "local", "-p", str(port)]
    with (tmp_path / "log").open("wb") as log:
        path = f"{python.parent}:{os.environ['PATH']}"
        server = subprocess.Popen(
            command,
            cwd=tmp_path,
            env=environment(tmp_path) | {"PATH": path},
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    columns = ["energy_gev", "zenith_rad", "mass_gev", "depth_m"]
    data = {"columns": columns, "data": PRIMARIES.astype(float).tolist()}
    body = json.dumps({"dataframe_split": data, "params": {"seed": 7}}).encode()
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/invocations", body, headers={"Content-Type": "application/json"}
    )
    deadline = time.monotonic() + 120
    try:
        while True:
            try:
                with urllib.request.urlopen(request, timeout=60) as answer:
                    rows = json.load(answer)["predictions"]
                break
            except urllib.error.HTTPError as error:
                raise AssertionError(error.read()) from error
            except OSError:
                alive = server.poll() is None and time.monotonic() < deadline
                assert alive, (tmp_path / "log").read_text()
                time.sleep(0.5)
    finally:
        with contextlib.suppress(ProcessLookupError):  # It has ended; the log says why.
            os.killpg(server.pid, signal.SIGKILL)
        server.wait()
    counts, muons = expected(own)
    assert [len(row["muons"]) for row in rows] == counts
    np.testing.assert_allclose([muon for row in rows for muon in row["muons"]], muons, rtol=1e-6)
