"""Staging: one download for all readers, limits that hold, no removal of files in use, no use of incomplete files."""

import os
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from itertools import count, islice
from pathlib import Path
from typing import ClassVar

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from crmuons.data.sampler import FileSlice, Segment
from crmuons.data.staged_reading import with_own_stager, with_windows
from crmuons.storage.files import File
from crmuons.storage.staging import download as module
from crmuons.storage.staging import stager as stager_module
from crmuons.storage.staging.cache_dir import CacheDir, _while_it_grows
from crmuons.storage.staging.checksums import Checksum
from crmuons.storage.staging.download import Staging
from crmuons.storage.staging.locks import FileLock
from crmuons.storage.staging.stager import FileUse, Stager, read_progress


class CountingFileSystem(MemoryFileSystem):
    """Files in memory that count how often each was opened."""

    protocol = "counted"
    store: ClassVar[dict[str, object]] = {}
    pseudo_dirs: ClassVar[list[str]] = [""]
    opened: ClassVar[Counter[str]] = Counter()

    def _open(self, path, mode="rb", **options):
        if mode == "rb":
            type(self).opened[path] += 1
            time.sleep(0.01)  # Long enough for other readers to arrive.
        return super()._open(path, mode, **options)

    @classmethod
    def _strip_protocol(cls, path):
        return super()._strip_protocol(path.removeprefix("counted://"))


fsspec.register_implementation("counted", CountingFileSystem, clobber=True)


@pytest.fixture(autouse=True)
def _fresh(monkeypatch):
    monkeypatch.setattr(module, "_paused_until", {})
    monkeypatch.setattr(stager_module, "RETRY_S", 0.05)
    CountingFileSystem.opened.clear()


def remote(name: str, size: int = 1000) -> File:
    fsspec.filesystem("counted").pipe(f"/{name}", bytes([ord(name[-1])]) * size)
    return File(f"counted:///{name}", size, "as listed")


def opened(file: File) -> int:
    return CountingFileSystem.opened["/" + file.url.rpartition("/")[2]]


def place(folder: Path, *, max_bytes=10**6, max_files=100, **how) -> Staging:
    return Staging(CacheDir(folder / "staged", max_bytes, max_files), how.pop("files_ahead", 4), **how)


def read(staging: Staging, file: File, part: int = 0, parts: int = 1) -> bytes:
    with staging.open(file, whole=parts == 1) as source:
        return source.read()


def there(staging: Staging) -> set[str]:
    """Names of the staged files, without the digest and size before them."""
    return {p.name.split("-", 2)[2] for p in staging.cache.folder.glob("*-*-*") if p.suffix != ".lock"}


def item(number: int, *files: File, epoch: int = 0, parts: int = 1) -> Segment:
    return Segment(epoch, number, 0, 0, tuple(FileSlice(file, 0, parts) for file in files))


def wait_for(happened) -> None:
    deadline = time.monotonic() + 10
    while not happened():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.005)


def test_many_readers_cause_one_download_and_read_the_file(tmp_path):
    file = remote("a")
    with ThreadPoolExecutor(8) as pool:
        read_by_threads = set(pool.map(lambda _: read(place(tmp_path), file), range(16)))
    assert read_by_threads == {b"a" * 1000}
    assert opened(file) == 1


def test_who_waits_for_a_download_sees_it_end_at_any_moment(tmp_path):
    class Renamed(type(tmp_path)):
        """A path whose file is gone right after each look at it."""

        def stat(self, **how):
            found = super().stat(**how)
            self.unlink()
            return found

    part = Renamed(tmp_path / "a.part")
    part.touch()
    patient = _while_it_grows(part)
    assert patient()
    assert patient()


def test_local_files_are_read_where_they_lie(tmp_path):
    path = tmp_path / "local.parquet"
    path.write_bytes(b"local")
    assert read(place(tmp_path), File(str(path), 5)) == b"local"
    assert not (tmp_path / "staged").exists()
    assert place(tmp_path).of_run([File(str(path), 5)], (), tmp_path, "rank-0") is None


def test_the_file_used_longest_ago_goes_and_one_that_is_read_stays(tmp_path):
    staging = place(tmp_path, max_files=2)
    for name in "ab":
        read(staging, remote(name))
    held = staging.hold(remote("a"))  # Used again, and in use.
    read(staging, remote("c"))
    assert there(staging) == {"a", "c"}
    read(staging, remote("d"))
    assert there(staging) == {"a", "d"}
    assert held.file.read() == b"a" * 1000
    held.release()
    read(staging, remote("e"))
    assert there(staging) == {"d", "e"}


