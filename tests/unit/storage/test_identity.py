"""A file is the one that was listed if its content is, on a disk, behind a server and in the staging directory."""

import io
import json
import os
import subprocess
import sys
import threading
import time
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import fsspec
import pyarrow.parquet as pq
import pytest

from crmuons.data.reader import read_slice
from crmuons.data.sampler import FileSlice
from crmuons.data.selection import Selection
from crmuons.storage import files, identity
from crmuons.storage.changed import ChangedError
from crmuons.storage.files import File, list_files
from crmuons.storage.identity import TAIL_BYTES, Digests, open_listed, with_digests
from crmuons.storage.staging.cache_dir import CacheDir
from crmuons.storage.staging.download import Staging


def content(seed, size=3 * TAIL_BYTES):
    import random

    return random.Random(seed).randbytes(size)


def listed(url):
    found = list_files(url)
    (file,) = with_digests(found, {file.size for file in found})
    return file


def test_a_local_file_is_compared_by_size_time_and_end(tmp_path):
    path = tmp_path / "a.parquet"
    path.write_bytes(content(1))
    file = listed(str(path))
    assert open_listed(file).read() == content(1)
    os.utime(path, (5, 5))
    assert open_listed(file).read() == content(1)
    path.write_bytes(content(2))
    with pytest.raises(
        ChangedError, match=r"a\.parquet has changed: 196608 bytes of .* UTC, end .* now: put the original file back"
    ):
        open_listed(file)
    with pytest.raises(ChangedError, match="has changed"):  # Without a digest the time has to decide.
        open_listed(replace(file, digest=None))
    path.write_bytes(content(1)[:-1])
    with pytest.raises(ChangedError, match=r"has changed: 196608 bytes when it was listed, 196607 bytes now"):
        open_listed(file)
    path.unlink()
    with pytest.raises(FileNotFoundError, match=r"a\.parquet is gone; it had 196608 bytes when it was listed"):
        open_listed(file)
    assert File(file.url, file.size) == file  # Sets and orders of files do not depend on the time.


