"""Files at paths and URLs: what patterns match, what is refused, and that files appear complete."""

import logging
import os
from pathlib import Path

import fsspec
import pytest

from crmuons.storage import files
from crmuons.storage.claims import FOLDER
from crmuons.storage.files import File
from crmuons.storage.output import folder_at


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Two run directories with two files each, a log, and the partial file of an interrupted writer."""
    for runs in ("0000000-0000999", "0001000-0001999"):
        folder = tmp_path / "sim" / runs
        folder.mkdir(parents=True)
        for name, size in (("a.parquet", 1), ("b.pq", 2), ("log.txt", 3), (".c.parquet.partial", 4), ("_d.parquet", 5)):
            (folder / name).write_bytes(bytes(size))
    return tmp_path


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("sim", ["0/a.parquet", "0/b.pq", "1/a.parquet", "1/b.pq"]),
        ("sim/0000000-0000999", ["0/a.parquet", "0/b.pq"]),
        ("sim/*/a.parquet", ["0/a.parquet", "1/a.parquet"]),
        ("sim/**/b.pq", ["0/b.pq", "1/b.pq"]),
        ("sim/000[1-9]*/?.p*", ["1/a.parquet", "1/b.pq"]),
        ("sim/{0000000-0000999,0001000-0001999}/a.parquet", ["0/a.parquet", "1/a.parquet"]),
        ("sim/000{0..1}000-*/[!a].pq", ["0/b.pq", "1/b.pq"]),
        ("sim/0000000-0000999/log.txt", ["0/log.txt"]),
    ],
)
def test_patterns_name_files_with_their_sizes(tree: Path, pattern: str, names: list[str]) -> None:
    found = files.list_files(str(tree / pattern))
    shortened = [f"{int(Path(file.url).parent.name[:7]) // 1000}/{Path(file.url).name}" for file in found]
    assert shortened == names
    assert [file.size for file in found] == [Path(file.url).stat().st_size for file in found]


def test_overlapping_patterns_give_each_file_once(tree: Path) -> None:
    assert len(files.list_files([str(tree / "sim"), str(tree / "sim/*/a.parquet")])) == 4


def test_a_pattern_that_matches_nothing_is_an_error_that_names_it(tree: Path) -> None:
    with pytest.raises(
        FileNotFoundError, match=r"nothing to read at '.*/sim/\*\.nc': the glob matches no file; check the path"
    ):
        files.list_files([str(tree / "sim"), str(tree / "sim/*.nc")])
    with pytest.raises(FileNotFoundError, match=r"'.*/nowhere': no such file or directory"):
        files.list_files(str(tree / "nowhere"))
    (tree / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=r"the directory holds no file ending in \.parquet or \.pq"):
        files.list_files(str(tree / "empty"))


def test_a_hole_in_a_range_of_run_directories_is_a_warning(tree: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        found = files.list_files(str(tree / "sim/000{0..2}000-*/a.parquet"))
    assert len(found) == 2
    assert "0002000-*/a.parquet: the glob matches no file" in caplog.text


@pytest.mark.parametrize(
    ("pattern", "words"),
    [
        ("a{x,y}b", ["axb", "ayb"]),
        ("{08..11}", ["08", "09", "10", "11"]),
        ("{1..2}/{a,}", ["1/a", "1/", "2/a", "2/"]),
        ("{plain}", ["{plain}"]),
        ("no braces", ["no braces"]),
    ],
)
def test_braces_stand_for_their_alternatives(pattern: str, words: list[str]) -> None:
    assert files.expand_braces(pattern) == words


def test_a_range_that_runs_backwards_is_refused() -> None:
    with pytest.raises(ValueError, match=r"the range \{5\.\.2\} is empty; write the smaller number first"):
        files.expand_braces("run{5..2}")


def test_other_schemes_keep_theirs_in_listings() -> None:
    memory = fsspec.filesystem("memory")
    memory.pipe_file("/door/x/a.parquet", b"12345")
    assert files.list_files("memory://door/*/*.parquet") == [File("memory:///door/x/a.parquet", 5)]
    assert files.open_file("memory:///door/x/a.parquet", 5).read() == b"12345"
    assert files.read_bytes("memory:///door/x/a.parquet") == b"12345"


def test_a_file_that_is_put_appears_whole_with_its_folders(tmp_path: Path) -> None:
    (tmp_path / "local").write_bytes(b"content")
    target = tmp_path / "new" / "folder" / "file"
    files.check_writable(str(target))
    files.put(tmp_path / "local", str(target))
    assert files.read_bytes(str(target)) == b"content"
    assert files.exists(str(target))
    assert list(target.parent.iterdir()) == [target]
    files.put(tmp_path / "local", "memory://door/put")
    assert files.read_bytes("memory://door/put") == b"content"


@pytest.mark.parametrize("url", ["{tmp_path}/copy", "memory://copy/{name}"])
def test_a_tree_goes_there_and_back_and_only_what_is_missing_is_copied(tree: Path, tmp_path: Path, url: str) -> None:
    url = url.format(tmp_path=tmp_path, name=tmp_path.name)
    copied = files.put_tree(tree / "sim", url)
    assert len(copied) == 8  # Two directories of five files, one of them hidden.
    assert files.put_tree(tree / "sim", url) == []
    (tree / "sim/0000000-0000999/log.txt").write_bytes(bytes(30))
    assert files.put_tree(tree / "sim", url) == [f"{url}/0000000-0000999/log.txt"]
    back = files.get_tree(url, tmp_path / "back")
    assert len(back) == 8
    assert (tmp_path / "back/0000000-0000999/log.txt").stat().st_size == 30
    assert files.get_tree(url, tmp_path / "back") == []
    with pytest.raises(FileNotFoundError, match=r"nothing to copy below '.*/nowhere'"):
        files.get_tree(f"{url}/nowhere", tmp_path / "back")


def test_a_file_where_a_folder_is_due_is_named(tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("")
    with pytest.raises(NotADirectoryError, match=f"{tmp_path}/runs is a file; choose another name"):
        files.check_writable(str(tmp_path / "runs" / "first"))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_permission_is_named(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(PermissionError, match=f"no permission to write to {tmp_path}"):
        files.check_writable(str(tmp_path / "x" / "y"))


@pytest.mark.parametrize("url", ["pelican://host", "pelican:///path", "pelican://"])
def test_an_incomplete_federation_url_is_refused_with_an_example(url: str) -> None:
    with pytest.raises(ValueError, match=r"no address in a federation; write pelican://HOST/namespace/path"):
        files.list_files(url)


def test_a_token_in_a_url_is_refused_without_showing_it() -> None:
    with pytest.raises(ValueError, match="BEARER_TOKEN_FILE") as raised:
        files.open_file("pelican://host/data/file?authz=SECRET")
    assert "SECRET" not in str(raised.value)


def test_a_folder_of_results_is_copied_to_a_url_when_it_is_done(tmp_path: Path) -> None:
    url = f"memory://results{tmp_path}"
    with folder_at(url, new=True) as out:
        (out / "figures").mkdir()
        (out / "figures" / "n.png").write_bytes(b"png")
        assert files.names(url) == [FOLDER]
    assert files.sizes(url) == {"figures/n.png": 3}
    with pytest.raises(FileExistsError, match=f"{url} is not empty: name a new directory"), folder_at(url, new=True):
        pass
    with pytest.raises(ZeroDivisionError), folder_at(f"{url}/more") as out:
        (out / "half").write_text(str(1 / 0))
    assert files.names(f"{url}/more") == []
    with folder_at(str(tmp_path / "here")) as out:
        assert out == tmp_path / "here"


def test_a_storage_that_takes_nothing_is_named_before_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        msg = "read-only"
        raise NotImplementedError(msg)

    url = "memory://readonly/x"
    files.check_writable(url)
    assert files.names(url) == []  # The test file was removed.
    monkeypatch.setattr(fsspec.filesystem("memory"), "put_file", refuse)
    with pytest.raises(
        PermissionError, match=f"'{url}' cannot be written: NotImplementedError: read-only; name another"
    ):
        files.check_writable(url)
