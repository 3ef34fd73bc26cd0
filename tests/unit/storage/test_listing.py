"""Which files a listing gives: what the shell's glob gives, each file once, and everything passed over is named."""

import logging
import os

import pytest

from crmuons.storage import files, listing
from crmuons.storage.listing import list_files
from crmuons.storage.output import check_apart


@pytest.fixture(autouse=True)
def fresh(monkeypatch, caplog):
    monkeypatch.setattr(listing, "_logged", set())
    caplog.set_level(logging.INFO)


def make(*paths):
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"1234")


def written(path):
    make(path)
    return path


def names(root, pattern):
    return [os.path.relpath(file.url, root) for file in list_files(str(root / pattern))]


@pytest.mark.parametrize("pattern", ["data", "data/*.parquet", "data/*", "**/*.parquet", "{data,data/}"])
def test_links_are_followed(tmp_path, pattern):
    make(tmp_path / "data" / "a.parquet", *(tmp_path / f".disk/{name}.parquet" for name in "bcd"))
    for name in "bcd":
        (tmp_path / "data" / f"{name}.parquet").symlink_to(tmp_path / ".disk" / f"{name}.parquet")
    assert names(tmp_path, pattern) == [f"data/{name}.parquet" for name in "abcd"]


@pytest.mark.parametrize("pattern", ["data", "data/**/*.parquet", "data/*"])
def test_a_linked_folder_is_read_once_and_a_loop_is_named(tmp_path, pattern, caplog):
    make(tmp_path / "data" / "a.parquet", tmp_path / "other" / "b.parquet")
    (tmp_path / "data" / "linked").symlink_to(tmp_path / "other")
    (tmp_path / "other" / "loop").symlink_to(tmp_path / "data")
    assert names(tmp_path, pattern) == ["data/a.parquet", "data/linked/b.parquet"]
    assert "data/linked/loop" in caplog.text


def test_one_file_under_two_names_is_read_once_and_said(tmp_path, caplog):
    make(tmp_path / "a.parquet")
    (tmp_path / "b.parquet").symlink_to(tmp_path / "a.parquet")
    assert names(tmp_path, "*.parquet") == ["a.parquet"]
    assert f"1 the same as others by a link ({tmp_path}/b.parquet)" in caplog.text


def test_hard_links_are_files_of_their_own(tmp_path):
    make(tmp_path / "a.parquet")
    (tmp_path / "b.parquet").hardlink_to(tmp_path / "a.parquet")
    assert names(tmp_path, ".") == ["a.parquet", "b.parquet"]


@pytest.mark.parametrize("pattern", ["*.parquet", "**/*.parquet", "**", "*"])
def test_folders_that_match_are_data_sets_and_what_spark_leaves_beside_is_not(tmp_path, pattern):
    make(
        tmp_path / "one.parquet" / "part-0.parquet",
        tmp_path / "one.parquet" / "_SUCCESS",
        tmp_path / "one.parquet" / "_temporary" / "0" / "part-0.parquet",
        tmp_path / "one.parquet" / ".part-0.parquet.crc",
        tmp_path / "two.parquet",
    )
    assert names(tmp_path, pattern) == ["one.parquet/part-0.parquet", "two.parquet"]


def test_a_path_that_exists_is_no_glob(tmp_path):
    make(
        tmp_path / "run[1]" / "a.parquet",
        tmp_path / "b[1].parquet",
        tmp_path / "{x,y}.parquet",
        tmp_path / "run1" / "c.parquet",
    )
    assert names(tmp_path, "run[1]") == ["run[1]/a.parquet"]
    assert names(tmp_path, "b[1].parquet") == ["b[1].parquet"]
    assert names(tmp_path, "{x,y}.parquet") == ["{x,y}.parquet"]
    assert names(tmp_path, "run[0-9]") == ["run1/c.parquet"]


@pytest.mark.parametrize("scheme", ["", "memory://"])
def test_a_glob_of_names_without_a_character_matches_as_in_a_shell(tmp_path, scheme):
    for name in ("1", "2", "^"):
        files.put(written(tmp_path / "here"), f"{scheme}{tmp_path}/data/f{name}.parquet")
    for pattern in ("f[^1].parquet", "f[!1].parquet"):
        found = list_files(f"{scheme}{tmp_path}/data/{pattern}")
        assert [file.url.rpartition("/")[2] for file in found] == ["f2.parquet", "f^.parquet"]


def test_a_url_that_exists_is_no_glob(tmp_path):
    for name in ("a[1].parquet", "a1.parquet", "run[1]/b.parquet", "run1/c.parquet"):
        files.put(written(tmp_path / "here"), f"memory://{tmp_path}/data/{name}")

    def found(pattern):
        return [file.url.rpartition("data/")[2] for file in list_files(f"memory://{tmp_path}/data/{pattern}")]

    assert found("a[1].parquet") == ["a[1].parquet"]
    assert found("run[1]") == ["run[1]/b.parquet"]
    assert found("a[0-9].parquet") == ["a1.parquet"]


def test_a_folder_that_exists_is_no_glob_in_front_of_one(tmp_path):
    make(tmp_path / "run[1]" / "a.parquet", tmp_path / "run1" / "c.parquet")
    assert names(tmp_path, "run[1]/*.parquet") == ["run[1]/a.parquet"]
    assert names(tmp_path, "run[0-9]/*.parquet") == ["run1/c.parquet"]


def test_what_is_passed_over_is_counted_and_named_once(tmp_path, caplog):
    make(tmp_path / "a.parquet", tmp_path / "notes.txt", tmp_path / "read.me", tmp_path / ".hidden.parquet")
    (tmp_path / "gone.parquet").symlink_to(tmp_path / "nowhere")
    os.mkfifo(tmp_path / "pipe.parquet")
    for _ in range(2):
        assert names(tmp_path, ".") == ["a.parquet"]
    (record,) = caplog.records
    for part in (
        f"1 hidden, or beginning with _ ({tmp_path}/.hidden.parquet)",
        f"1 links to nothing ({tmp_path}/gone.parquet)",
        f"1 neither files nor folders ({tmp_path}/pipe.parquet)",
        f"2 not data by their suffix ({tmp_path}/notes.txt)",
    ):
        assert part in record.message


@pytest.mark.parametrize("pattern", ["no.parquet", "*.pq", "empty"])
def test_nothing_is_an_error_with_the_pattern(tmp_path, pattern):
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="nothing to read at"):
        list_files(str(tmp_path / pattern))


def test_an_output_that_is_a_link_to_itself_is_no_data_directory(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "a.parquet").touch()
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    check_apart(
        tmp_path / "loop", [str(tmp_path / "data")]
    )  # pathlib raises RuntimeError; making it says what is wrong.
    with pytest.raises(ValueError, match="lies inside the data directory"):
        check_apart(tmp_path / "loop" / ".." / "data" / "out", [str(tmp_path / "data")])
