"""Training straight from pelican:// against a real XRootD federation, with faults on the way."""

import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from crmuons.cli import main
from crmuons.pelican import federation as client
from crmuons.simulation.simulate import Settings, simulate
from tests.integration.federation.federation import Federation, federation, what_is_missing

MISSING = what_is_missing()
pytestmark = [pytest.mark.pelican, pytest.mark.skipif(bool(MISSING), reason=MISSING)]

PRESET = Path(__file__).parents[2] / "jobs" / "configs" / "baseline.toml"
SMALL = (
    "train.steps=6",
    "train.events_per_worker=256",
    "train.validation_events=500",
    "train.log_every=2",
    "tracking.enabled=false",
)


@pytest.fixture(scope="module")
def fed() -> Iterator[Federation]:
    with pytest.MonkeyPatch.context() as patch, federation() as running:
        patch.setenv("SSL_CERT_FILE", str(running.ca))
        patch.setattr(client, "_federations", {})
        patch.delenv("BEARER_TOKEN", raising=False)
        for seed, runs in enumerate(("0000000-0000999", "0001000-0001999")):
            folder = running.data / "public" / "sim" / runs
            simulate(Settings(), num_events=3000, out=folder, seed=seed)
            shutil.copytree(folder, running.data / "private" / "sim" / runs)
        yield running


def arguments(data: str, storage: Path, name: str, *words: str) -> list[str]:
    place = (f"run.storage_path={storage}", f"run.name={name}")
    return ["train", str(PRESET), f"data.train={data}", *place, *SMALL, *words]


def test_the_model_is_that_of_local_files_bitwise(fed: Federation, tmp_path: Path) -> None:
    fed.fault(*fed.caches, status=503, every=3)
    assert main(arguments(str(fed.data / "public/sim/*/*.parquet"), tmp_path, "local", "scaling.num_workers=0")) == 0
    assert main(arguments(fed.url("/public/sim/*/*.parquet"), tmp_path, "federation", "scaling.num_workers=0")) == 0
    weights = [(tmp_path / name / "model" / "weights.pt").read_bytes() for name in ("local", "federation")]
    assert weights[0] == weights[1]
    assert any(entry["fault"] for entry in fed.log(*fed.caches))


@pytest.mark.ray
def test_two_workers_outlive_a_killed_cache_and_show_no_token(
    fed: Federation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fed.clear()
    fed.fault(fed.caches[1], cut=20_000, every=3)
    token = fed.token()
    (tmp_path / "token").write_text(token)
    done = threading.Event()

    def kill_once_it_is_read() -> None:
        while not done.wait(0.2):
            if len(fed.log(fed.caches[0])) > 10:
                fed.kill(fed.caches[0])
                return

    killer = threading.Thread(target=kill_once_it_is_read)
    killer.start()
    # Ray's sockets lie in its folder, and their paths must be short.
    with tempfile.TemporaryDirectory(prefix="ray-") as ray_folder:
        monkeypatch.setenv("RAY_TMPDIR", ray_folder)
        monkeypatch.setenv("BEARER_TOKEN_FILE", str(tmp_path / "token"))
        try:
            words = arguments(fed.url("/private/sim/*/*.parquet"), tmp_path, "ray", "scaling.num_workers=2")
            ended = subprocess.run(
                [sys.executable, "-m", "crmuons.cli", *words], check=False, capture_output=True, text=True, timeout=400
            )
        finally:
            done.set()
            killer.join()
        assert ended.returncode == 0, ended.stderr
        written = [
            path for folder in (tmp_path / "ray", Path(ray_folder)) for path in folder.rglob("*") if path.is_file()
        ]
        signature = token.rpartition(".")[2]
        assert len(written) > 50  # Ray's logs are among them.
        assert not [path for path in written if signature.encode() in path.read_bytes()]
        assert signature not in ended.stdout + ended.stderr
    assert fed.processes[fed.caches[0]].returncode == -9
    assert {entry["status"] for entry in fed.log(fed.caches[1])} == {206}


# What ends a run, with the token that is there and the words that say URL, cause and remedy. None: no token.
REFUSED = {
    "no such files": (
        "/public/nothing/*.parquet",
        None,
        r"nothing to read at '(URL)': the glob matches no file; check the path",
    ),
    "no such file": (
        "/public/nothing.parquet",
        None,
        r"nothing to read at '(URL)': no such file or directory; check the path",
    ),
    "no such namespace": (
        "/elsewhere/sim",
        None,
        r"nothing to read at '(URL)': no such file or directory; check the path",
    ),
    "no token": (
        "/private/sim/*/*.parquet",
        None,
        r"pelican://.*/private/sim: /private takes a token of https.*; looked in .*; log in with 'crmuons login pelican://",
    ),
    "a token of another issuer": (
        "/private/sim/*/*.parquet",
        {"issuer": "https://elsewhere.org"},
        r"pelican://.*: /private takes a token of https.*; found the token from .* issued by https://elsewhere.org; log in with",
    ),
    "a token for another folder": (
        "/private/sim/*/*.parquet",
        {"scope": "storage.read:/other"},
        r"pelican://.*: permission denied .*HTTP 403.* with scopes 'storage.read:/other'.*; log in with",
    ),
    "an expired token that nobody renews": (
        "/private/sim/*/*.parquet",
        {"lifetime_s": -60},
        r"pelican://.*: permission denied with the token .* which expired at .* and it was not renewed; log in with",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_read_ends_in_one_sentence_and_leaves_no_run(
    fed: Federation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], case: str
) -> None:
    path, token, sentence = REFUSED[case]
    monkeypatch.setattr(client, "_federations", {})
    monkeypatch.setenv("CRMUONS_PELICAN_TOKEN_S", "2")  # Instead of 30.
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    if token is not None:
        monkeypatch.setenv("BEARER_TOKEN", fed.token(**token))
    assert main(arguments(fed.url(path), tmp_path, "refused")) == 1
    (said,) = capsys.readouterr().err.splitlines()
    assert re.match(f"crmuons train: {sentence.replace('URL', re.escape(fed.url(path)))}", said), said
    assert not (tmp_path / "refused").exists()


def test_a_file_that_is_removed_on_the_way_is_named(
    fed: Federation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fed.clear()
    monkeypatch.setattr(client, "_federations", {})
    folder = fed.data / "public" / "leaving"
    for number in range(4):
        simulate(Settings(), num_events=300, out=folder / str(number), seed=number)
    url = fed.url("/public/leaving/*/*.parquet")
    (leaving,) = (folder / "3").glob("*.parquet")

    # The caches do not have it, and it goes once it was listed and others are read.
    def remove() -> None:
        while not [entry for entry in fed.log() if entry["method"] == "GET" and "leaving" in entry["path"]]:
            time.sleep(0.05)
        leaving.unlink()

    fed.fault(*fed.caches, delay=0.5)
    remover = threading.Thread(target=remove)
    remover.start()
    code = main(arguments(url, tmp_path, "left", "scaling.num_workers=0", "train.steps=100000"))
    remover.join()
    fed.clear()
    assert code == 1
    said = capsys.readouterr().err.splitlines()[-1]
    assert f"/public/leaving/3/{leaving.name}: no such file or directory at the origin; check the path" in said
