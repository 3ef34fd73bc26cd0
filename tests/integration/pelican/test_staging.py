"""Staging files of a real XRootD federation: one download per node, whatever dies, fills up or changes on the way."""

import concurrent.futures
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from itertools import islice
from pathlib import Path

import pytest

from crmuons.cli import main
from crmuons.data import reader
from crmuons.data.events import EventArrays
from crmuons.data.sampler import ReadPlan, cut_files
from crmuons.data.selection import Selection
from crmuons.ray_backend import cluster
from crmuons.ray_backend.data import read_with_ray
from crmuons.simulation.simulate import SimulationSettings, simulate
from crmuons.storage import files
from crmuons.storage.files import File
from crmuons.storage.pelican import federation as client
from crmuons.storage.staging.cache_dir import CacheDir
from crmuons.storage.staging.download import Staging
from crmuons.storage.staging.stager import read_progress
from crmuons.storage.staging.transfer import BLOCK_BYTES
from tests.integration.pelican.federation.federation import Federation, federation, what_is_missing

MISSING = what_is_missing()
pytestmark = [pytest.mark.pelican, pytest.mark.skipif(bool(MISSING), reason=MISSING)]

PRESET = Path(__file__).parents[3] / "jobs" / "configs" / "default.toml"
NUM_FILES = 10
SMALL = (
    "train.steps=24",  # 128 events each: about two epochs.
    "train.events_per_worker=128",
    "train.validation_events=100",
    "train.log_every=2",
    "tracking.enabled=false",
    "scaling.threads_per_worker=1",  # Threads that wait for each other crawl on a busy machine.
    "scaling.num_workers=0",
)


@pytest.fixture(scope="module")
def running() -> Iterator[Federation]:
    with pytest.MonkeyPatch.context() as patch, federation() as running:
        patch.setenv("SSL_CERT_FILE", str(running.ca))
        patch.delenv("BEARER_TOKEN", raising=False)
        patch.setenv("CRMUONS_PELICAN_DIGEST_S", "10")  # XRootD's origin sometimes answers none any more; 40 otherwise.
        for seed in range(NUM_FILES):
            simulate(
                SimulationSettings(), num_events=200, out=running.data / "public" / "sim" / f"{seed:07d}", seed=seed
            )
        yield running


@pytest.fixture
def fed(running: Federation, monkeypatch: pytest.MonkeyPatch) -> Federation:
    """The federation without faults and with an empty log, and a client that knows nothing of it."""
    running.clear()
    monkeypatch.setattr(client, "_federations", {})
    return running


def staging(folder: Path, *, max_bytes: int = 10**9, max_files: int = 1000, began: float = 0.0) -> Staging:
    return Staging(CacheDir(folder, max_bytes, max_files), files_ahead=4, began=began)


def arguments(data: str, storage: Path, name: str, *words: str) -> list[str]:
    place = (f"run.storage_path={storage}", f"run.name={name}")
    return ["train", str(PRESET), f"data.train={data}", *place, *SMALL, *words]


def weights(storage: Path, name: str) -> bytes:
    return (storage / name / "model" / "weights.pt").read_bytes()


def downloads(fed: Federation) -> Counter[str]:
    """How often each file was asked for at the caches."""
    return Counter(entry["path"] for entry in fed.log(*fed.caches) if entry["method"] == "GET")


def a_file(fed: Federation, name: str, content: bytes) -> File:
    (fed.data / "public" / name).write_bytes(content)
    return File(fed.url(f"/public/{name}"), len(content))


def is_staged(there: Staging, file: File) -> bool:
    return there.cache.path(file).exists()


