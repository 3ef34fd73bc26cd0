"""Training straight from pelican:// against a real XRootD federation, with faults on the way."""

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import pytest

from crmuons import config
from crmuons.cli import main
from crmuons.data import reader
from crmuons.simulation.simulate import SimulationSettings, simulate
from crmuons.storage.pelican import federation as client
from crmuons.training import setup
from tests.integration.conftest import fill
from tests.integration.pelican.federation.federation import Federation, federation, what_is_missing, write_private

MISSING = what_is_missing()
pytestmark = [pytest.mark.pelican, pytest.mark.skipif(bool(MISSING), reason=MISSING)]

PRESET = Path(__file__).parents[3] / "jobs" / "configs" / "default.toml"
NUM_FILES, EVENTS_PER_FILE = 12, 500
SMALL = (
    "train.steps=24",  # More than an epoch.
    "train.events_per_worker=256",
    "train.validation_events=500",
    "train.log_every=2",
    "tracking.enabled=false",
    "scaling.threads_per_worker=1",  # Threads that wait for each other crawl on a busy machine.
)


@pytest.fixture(scope="module")
def fed() -> Iterator[Federation]:
    with pytest.MonkeyPatch.context() as patch, federation() as running:
        patch.setenv("SSL_CERT_FILE", str(running.ca))
        patch.setattr(client, "_federations", {})
        patch.delenv("BEARER_TOKEN", raising=False)
        patch.setenv("CRMUONS_PELICAN_READ_S", "3")  # Of a cache that stalls; 60 otherwise.
        for seed in range(NUM_FILES):
            folder = running.data / "public" / "sim" / ("0000000-0000999", "0001000-0001999")[seed % 2]
            simulate(SimulationSettings(), num_events=EVENTS_PER_FILE, out=folder / f"{seed}", seed=seed)
            (written,) = (folder / f"{seed}").iterdir()
            written.rename(folder / f"{seed}.parquet")
            (folder / f"{seed}").rmdir()
        shutil.copytree(running.data / "public" / "sim", running.data / "private" / "sim")
        yield running


def arguments(data: str, storage: Path, name: str, *words: str) -> list[str]:
    place = (f"run.storage_path={storage}", f"run.name={name}")
    return ["train", str(PRESET), f"data.train={data}", *place, *SMALL, *words]


@pytest.fixture(scope="module")
def wanted(fed: Federation, tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, int]:
    """The model trained from local files, and the rows that it read."""
    storage = tmp_path_factory.mktemp("local")
    assert main(arguments(str(fed.data / "public/sim/*/*.parquet"), storage, "run", "scaling.num_workers=0")) == 0
    rows = rows_read(storage / "run")
    assert rows > NUM_FILES * EVENTS_PER_FILE
    return (storage / "run/model/weights.pt").read_bytes(), rows


def rows_read(run: Path) -> int:
    return int(json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])["data/rows"])


@contextmanager
def once(happened: Callable[[], object], then: Callable[[], Any]) -> Iterator[None]:
    """Do something during the block, as soon as something is the case; it must come to that."""
    over, did = threading.Event(), threading.Event()

    def watch() -> None:
        while not over.is_set():
            if happened():
                then()
                did.set()
                return
            time.sleep(0.02)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield
    finally:
        over.set()
        watcher.join()
    assert did.is_set()


def gets(fed: Federation, *names: str) -> int:
    return sum(entry["method"] == "GET" for entry in fed.log(*names))


CACHES = Federation.caches
SURVIVED: dict[str, tuple[tuple[str, ...], dict[str, Any]]] = {
    "no fault": ((), {}),
    "503 on every third request": (CACHES, {"status": 503, "every": 3}),
    "connection resets": (CACHES, {"reset": True, "every": 3}),
    "bodies cut in the middle": (CACHES, {"cut": 3000, "every": 3}),
    "bodies short but consistent": (CACHES, {"short": 3000, "every": 3}),
    "a stalled cache": (CACHES[:1], {"stall": 3000}),
    "a director that fails": (("director",), {"status": 500, "first": 2}),
    "a director that asks for a pause": (("director",), {"status": 429, "first": 2, "headers": {"Retry-After": "1"}}),
}


@pytest.mark.parametrize("fault", SURVIVED)
def test_whatever_happens_the_model_is_that_of_local_files_bitwise(
    fed: Federation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wanted: tuple[bytes, int], fault: str
) -> None:
    monkeypatch.setattr(client, "_federations", {})
    fed.clear()
    where, what = SURVIVED[fault]
    fed.fault(*where, **what)
    train_as_wanted(fed, "/public/sim/*/*.parquet", tmp_path, wanted)
    assert any(entry["fault"] for entry in fed.log()) == bool(where)


def train_as_wanted(fed: Federation, data: str, storage: Path, wanted: tuple[bytes, int]) -> None:
    """Equal weights, to the bit, say that every event came, unchanged and where it was due; the rows that none came twice."""
    assert main(arguments(fed.url(data), storage, "run", "scaling.num_workers=0")) == 0
    assert ((storage / "run/model/weights.pt").read_bytes(), rows_read(storage / "run")) == wanted