@pytest.mark.parametrize("size", [0, 10, TAIL_BYTES, 3 * TAIL_BYTES])
def test_a_remote_file_reads_as_it_is_with_its_end_read_once(size):
    url = f"memory://identity/{size}.parquet"
    fsspec.filesystem("memory").pipe(f"/identity/{size}.parquet", content(1, size))
    opened = open_listed(listed(url))
    assert opened.read() == content(1, size)
    for start, stop in ((0, 5), (size // 2, size), (max(0, size - TAIL_BYTES - 3), size - 2), (size, size + 4)):
        opened.seek(start)
        assert opened.read(max(stop - start, 0)) == content(1, size)[start:stop]
    opened.seek(-4, io.SEEK_END) if size else None
    assert opened.read() == content(1, size)[-4:]


def test_a_remote_file_of_the_same_size_is_refused_if_its_content_is_another():
    memory = fsspec.filesystem("memory")
    memory.pipe("/identity/b.parquet", content(1))
    file = listed("memory://identity/b.parquet")
    memory.pipe("/identity/b.parquet", content(1))
    assert open_listed(file).read() == content(1)
    memory.pipe("/identity/b.parquet", content(2))
    with pytest.raises(ChangedError, match=r"b\.parquet has changed"):
        open_listed(file)
    memory.rm("/identity/b.parquet")
    with pytest.raises(FileNotFoundError, match=r"b\.parquet is gone"):
        open_listed(file)


class RangeServer(BaseHTTPRequestHandler):
    """Serves one body with ranges, and notes the requests."""

    body, requests = b"", []

    def do_HEAD(self):
        self.requests.append("HEAD")
        self.send_response(200)
        self.send_header("Content-Length", "0" if self.command == "GET" else str(len(self.body)))
        self.send_header("Accept-Ranges", "bytes")
        self.end_headers()

    def do_GET(self):
        if self.headers["Range"] is None:  # fsspec asks whether it is a page of links.
            self.do_HEAD()
            return
        first, _, last = self.headers["Range"].removeprefix("bytes=").partition("-")
        part = self.body[int(first) : int(last) + 1]
        self.requests.append(f"{first}-{last}")
        self.send_response(206)
        self.send_header("Content-Length", str(len(part)))
        self.send_header("Content-Range", f"bytes {first}-{last}/{len(self.body)}")
        self.end_headers()
        self.wfile.write(part)

    def log_message(self, *_):
        """Be silent."""


@pytest.fixture
def served():
    server = ThreadingHTTPServer(("127.0.0.1", 0), RangeServer)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    RangeServer.requests.clear()
    yield f"http://127.0.0.1:{server.server_port}/e.parquet"
    server.shutdown()
    server.server_close()


def test_checking_a_file_behind_http_costs_no_request(served, tmp_path, toy_events, write_toy):
    RangeServer.body = Path(write_toy(tmp_path / "e.parquet", toy_events(3000)).url).read_bytes()
    (plain,) = list_files(served)
    checked = listed(served)
    counts = []
    for file in (plain, checked):
        RangeServer.requests.clear()
        read_slice(FileSlice(file, 0, 1), Selection())
        counts.append(len(RangeServer.requests))
    assert counts[1] <= counts[0]
    RangeServer.body = RangeServer.body[:-2000] + bytes(1990) + RangeServer.body[-10:]
    with pytest.raises(ChangedError, match=r"http://.*e\.parquet has changed"):
        read_slice(FileSlice(checked, 0, 1), Selection())


@pytest.fixture
def staging(tmp_path):
    return Staging(CacheDir(tmp_path / "staged", 2**30, 100), 4, began=0.0)


def test_a_staged_copy_of_what_the_url_held_before_is_not_read(staging):
    memory = fsspec.filesystem("memory")
    memory.pipe("/identity/c.parquet", content(1))
    with staging.open(listed("memory://identity/c.parquet"), whole=True) as opened:
        assert opened.read() == content(1)
    memory.pipe("/identity/c.parquet", content(2))
    with staging.open(listed("memory://identity/c.parquet"), whole=True) as opened:
        assert opened.read() == content(2)


@pytest.mark.parametrize("stamped", [True, False])
def test_a_staged_copy_is_compared_without_a_digest_too(tmp_path, monkeypatch, stamped):
    """By the server's stamp, or else by one small request for a copy that an earlier run left."""
    memory = fsspec.filesystem("memory")
    memory.pipe("/identity/f.parquet", content(1))
    asked = []

    def noting(url, size=None, *, inner=files.open_file):
        asked.append(url)
        return inner(url, size)

    def read(began):
        (file,) = list_files("memory://identity/f.parquet")
        staging = Staging(CacheDir(tmp_path / "staged", 2**30, 100), 4, began=began)
        digests = Digests()
        with staging.open(file if stamped else replace(file, stamp=None), whole=True, digests=digests) as opened:
            assert list(digests.known) == ["memory:///identity/f.parquet"]
            return opened.read()

    monkeypatch.setattr(identity, "open_file", noting)
    assert read(0.0) == content(1)
    for _ in range(2):
        assert read(0.0) == content(1)
    assert asked == []  # The download itself is not among them.
    assert read(time.time() + 1) == content(1)
    assert len(asked) == (0 if stamped else 1)
    memory.pipe("/identity/f.parquet", content(2))
    assert read(time.time() + 2) == content(2)


def test_a_staged_copy_of_an_earlier_version_of_crmuons_is_compared_and_kept(staging):
    memory = fsspec.filesystem("memory")
    memory.pipe("/identity/g.parquet", content(1))
    (file,) = list_files("memory://identity/g.parquet")
    with staging.open(file, whole=True):
        pass
    path = staging.cache.path(file)
    record = json.loads(path.with_suffix(".lock").read_bytes())
    path.with_suffix(".lock").write_text(json.dumps({name: record[name] for name in ("url", "size", "checksum")}))
    before = path.stat().st_ino
    with staging.open(file, whole=True) as opened:
        assert opened.read() == content(1)
    assert path.stat().st_ino == before
    assert json.loads(path.with_suffix(".lock").read_bytes())["stamp"] == file.stamp


def test_a_remote_file_is_the_same_at_each_opening():
    memory = fsspec.filesystem("memory")
    memory.pipe("/identity/h.parquet", content(1))
    (file,) = list_files("memory://identity/h.parquet")
    digests = Digests()
    for _ in range(2):
        assert open_listed(file, digests).read() == content(1)
    memory.pipe("/identity/h.parquet", content(2))
    with pytest.raises(ChangedError, match=r"h\.parquet has changed: end [0-9a-f]{16} when it was first opened, end"):
        open_listed(file, digests)
    memory.pipe("/identity/h.parquet", content(2)[:-9])
    with pytest.raises(ChangedError, match=r"has changed: 196608 bytes when it was listed, 196599 bytes now"):
        open_listed(file, Digests())


def test_a_download_of_a_changed_file_is_refused(staging, tmp_path):
    memory = fsspec.filesystem("memory")
    memory.pipe("/identity/d.parquet", content(1))
    file = listed("memory://identity/d.parquet")
    memory.pipe("/identity/d.parquet", content(2))
    with pytest.raises(ChangedError, match=r"d\.parquet has changed"), staging.open(file, whole=True):
        pass
    assert not [path for path in (tmp_path / "staged").iterdir() if path.suffix != ".lock"]


def test_too_many_remote_files_have_no_digest(monkeypatch, tmp_path):
    monkeypatch.setattr(identity, "MAX_REMOTE_DIGESTS", 1)
    for number in range(2):
        fsspec.filesystem("memory").pipe(f"/many/{number}.parquet", content(number))
    (tmp_path / "a.parquet").write_bytes(b"local")
    found = list_files(["memory://many", str(tmp_path)])
    found = with_digests(found, {file.size for file in found})
    assert {file.url.partition(":")[0]: file.digest is None for file in found} == {
        "memory": True,
        str(tmp_path / "a.parquet"): False,
    }


@pytest.mark.parametrize("pattern", ["", "  "])
def test_an_empty_path_is_not_the_working_directory(pattern, tmp_path, monkeypatch):
    (tmp_path / "a.parquet").touch()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=r"an empty path was given .*a variable that is not set"):
        list_files(pattern)


def test_braces_for_more_names_than_a_data_set_has_are_refused_at_once(tmp_path):
    for pattern in ("{1..9999999999}", "{1..1000}{1..1000}{1..1000}"):
        with pytest.raises(ValueError, match=r"stand for more than 100,000 names; use a glob"):
            list_files(str(tmp_path / pattern))
    assert len(files.expand_braces("{1..300}-{1..300}")) == 90_000


def test_a_pipe_is_named_and_not_opened(tmp_path):
    (tmp_path / "in").mkdir()
    for place in ("x.parquet", "in/x.parquet"):
        os.mkfifo(tmp_path / place)
    for pattern in ("x.parquet", "in", "in/*"):
        with pytest.raises(FileNotFoundError, match=r"x\.parquet is neither a file nor a directory \(a pipe"):
            list_files(str(tmp_path / pattern))


AS_NOBODY = """
import os, sys
sys.path.insert(0, sys.argv[1])
from crmuons.storage.listing import list_files
list_files(__import__("crmuons").__path__[0] + "/cli.py")  # Everything is imported now: nobody may not read the interpreter's folders.
os.setgid(65534); os.setuid(65534)
for place in sys.argv[2:]:
    try:
        list_files(place)
    except FileNotFoundError as error:
        print(error)
"""


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become another user")
def test_a_directory_without_r_or_x_is_no_empty_directory(tmp_path):
    root = Path(files.__file__).parents[2]
    for folder in (tmp_path, *tmp_path.parents[:-1]):
        folder.chmod(folder.stat().st_mode | 0o055)
    for mode in (0o744, 0o711, 0o700):
        folder = tmp_path / f"{mode:o}"
        folder.mkdir()
        (folder / "a.parquet").touch()
        folder.chmod(mode)
    places = [str(tmp_path / name) for name in ("744", "711", "700", "700/a.parquet", "744/*.parquet")]
    command = [sys.executable, "-c", AS_NOBODY, str(root), *places]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    said = result.stdout.splitlines()
    assert len(said) == len(places)
    assert all("no permission to" in line and "a directory needs r and x" in line for line in said)


def test_footers_of_parquet_files_with_the_same_rows_differ_by_their_values(tmp_path, toy_events, write_toy):
    digests = [listed(write_toy(tmp_path / f"{n}.parquet", toy_events(100, seed=n)).url).digest for n in range(3)]
    assert len(set(digests)) == 3
    assert pq.read_metadata(tmp_path / "0.parquet").num_rows == 300
