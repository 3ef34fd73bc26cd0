"""Errors of storage libraries name the URL in one sentence, whatever their classes."""

import re
import sys

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from crmuons.config.schemes import NO_STORES
from crmuons.data.reader import read_slice
from crmuons.data.sampler import cut_files
from crmuons.data.selection import Selection
from crmuons.storage import files, filesystems
from crmuons.storage.stores import StoreError


class NoCredentialsError(Exception):
    """As botocore's: no OSError."""


class FailingStore(MemoryFileSystem):
    """A store in memory that fails as told."""

    protocol = "failing"
    cachable = False
    error: Exception = Exception()

    def ls(self, path, **options):
        raise self.error

    info = find = glob = isdir = exists = ls  # As s3fs; fsspec's own `exists` would answer False.


@pytest.fixture(autouse=True)
def failing(monkeypatch):
    fsspec.register_implementation("failing", FailingStore, clobber=True)
    return monkeypatch


@pytest.mark.parametrize(
    "url", ["zip://x::/tmp/y.zip", "zip://*.parquet::https://h/x.zip", "simplecache::s3://b/x", "filecache::http://h/x", "tar://a::memory://y"]
)  # fmt: skip
def test_chained_urls_are_refused(url, tmp_path, monkeypatch):
    for ask in (files.list_files, files.open_file, files.read_bytes, files.check_writable):
        with pytest.raises(
            ValueError, match="chains file systems with '::', which crmuons does not read; copy or unpack"
        ):
            ask(url)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a::b.parquet").touch()  # On a disk it is a name like any other.
    assert [file.url for file in files.list_files("a::b.parquet")] == [str(tmp_path / "a::b.parquet")]


def test_every_scheme_is_read_or_named_with_those_that_work():
    """fsspec's file systems raise TypeError, AttributeError, ValueError and others for what they lack."""
    asked_for_a_server = {"git", "gist", "hdfs", "arrow_hdfs"}  # They look for a host or a library for seconds.
    for scheme in sorted({*fsspec.available_protocols(), "nosuch"} - asked_for_a_server):
        url = f"{scheme}://127.0.0.1:1/x"
        said = ""
        try:
            filesystems.filesystem(url)
        except ValueError as error:
            said = str(error)
        if said:
            named = rf"'{url}'(: crmuons reads no {scheme}:// URLs| cannot be opened)[^\n]*(URL of pelican://|crmuons\[hf\])"
            assert re.match(named, said), said
        else:
            assert scheme not in NO_STORES


@pytest.mark.parametrize(
    ("error", "kind", "says"),
    [
        (NoCredentialsError("Unable to locate\ncredentials"), StoreError, "NoCredentialsError: Unable to locate credentials; check the bucket's name"),
        (PermissionError("AccessDenied"), PermissionError, "AccessDenied"),
        (OSError(16, "SlowDown"), StoreError, "SlowDown"),
        (TimeoutError(), StoreError, "TimeoutError"),
    ],
)  # fmt: skip
def test_an_error_of_a_storage_library_names_the_url(failing, error, kind, says):
    failing.setattr(FailingStore, "error", error)
    for call in (files.list_files, files.exists, files.names, lambda url: files.list_files(f"{url}/*.parquet")):
        with pytest.raises(kind, match="failing://bucket/d") as caught:
            call("failing://bucket/d")
        assert says in str(caught.value)
        assert "\n" not in str(caught.value)


def test_an_open_file_names_its_url_too(failing, tmp_path, toy_events, write_toy):
    made = write_toy(tmp_path / "a.parquet", toy_events(20))
    files.put(tmp_path / "a.parquet", "memory://bucket/a.parquet")
    (listed,) = files.list_files("memory://bucket")
    assert listed.size == made.size
    assert len(read_slice(cut_files([listed])[0], Selection("all"))[0].counts) == 60

    def broken(*_):
        raise NoCredentialsError

    failing.setattr("fsspec.implementations.memory.MemoryFile.read", broken)
    with pytest.raises(StoreError, match=r"memory:///?bucket/a\.parquet: NoCredentialsError"):
        read_slice(cut_files([listed])[0], Selection("all"))


def test_a_store_whose_library_is_missing_is_named(failing):
    with pytest.raises(ValueError, match=r"'abfs://c/a' cannot be opened: .*adlfs"):
        files.exists("abfs://c/a")


def test_hugging_face_without_its_library_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ValueError, match=r"'hf://datasets/u/d' cannot be opened .*pip install 'crmuons\[hf\]'"):
        filesystems.filesystem("hf://datasets/u/d")


def test_a_url_of_one_file_is_asked_for_once_beside_whether_it_is_a_folder(monkeypatch):
    asked = []
    info = MemoryFileSystem.info
    monkeypatch.setattr(
        MemoryFileSystem, "info", lambda self, path, **how: asked.append(path) or info(self, path, **how)
    )
    MemoryFileSystem().pipe_file("/once/a.parquet", b"x" * 7)
    (found,) = files.list_files("memory://once/a.parquet")
    assert found.size == 7
    assert len(asked) == 2
