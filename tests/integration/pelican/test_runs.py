"""Runs that are kept behind a real XRootD federation: killed, continued elsewhere, and refused before any work."""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from crmuons.cli import main
from crmuons.simulation.simulate import SimulationSettings, simulate
from crmuons.storage.pelican import federation as client
from tests.integration.conftest import wait_for
from tests.integration.pelican.federation.federation import Federation, federation, what_is_missing, write_private

MISSING = what_is_missing()
pytestmark = [pytest.mark.pelican, pytest.mark.skipif(bool(MISSING), reason=MISSING), pytest.mark.timeout(900)]

PRESET = Path(__file__).parents[3] / "jobs" / "configs" / "default.toml"
SMALL = (
    *("train.steps=6", "run.checkpoint_every=2", "train.events_per_worker=128", "train.validation_events=200"),
    *("train.log_every=2", "tracking.enabled=false", "scaling.num_workers=0", "scaling.threads_per_worker=1"),
)


@pytest.fixture(scope="module")
def running() -> Iterator[Federation]:
    with pytest.MonkeyPatch.context() as patch, federation() as running:
        patch.setenv("SSL_CERT_FILE", str(running.ca))
        simulate(SimulationSettings(), num_events=2000, out=running.data / "public" / "sim", seed=1)
        yield running


@pytest.fixture
def fed(running: Federation, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Federation:
    """The federation without faults, and a machine that has a token for it and knows of no run."""
    running.clear()
    monkeypatch.setattr(client, "_federations", {})
    write_private(tmp_path / "token", running.token("storage.read:/ storage.modify:/"))
    monkeypatch.setenv("BEARER_TOKEN_FILE", str(tmp_path / "token"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "machine-a"))
    monkeypatch.delenv("BEARER_TOKEN", raising=False)
    return running


def words(fed: Federation, storage: str, name: str, *more: str) -> list[str]:
    data = f"data.train={fed.data}/public/sim"
    return ["train", str(PRESET), data, f"run.storage_path={storage}", f"run.name={name}", *SMALL, *more]


def test_a_run_that_is_killed_while_it_writes_goes_on_on_another_machine_bitwise(
    fed: Federation,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    url, place = fed.url("/private/runs"), fed.data / "private/runs/killed"
    fed.fault("origin", methods=["PUT"], match="step-00000006", delay=3)
    process = subprocess.Popen(
        [sys.executable, "-m", "crmuons.cli", *words(fed, url, "killed")], start_new_session=True
    )
    try:
        wait_for(lambda: process.poll() is not None or list(place.glob("step-00000006-*/*")))
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    (half,) = place.glob("step-00000006-*")
    assert not (half / "manifest.json").exists()
    shutil.rmtree(tmp_path / "machine-a")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "machine-b"))
    fed.clear()
    assert main(words(fed, url, "killed", "run.resume=auto")) == 0
    said = capfd.readouterr()
    assert f"{half.name} has no manifest that matches its name" in caplog.text
    assert main(words(fed, str(tmp_path / "local"), "whole")) == 0
    (model,) = place.glob("model-00000006-*")
    assert f"model    {url}/killed/{model.name}" in said.out
    assert (model / "weights.pt").read_bytes() == (tmp_path / "local/whole/model/weights.pt").read_bytes()
    steps = [json.loads(line)["step"] for line in (model / "metrics.jsonl").read_text().splitlines()]
    assert steps == [0, 2, 4, 6]


def test_a_storage_that_is_down_at_the_end_is_told_and_mended_by_the_same_command(
    fed: Federation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CRMUONS_PELICAN_PATIENCE_S", "1")
    fed.fault("origin", methods=["PUT"], match="model-", status=503)
    command = words(fed, fed.url("/private/runs"), "down", "run.resume=auto", "run.upload_seconds=15")
    assert main(command) == 1
    last = capfd.readouterr().err.splitlines()[-1]
    assert "model-00000006 could not be copied to pelican://" in last
    assert "HTTP 503" in last
    assert f"all of it is in {tmp_path}/machine-a/" in last
    fed.clear()
    assert main(command) == 0
    (whole,) = (fed.data / "private/runs/down").glob("model-00000006-*/manifest.json")  # Beside what broke off.
    assert json.loads((whole.parent / "done.json").read_text())["steps"] == 6


def test_a_token_that_only_reads_is_refused_before_anything_is_read_or_trained(
    fed: Federation, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    write_private(tmp_path / "token", fed.token("storage.read:/"))
    url = fed.url("/private/runs")
    assert main(words(fed, url, "refused")) == 1
    said = capfd.readouterr().err.splitlines()
    assert said == [
        f"crmuons train: {url} cannot be written with the token from {tmp_path}/token with scopes 'storage.read:/', "
        + said[0].partition("'storage.read:/', ")[2]
    ]
    assert f"crmuons login --write {url}" in said[0]
    assert not (tmp_path / "machine-a").exists()
    assert "PUT" not in {entry["method"] for entry in fed.log()}


@pytest.mark.ray
def test_workers_on_another_node_have_the_renewed_token_and_write_where_only_it_may(
    fed: Federation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(fed.data / "public/sim", fed.data / "private/sim", dirs_exist_ok=True)
    write_private(tmp_path / "renewed", fed.token("storage.read:/ storage.modify:/ storage.create:/"))
    signatures = [(tmp_path / name).read_text().rpartition(".")[2] for name in ("token", "renewed")]
    (tmp_path / "machine-b").mkdir()
    url = fed.url("/private/runs")
    command = words(fed, url, "nodes", "scaling.num_workers=1", f"data.train={fed.url('/private/sim/*.parquet')}")
    with tempfile.TemporaryDirectory(prefix="ray-") as ray_folder:
        for name, value in {"RAY_TMPDIR": ray_folder, "HOME": str(tmp_path / "machine-a")}.items():
            monkeypatch.setenv(name, value)
        ended = subprocess.run(
            [sys.executable, "-m", "tests.integration.pelican.two_nodes", str(tmp_path / "machine-b"), url, str(tmp_path / "renewed"),
             *command], check=False, capture_output=True, text=True, timeout=600, cwd=Path(__file__).parents[3],
        )  # fmt: skip
        said = ended.stdout + ended.stderr
        assert ended.returncode == 0, said
        assert {"shared: True", "renewed: True"} <= set(said.splitlines())
        assert f"run      {url}/nodes (finished after 6 steps)" in said
        places = (Path(ray_folder), tmp_path / "machine-a", tmp_path / "machine-b", fed.data / "private/runs/nodes")
        written = [path for place in places for path in place.rglob("*") if path.is_file()]
        assert not [path for path in written if any(each.encode() in path.read_bytes() for each in signatures)]
        assert not any(each in said for each in signatures)
    assert list((tmp_path / "machine-b/cache").rglob("checkpoints/step-00000006/weights.pt"))
    assert list((fed.data / "private/runs/nodes").glob("model-00000006-*/weights.pt"))