@pytest.mark.parametrize("bounds", [{"max_bytes": 2500}, {"max_files": 2}])
def test_without_room_a_file_is_read_where_it_lies(tmp_path, bounds):
    staging = place(tmp_path, **bounds)
    held = [staging.hold(remote(name)) for name in "ab"]
    assert all(held)
    assert staging.hold(remote("c")) is None
    assert read(staging, remote("c")) == b"c" * 1000
    assert there(staging) == {"a", "b"}
    assert (
        read(staging, remote("z", 3_000_000)) == b"z" * 3_000_000
    )  # Larger than the limit: nothing is removed for it.
    assert there(staging) == {"a", "b"}
    for each in held:
        each.release()


def test_delete_after_use_spares_what_others_hold(tmp_path):
    staging = place(tmp_path, delete_after_use=True)
    held = staging.hold(remote("a"))
    read(staging, remote("a"))
    read(staging, remote("b"))
    assert there(staging) == {"a"}
    held.release()
    read(staging, remote("a"))
    assert there(staging) == set()
    assert [path.name for path in staging.cache.folder.iterdir()] == ["room.lock"]


def test_what_a_killed_download_left_is_no_file_and_goes_away(tmp_path):
    staging = place(tmp_path)
    file, other = remote("a"), remote("b")
    for each in (file, other):
        part = staging.cache.path(each).with_suffix(".part")
        part.parent.mkdir(exist_ok=True)
        part.write_bytes(b"x" * 600)
    # The server gives no checksum for this file, so its partial download is not used.
    assert read(staging, file) == b"a" * 1000
    assert read(place(tmp_path, max_files=1), remote("c")) == b"c" * 1000
    assert there(staging) == {"c"}


def test_a_later_run_finds_damage_and_this_one_does_not_look(tmp_path, caplog):
    file = remote("a")
    read(place(tmp_path), file)
    path = place(tmp_path).cache.path(file)
    assert read(place(tmp_path, began=time.time() + 1), file) == b"a" * 1000
    assert opened(file) == 1
    path.write_bytes(b"x" * 1000)
    assert read(place(tmp_path), file) == b"x" * 1000
    assert read(place(tmp_path, began=time.time() + 1), file) == b"a" * 1000
    assert opened(file) == 2
    assert f"{path} has changed on the disk since it was staged" in caplog.text


def test_a_file_whose_record_is_lost_is_downloaded_again(tmp_path):
    file = remote("a")
    read(place(tmp_path), file)
    path = place(tmp_path).cache.path(file)
    path.write_bytes(b"x" * 1000)
    path.with_suffix(".lock").unlink()
    assert read(place(tmp_path), file) == b"a" * 1000


def test_a_file_that_is_shorter_than_listed_is_named(tmp_path):
    file = File(remote("a").url, 2000)
    with pytest.raises(OSError, match=r"counted:///a ended after 1000 of 2000 bytes; it has changed: list it again"):
        read(place(tmp_path), file)
    assert not place(tmp_path).cache.path(file).exists()


def test_parts_of_large_files_are_staged_only_where_all_such_files_fit(tmp_path):
    mega = 2**20
    large = [File(f"counted:///{name}", 200 * mega) for name in "ab"]  # Read in parts of 64 MiB at most.
    few, many = (place(tmp_path, max_bytes=size * mega).of_run(large, large, tmp_path, "rank-0") for size in (300, 500))
    assert not few.should_stage(large[0], whole=False)
    assert many.should_stage(large[0], whole=False)
    file = remote("c")
    assert read(many, file, 1, 4) == b"c" * 1000  # Not waited for: read remotely.
    assert not many.cache.path(file).exists()
    many.hold(file).release()
    assert read(many, file, 2, 4) == b"c" * 1000
    assert opened(file) == 2


def test_a_directory_that_cannot_be_used_is_said_once_and_passed_by(tmp_path, caplog):
    (tmp_path / "staged").write_text("a file")
    staging = place(tmp_path)
    with pytest.raises(
        OSError, match=r"data.staging.dir = .*/staged cannot be used: .*give a directory that can be written"
    ):
        staging.check()
    run = place(tmp_path, report=tmp_path / "report")
    for name in "abc":
        assert read(run, remote(name)) == name.encode() * 1000
    said = (tmp_path / "report" / "warning.txt").read_text()
    assert "cannot be used now" in said
    assert said.count("\n") == 1
    assert "cannot be used" not in caplog.text
    module._paused_until.clear()
    assert read(staging, remote("d")) == b"d" * 1000
    assert "cannot be used now" in caplog.text


def test_a_directory_that_disappears_on_the_way_is_made_again(tmp_path):
    staging = place(tmp_path)
    held = staging.hold(remote("a"))
    for path in staging.cache.folder.iterdir():
        path.unlink()
    staging.cache.folder.rmdir()
    assert held.file.read() == b"a" * 1000
    held.release()
    assert read(staging, remote("b")) == b"b" * 1000
    assert there(staging) == {"b"}


