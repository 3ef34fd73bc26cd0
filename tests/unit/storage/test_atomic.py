"""Files and directories appear under their names complete or not at all."""

from pathlib import Path

import pytest

from crmuons.storage.atomic import atomic_directory, atomic_file, make_directory, remove_atomically, write_json


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def write_half(target: Path):
    with atomic_file(target) as partial:
        partial.write_text("ne")
        msg = "disk full"
        raise OSError(msg)


@pytest.mark.parametrize("options", [{}, {"fsync": True}])
def test_a_file_appears_when_it_is_complete(tmp_path, options):
    target = tmp_path / "a.txt"
    target.write_text("old")
    with atomic_file(target, **options) as partial:
        partial.write_text("new")
        assert target.read_text() == "old"
        assert partial.name.startswith(".a.txt.")
        assert partial.name.endswith(".partial")
    assert target.read_text() == "new"
    assert names(tmp_path) == ["a.txt"]


def test_an_error_keeps_the_old_file_and_leaves_no_partial_one(tmp_path):
    target = tmp_path / "a.txt"
    target.write_text("old")
    with pytest.raises(OSError, match="disk full"):
        write_half(target)
    assert target.read_text() == "old"
    assert names(tmp_path) == ["a.txt"]


def test_writers_that_share_a_file_have_partial_names_of_their_own(tmp_path):
    with atomic_file(tmp_path / "a") as one, atomic_file(tmp_path / "a") as other:
        assert one != other
        one.touch()
        other.touch()


def test_a_directory_replaces_an_old_one_only_if_asked_to(tmp_path):
    target = tmp_path / "model"
    for content in ("first", "second"):
        with atomic_directory(target, replace=True) as partial:
            write_json(partial / "a.json", content)
        assert (target / "a.json").read_text() == f'"{content}"'
    with pytest.raises(OSError, match="not empty"), atomic_directory(target):
        pass
    assert names(tmp_path) == ["model"]
    remove_atomically(target)
    remove_atomically(target)
    assert names(tmp_path) == []


def test_a_link_to_nothing_is_named_with_what_it_leads_to(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "away")
    for folder in (tmp_path / "link", tmp_path / "link" / "below"):
        with pytest.raises(
            FileExistsError, match=r"cannot be made: .*link is a link to .*away, which does not exist; make that, or"
        ):
            make_directory(folder)
    (tmp_path / "away").mkdir()
    assert make_directory(tmp_path / "link" / "below") == [tmp_path / "link" / "below"]


def test_a_directory_does_not_take_over_what_a_killed_process_left(tmp_path):
    (tmp_path / ".model.partial").mkdir()
    (tmp_path / ".model.partial" / "half").touch()
    with atomic_directory(tmp_path / "model"):
        pass
    assert names(tmp_path / "model") == []