def test_all_caches_may_be_down_for_a_while(
    fed: Federation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wanted: tuple[bytes, int]
) -> None:
    monkeypatch.setattr(client, "_federations", {})
    fed.clear()

    def outage() -> None:
        fed.fault(*CACHES, reset=True)
        time.sleep(float(os.environ.get("CRMUONS_TEST_OUTAGE_S", "4")))
        fed.fault(*CACHES)

    with once(lambda: gets(fed, *CACHES) > NUM_FILES, outage):
        train_as_wanted(fed, "/public/sim/*/*.parquet", tmp_path, wanted)
    assert "reset" in {entry["status"] for entry in fed.log(*CACHES)}


def test_a_token_may_expire_in_the_middle_until_it_is_renewed(
    fed: Federation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wanted: tuple[bytes, int]
) -> None:
    monkeypatch.setattr(client, "_federations", {})
    fed.clear()
    token = tmp_path / "token"
    write_private(token, fed.token())
    monkeypatch.setenv("BEARER_TOKEN_FILE", str(token))

    def expire() -> None:
        write_private(token, fed.token(lifetime_s=-60))
        while 403 not in {entry["status"] for entry in fed.log(*CACHES)}:
            time.sleep(0.05)
        write_private(token, fed.token())

    with once(lambda: gets(fed, *CACHES) > NUM_FILES, expire):
        train_as_wanted(fed, "/private/sim/*/*.parquet", tmp_path, wanted)


def test_a_cache_may_be_killed_in_the_middle(
    fed: Federation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wanted: tuple[bytes, int]
) -> None:
    monkeypatch.setattr(client, "_federations", {})
    fed.clear()
    try:
        with once(lambda: gets(fed, CACHES[0]) > NUM_FILES, lambda: fed.kill(CACHES[0])):
            train_as_wanted(fed, "/public/sim/*/*.parquet", tmp_path, wanted)
        assert fed.processes[CACHES[0]].returncode == -9
        assert gets(fed, CACHES[1]) > 0
    finally:
        fed.start_cache(CACHES[0])


FULL = {
    "8k": r"the run's directory (DISK/full) cannot be written .*No space left on device.*; free space there",
    "600k": r"run full stopped: checkpoint of step 5 could not be written to (DISK/full)/checkpoints .*No space left on device.*; free",
}


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a tmpfs needs root")
@pytest.mark.parametrize("size", FULL)
def test_a_full_disk_ends_in_one_sentence(
    fed: Federation,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    small_disk: Callable[[Path, str], AbstractContextManager[None]],
    size: str,
) -> None:
    fed.clear()
    disk = tmp_path / "disk"
    words = arguments(fed.url("/public/sim/*/*.parquet"), disk, "full", "scaling.num_workers=0", "train.steps=100000")
    with small_disk(disk, size):
        assert main([*words, "run.checkpoint_every=5"]) == 1
    said = capsys.readouterr().err.splitlines()[-1]
    assert re.match(f"crmuons train: {FULL[size].replace('DISK', str(disk))}", said), said


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a tmpfs needs root")
def test_a_disk_that_fills_up_between_checkpoints_is_named(
    fed: Federation,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    small_disk: Callable[[Path, str], AbstractContextManager[None]],
) -> None:
    fed.clear()
    disk = tmp_path / "disk"
    words = arguments(fed.url("/public/sim/*/*.parquet"), disk, "full", "scaling.num_workers=0", "train.steps=100000")
    metrics = disk / "full" / "metrics.jsonl"
    with small_disk(disk, "3m"), once(metrics.is_file, lambda: fill(disk / "ballast")):
        assert main([*words, "run.checkpoint_every=100000"]) == 1
    said = capsys.readouterr().err.splitlines()[-1]
    assert re.match(
        f"crmuons train: run full stopped: {disk}/full cannot be written .No space left on device.; free space", said
    ), said


def test_reading_of_a_thousand_files_begins_once_they_are_listed(
    fed: Federation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "_federations", {})
    monkeypatch.setattr(setup, "FEATURE_EVENTS", 2 * EVENTS_PER_FILE)
    source = fed.data / "public/sim/0000000-0000999/0.parquet"
    for number in range(1000):
        link = fed.data / f"public/many/{number // 250}/{number}.parquet"
        link.parent.mkdir(parents=True, exist_ok=True)
        link.hardlink_to(source)
    fed.clear()
    settings = config.load(PRESET, [f"data.train={fed.url('/public/many/*/*.parquet')}", "train.validation_events=100"])
    listed, _, _ = setup.set_up_run(settings)
    assert len(listed) == 1000
    seen = [(entry["who"], entry["method"]) for entry in fed.log()]
    first = next(number for number, (who, method) in enumerate(seen) if who in CACHES and method == "GET")
    # The folder above, looked at and listed, and four folders; nothing is asked of the files.
    assert sorted(seen[:first]) == sorted(
        [("discovery", "GET"), ("director", "PROPFIND"), *[("origin", "PROPFIND")] * 6, ("director", "GET")]
    )
    # The sample and what was begun beside it, at two requests a file, and the footer of the first file.
    assert {who for who, _ in seen[first:]} <= set(CACHES)
    assert len(seen) - first <= 2 * (2 + 2 * reader.READS_AT_ONCE) + 1


@pytest.mark.ray
def test_two_workers_outlive_a_killed_cache_and_show_no_token(
    fed: Federation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fed.clear()
    fed.fault(fed.caches[1], cut=20_000, every=3)
    token = fed.token()
    write_private(tmp_path / "token", token)
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
        simulate(SimulationSettings(), num_events=300, out=folder / str(number), seed=number)
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