@pytest.fixture(scope="module")
def streamed(running: Federation, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The model that reads every file where it lies."""
    storage = tmp_path_factory.mktemp("streamed")
    assert main(arguments(running.url("/public/sim/*/*.parquet"), storage, "streamed")) == 0
    return weights(storage, "streamed")


WAYS = {
    "all is kept": (),
    "files are removed once read": ("data.staging.delete_after_use=true", "data.staging.files_ahead=2"),
    "room for three files": ("data.staging.max_files=3",),
    "no room at all": ("data.staging.max_bytes=1",),
}


@pytest.mark.parametrize("way", WAYS)
def test_staged_training_gives_the_streamed_model_bitwise(
    fed: Federation, tmp_path: Path, streamed: bytes, way: str
) -> None:
    folder = tmp_path / "staged"
    words = arguments(fed.url("/public/sim/*/*.parquet"), tmp_path, "run", f"data.staging.dir={folder}", *WAYS[way])
    assert main(words) == 0
    assert weights(tmp_path, "run") == streamed
    there = [path for path in folder.iterdir() if path.suffix != ".lock"]
    if way == "all is kept":
        assert len(there) == NUM_FILES
        # Two epochs and the sample before them; of one file the footer is looked at first.
        assert sorted(downloads(fed).values()) == [*[1] * (NUM_FILES - 1), 2]
    if way == "files are removed once read":
        assert len(there) <= 4  # Downloads that were under way when the run ended.
    if way == "room for three files":
        assert len(there) <= 3
    if way == "no room at all":
        assert there == []


def test_the_next_run_uses_what_lies_there_and_looks_at_its_checksum(
    fed: Federation, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    good, bad = (a_file(fed, f"{name}.bin", os.urandom(10_000)) for name in ("good", "bad"))
    first = staging(tmp_path / "staged")
    for file in (good, bad):
        first.hold(file).release()
    spoiled = first.cache.path(bad)
    spoiled.write_bytes(bytes(bad.size))
    fed.clear()
    later = staging(tmp_path / "staged", began=time.time() + 1)
    for file in (good, bad):
        held = later.hold(file)
        assert held.file.read() == files.read_bytes(file.url)
        held.release()
    assert f"{spoiled} has changed on the disk" in caplog.text
    assert "good" not in caplog.text
    assert "HEAD" not in {entry["method"] for entry in fed.log("origin") if "good" in entry["path"]}


def test_an_origin_that_answers_no_request_for_a_checksum_is_asked_once(
    fed: Federation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    wanted = [a_file(fed, f"silent-{i}.bin", os.urandom(10_000)) for i in range(3)]
    monkeypatch.setenv("CRMUONS_PELICAN_DIGEST_S", "0.5")
    fed.fault("origin", delay=30, methods=["HEAD"])
    there = staging(tmp_path / "staged")
    for file in wanted:
        assert hold_and_read(there, file) == files.read_bytes(file.url)
        assert is_staged(there, file)
    assert caplog.text.count("gave no checksum within 0.5 s") == 1


def hold_and_read(there: Staging, file: File) -> bytes:
    held = there.hold(file)
    content = held.file.read()
    held.release()
    return content


def test_many_processes_download_a_file_once(fed: Federation, tmp_path: Path) -> None:
    file = a_file(fed, "wanted.bin", os.urandom(5_000_000))
    with concurrent.futures.ProcessPoolExecutor(4, multiprocessing.get_context("spawn")) as pool:
        reads = [pool.submit(hold_and_read, staging(tmp_path / "staged"), file) for _ in range(12)]
        assert {read.result(60) for read in reads} == {(fed.data / "public/wanted.bin").read_bytes()}
    assert downloads(fed) == {"/public/wanted.bin": 1}


HOLD = """
import sys
from pathlib import Path
from crmuons.storage.files import File
from tests.integration.pelican.test_staging import staging
staging(Path(sys.argv[1])).hold(File(sys.argv[2], int(sys.argv[3])))
"""


def test_a_killed_download_leaves_nothing_whole_and_is_continued_where_it_broke_off(
    fed: Federation, tmp_path: Path
) -> None:
    content = os.urandom(2 * BLOCK_BYTES)
    file = a_file(fed, "killed.bin", content)
    there = staging(tmp_path / "staged")
    part = there.cache.path(file).with_suffix(".part")
    fed.fault(*fed.caches, stall=0, every=2, match="killed")  # The second block never comes.
    words = [sys.executable, "-c", HOLD, str(tmp_path / "staged"), file.url, str(file.size)]
    process = subprocess.Popen(words, cwd=Path(__file__).parents[3])
    deadline = time.monotonic() + 60
    while not (part.exists() and part.stat().st_size == BLOCK_BYTES):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not is_staged(there, file)
    fed.clear()
    assert hold_and_read(there, file) == content
    assert [entry["range"] for entry in fed.log(*fed.caches)] == [f"bytes={BLOCK_BYTES}-{2 * BLOCK_BYTES - 1}"]


def test_a_cache_that_holds_another_content_is_not_believed(fed: Federation, tmp_path: Path) -> None:
    file = a_file(fed, "changed.bin", b"a" * 10_000)
    files.read_bytes(file.url)  # Now the caches have it, and serve it for days.
    time.sleep(1.1)  # The origin knows by the time of the last change that its checksum is out of date.
    a_file(fed, "changed.bin", b"b" * 10_000)
    there = staging(tmp_path / "staged")
    with pytest.raises(OSError, match=rf"{file.url}: the downloaded file has checksum adler32:\w+, its server says"):
        there.hold(file)
    assert not is_staged(there, file)


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a tmpfs needs root")
def test_a_full_staging_disk_is_said_once_and_training_goes_on(
    fed: Federation,
    tmp_path: Path,
    streamed: bytes,
    caplog: pytest.LogCaptureFixture,
    small_disk: Callable[[Path, str], AbstractContextManager[None]],
) -> None:
    folder = tmp_path / "disk"
    with small_disk(folder, "120k"):
        (folder / "ballast").write_bytes(bytes(90_000))
        words = arguments(fed.url("/public/sim/*/*.parquet"), tmp_path, "full", f"data.staging.dir={folder}")
        assert main(words) == 0
    assert weights(tmp_path, "full") == streamed
    said = [
        record.message for record in caplog.records if "cannot be used now (No space left on device)" in record.message
    ]
    assert 1 <= len(said) <= 2  # Once for the sample, once for the run.


def test_a_directory_that_cannot_be_written_is_said_at_the_start(
    fed: Federation, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    folder = tmp_path / "file" / "staged"
    assert main(arguments(fed.url("/public/sim/*/*.parquet"), tmp_path, "refused", f"data.staging.dir={folder}")) == 1
    (sentence,) = capsys.readouterr().err.splitlines()
    assert sentence.startswith(f"crmuons train: data.staging.dir = {folder} cannot be used: ")
    assert sentence.endswith("give a directory that can be written")
    assert not (tmp_path / "refused").exists()


@pytest.mark.ray
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # Ray Data's of its own settings.
@pytest.mark.filterwarnings("ignore:.*ray-data-dataset")  # Of two executions side by side it leaves one's log open.
def test_read_tasks_of_two_ranks_download_each_file_once(fed: Federation, tmp_path: Path) -> None:
    listed = files.list_files(fed.url("/public/sim/*/*.parquet"))
    reading = ReadPlan(tuple(cut_files(listed)), seed=0, segment_bytes=2**20, world=2)
    items = [list(islice(reading.segments_of_rank(rank), 8)) for rank in range(2)]  # Two epochs of eight segments.
    place = Staging(CacheDir(tmp_path / "staged", 10**9, 1000), files_ahead=4, began=time.time())
    staged = [Selection(staging=place.of_run(listed, (), tmp_path, f"rank-{rank}")) for rank in range(2)]
    with cluster.cluster(num_cpus=2), concurrent.futures.ThreadPoolExecutor(2) as pool:
        pieces = list(pool.map(lambda rank: list(read_with_ray(iter(items[rank]), staged[rank])), range(2)))
    assert sorted(downloads(fed).values()) == [1] * NUM_FILES
    for rank in range(2):
        assert ids(pieces[rank]) == ids(reader.read_in_process(iter(items[rank]), Selection()))
    assert read_progress(tmp_path / "staging")[0] > 0  # The stagers had their part in it.


def ids(pieces: Iterable[reader.ReadResult]) -> list[list[int]]:
    """The ids of the events, in order."""
    return [row for piece in pieces if isinstance(piece, EventArrays) for row in piece.ids.tolist()]