def test_a_process_that_is_stuck_with_a_lock_blocks_nobody_for_ever(tmp_path, monkeypatch):
    monkeypatch.setattr("crmuons.storage.staging.cache_dir.STALLED_S", 0.2)
    staging, file = place(tmp_path), remote("a")
    staging.check()
    stuck = FileLock(staging.cache.path(file).with_suffix(".lock"))
    stuck.acquire(shared=False)
    assert read(staging, file) == b"a" * 1000
    assert not staging.cache.path(file).exists()
    stuck.release()
    read(staging, file)
    assert staging.cache.path(file).exists()


def test_a_lock_on_a_removed_file_is_not_taken_for_the_lock(tmp_path):
    first, second = FileLock(tmp_path / "lock"), FileLock(tmp_path / "lock")
    first.acquire(shared=False)
    waiting = threading.Thread(target=second.acquire, kwargs={"shared": False})
    waiting.start()
    time.sleep(0.1)
    first.remove()
    waiting.join(10)
    assert os.path.samestat(os.fstat(second.descriptor), (tmp_path / "lock").stat())
    assert not FileLock(tmp_path / "lock").acquire(shared=True, patient=lambda: False)


def test_windows_hold_the_items_files_and_so_many_that_come_next(tmp_path):
    files = [File(f"counted:///{i}", 10) for i in range(5)]
    items = [item(0, *files[:2]), item(1, files[2]), item(2, *files[3:]), item(0, *files[:2], epoch=1)]
    windows = [window for _, window in with_windows(items, place(tmp_path, files_ahead=2))]
    assert [[(use.epoch, use.file) for use in window] for window in windows] == [
        [(0, files[0]), (0, files[1]), (0, files[2]), (0, files[3])],
        [(0, files[2]), (0, files[3]), (0, files[4])],
        [(0, files[3]), (0, files[4]), (1, files[0]), (1, files[1])],
        [(1, files[0]), (1, files[1])],
    ]
    local = (item(i, File("/local", 10)) for i in count())
    assert [window for _, window in islice(with_windows(local, place(tmp_path)), 3)] == [[], [], []]


def test_the_stager_runs_ahead_as_far_as_it_may_and_lets_go_what_was_read(tmp_path):
    files = [remote(f"f{i}") for i in range(8)]
    staging = place(tmp_path, files_ahead=3, max_files=3, report=tmp_path / "report")
    reads = with_own_stager((item(i, file) for i, file in enumerate(files)), staging)
    _, how = next(reads)
    wait_for(lambda: there(staging) == {"f0", "f1", "f2"})  # Before anything is read.
    how.begin()
    assert read(how, files[0]) == b"0" * 1000
    wait_for(lambda: there(staging) == {"f1", "f2", "f3"})
    for file, (_, how) in zip(files[1:], reads, strict=False):
        how.begin()
        # On a busy machine the reader may be first, and then reads the file where it is.
        wait_for(lambda name=file.url[-2:]: name in there(staging))
        assert read(how, file) == file.url[-1].encode() * 1000
    assert sum(CountingFileSystem.opened.values()) == len(files)
    wait_for(lambda: read_progress(tmp_path / "report") == (8, 8000))


def test_the_stager_removes_used_files_unless_they_are_about_to_be_used_again(tmp_path):
    files = [remote(name) for name in "ab"]
    staging = place(tmp_path, files_ahead=2, delete_after_use=True)
    with Stager(staging) as stager:
        uses = [FileUse(epoch, file, True) for epoch in (0, 1) for file in files]
        stager.ahead(uses[:3])  # The first is used again in the next epoch.
        wait_for(lambda: there(staging) == {"a", "b"})
        for use in uses[:2]:
            stager.used(use, staged=True)
        wait_for(lambda: there(staging) == {"a"})
        assert opened(files[0]) == 1
        stager.ahead(uses[2:3])
        stager.used(uses[2], staged=True)
        wait_for(lambda: there(staging) == set())


@pytest.mark.parametrize(
    ("header", "checksum"),
    [
        ("adler32=11e60398", "adler32:11e60398"),
        ("adler32=1e60398", "adler32:01e60398"),
        ("md5=XUFAKrxLKna5cZ2REBfFkg==", "md5:5d41402abc4b2a76b9719d911017c592"),
        ("md5=5d41402abc4b2a76b9719d911017c592", "md5:5d41402abc4b2a76b9719d911017c592"),
        ("crc32c=abc, ADLER32=062c0215", "adler32:062c0215"),
        ("crc32=12", "None"),
        ("md5=not base64!", "None"),
        ("adler32=xyz", "None"),
        ("", "None"),
    ],
)
def test_a_digest_header_is_understood_or_left_alone(header, checksum):
    assert str(Checksum.from_header(header)) == checksum


def test_checksums_are_those_of_their_standards(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"Wikipedia")
    assert str(Checksum.of_file(path, "adler32")) == "adler32:11e60398"  # The example of Wikipedia's article.
    path.write_bytes(b"hello")
    assert str(Checksum.of_file(path, "md5")) == "md5:5d41402abc4b2a76b9719d911017c592"
    digest = "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824"
    assert Checksum.of_file(path) == Checksum("sha-256", digest)
