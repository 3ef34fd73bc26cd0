"""The reader of crmuons' own JSON files names the file, the key and the remedy, whatever is in the file."""

from pathlib import Path

import pytest

from crmuons.storage import records

NAMED_OTHERWISE = {
    "arrow.py",  # The metadata of a Parquet file.
    "shuffle.py",
    "shards.py",  # Metadata with a checksum, read where damage is named.
    "claims.py",  # A damaged claim counts as one of another machine.
    "transfer.py",
    "data.py",  # Blocks of this process's own tasks, never on a disk.
}

WRONG = {
    b"": "Expecting value",
    b"\xff\xfe\x00": "can't decode|Expecting value",
    b'{"a": 1': "Expecting",
    b"[1]": "holds list, expected dict",
    b"null": "holds NoneType, expected dict",
    b"{}": "it has no 'a'",
    b"[" * 100_000: "nested too deeply",
}


@pytest.mark.parametrize("content", WRONG, ids=WRONG.values())
@pytest.mark.parametrize("remote", [False, True])
def test_a_damaged_file_is_named_with_the_remedy(content, remote, tmp_path):
    path = tmp_path / "r.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=rf"r\.json is damaged, .*({WRONG[content]}).*; copy it back") as caught:
        records.read(f"file://{path}" if remote else path, keys=("a",))
    assert len(str(caught.value).splitlines()) == 1


def test_the_damaged_line_of_many_is_numbered_and_an_unfinished_one_is_left(tmp_path):
    path = tmp_path / "m.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n{"st')
    assert [line["step"] for line in records.read_lines(path, keys=("step",))] == [1, 2]
    path.write_text('{"step": 1}\n{"sep": 2}\n')
    with pytest.raises(ValueError, match=r"m\.jsonl, line 2, is damaged.*it has no 'step'.*; drop it"):
        list(records.read_lines(path, keys=("step",), remedy="drop it"))


def test_only_the_reader_parses_json_that_crmuons_wrote():
    """A second parser would have errors of its own. Answers of servers, and text in files of others, are not ours."""
    root = Path(records.__file__).parents[2]
    elsewhere = {"pelican", "gpu", "benchmark"}
    for path in (path for package in ("crmuons", "tune") for path in (root / package).rglob("*.py")):
        source = path.read_text().replace("json.loads(json.dumps(", "")  # A copy of values, not of a file.
        if "json.loads(" in source and not elsewhere & set(path.parts):
            handled = "damage_named" in source or "except (ValueError" in source or "except ValueError" in source
            assert handled or path.name in {"records.py", "bundles.py", "standalone.py"} | NAMED_OTHERWISE, path
