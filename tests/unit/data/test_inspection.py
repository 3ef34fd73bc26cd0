"""`crmuons inspect` names every file that cannot be read, whichever rows it reads."""

import os
import re
import shutil
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from crmuons.cli import main
from crmuons.data.inspection import inspect


@pytest.fixture
def folder(tmp_path, toy_events, write_toy):
    for number in range(3):
        write_toy(tmp_path / "data" / f"good-{number}.parquet", toy_events(200, seed=number))
    return tmp_path / "data"


def flip(path):
    content = bytearray(path.read_bytes())
    content[2000:2200] = bytes(200)
    path.write_bytes(content)


def doubled(path, name):
    table = pq.read_table(path)
    pq.write_table(pa.Table.from_arrays([*table.columns, table["primary"]], [*table.column_names, name]), path)


def test_every_broken_file_is_named_with_its_reason_and_counted(folder, capsys):
    good = folder / "good-0.parquet"
    (folder / "cut.parquet").write_bytes(good.read_bytes()[:3000])
    (folder / "empty.parquet").touch()
    (folder / "text.parquet").write_text("muons")
    flip(shutil.copy(good, folder / "flipped.parquet"))
    doubled(shutil.copy(good, folder / "doubled.parquet"), "muons")
    pq.write_table(pa.table({"x": [1]}), folder / "foreign.parquet")
    assert main(["inspect", str(folder)]) == 1
    said = capsys.readouterr().out
    assert "broken    6 of 9 files:" in said
    for name, reason in {
        "cut": "is not a Parquet file, or is damaged or cut short",
        "empty": "Parquet file size is 0 bytes",
        "text": "is not a Parquet file",
        "flipped": "is not a Parquet file, or is damaged",
        "doubled": "2 columns have the name 'muons'",
        "foreign": "no column 'primary'",
    }.items():
        (line,) = [line for line in said.splitlines() if f"{name}.parquet" in line]
        assert reason in line
    assert "rows      1,800" in said


def test_a_broken_file_is_found_even_if_no_row_of_it_would_be_read(folder, capsys):
    (folder / "empty.parquet").touch()
    assert main(["inspect", str(folder), "--rows", "1"]) == 1
    assert "broken    1 of 4 files:" in capsys.readouterr().out


def test_good_files_and_a_column_twice_that_nobody_reads_are_good(folder, capsys):
    path = folder / "good-0.parquet"
    doubled(path, "extra")
    doubled(path, "extra")
    assert main(["inspect", str(folder)]) == 0
    assert "broken" not in capsys.readouterr().out


def test_broken_shards_are_named_beside_each_other(folder, tmp_path, capsys):
    out = tmp_path / "ready"
    assert main(["prepare", str(folder), "--out", str(out)]) == 0
    (shard,) = (out / "train").iterdir()
    os.truncate(shard, 500)
    (out / "test" / "shard-00000.arrow").unlink()
    capsys.readouterr()
    assert main(["inspect", str(out)]) == 1
    said = capsys.readouterr().out
    assert "broken    2 of 3 files:" in said
    assert "test/shard-00000.arrow is in the manifest but missing" in said
    assert "train/shard-00000.arrow has 500 bytes" in said


def test_what_is_wrong_with_the_predecessors_files_is_said(folder, capsys):
    (folder / "dump.h5.parquet").write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(100))
    wide = pa.table({"primary": pa.array([[1.0] * 7] * 5), "muons": pa.array([[[1.0] * 6]] * 5)})
    pq.write_table(wide, folder / "wide.parquet")
    assert main(["inspect", str(folder)]) == 1
    said = capsys.readouterr().out
    assert "dump.h5.parquet is not a Parquet file, but HDF5 (crmuons convert hdf5" in said
    assert re.search(r"unusable  5 rows: column 'primary' is not 4 wide .*\(found 7\)", said)


def test_numbers_at_the_end_of_float32_are_described(tmp_path, toy_events, write_toy):
    events = toy_events(100)
    primaries = events.primaries.copy()
    primaries[:, 3] = 3e38
    muons = events.muons * np.float32([1, 0, 0]) + np.float32([0, 3e38, 3e38])
    write_toy(tmp_path / "far.parquet", replace(events, primaries=primaries, muons=muons))
    lines = list(inspect([str(tmp_path)], max_rows=None).lines(0))
    assert any(line.split()[:2] == ["primary", "depth_m"] and line.split()[3] == "3e+38" for line in lines)
    assert any("radius_m" in line and line.split()[-1] == "4.2426e+38" for line in lines)
    assert sum(line.startswith("doubtful") for line in lines) == 2
