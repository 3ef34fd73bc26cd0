"""On Ray, a run continues on data that moved, and leaves out what is gone; its workers see the same files as the driver."""

import json
import os

import pyarrow.parquet as pq
import pytest

from tests.integration.conftest import Bench, output

pytestmark = [pytest.mark.ray, pytest.mark.timeout(900)]


def test_moved_and_missing_files_reach_the_workers(bench: Bench) -> None:
    data = bench.folder / "own"
    data.mkdir()
    rows = pq.read_table(bench.folder / "data")
    part = len(rows) // 3
    for number in range(3):
        pq.write_table(rows.slice(number * part, part), data / f"{number}.parquet")
    words = ("scaling.num_workers=1", "run.name=moved", "run.resume=auto")
    assert "finished after 10 steps" in output(bench.train("train.steps=10", f"data.train={data}", *words), 0)
    moved = data.rename(bench.folder / "moved")
    (moved / "1.parquet").unlink()
    again = ("train.steps=60", f"data.train={moved}", *words)
    assert "1 of the 3 files that the run began with cannot be used" in output(bench.train(*again), 1)
    said = output(bench.train(*again, "data.skip_missing=true"), 0)
    assert "finished after 60 steps" in said
    assert "left out 1 files that are gone, damaged or changed" in said
    run = bench.run("moved")
    assert len(json.loads((run / "moved.json").read_text())) == 2
    assert [path.name.startswith("skipped-1") for path in (run / "quarantine").iterdir()] == [True]
    os.truncate(moved / "0.parquet", 1000)
    process = bench.train("train.steps=120", f"data.train={moved}", *words, "data.skip_missing=true")
    assert "finished after 120 steps" in output(process, 0)
    assert len(list((run / "quarantine").iterdir())) == 2
