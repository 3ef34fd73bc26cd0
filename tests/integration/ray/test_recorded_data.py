"""On Ray, a run continues on data that moved, and leaves out what is gone; its workers see the same files as the driver."""

import json
import os

import pyarrow.parquet as pq
import pytest

from crmuons.cli import main
from tests.integration.conftest import Bench

# Ray warns of settings of its own, which fail no command.
pytestmark = [pytest.mark.ray, pytest.mark.timeout(900), pytest.mark.filterwarnings("default")]


@pytest.mark.usefixtures("cluster")
def test_moved_and_missing_files_reach_the_workers(bench: Bench, monkeypatch, capsys) -> None:
    monkeypatch.chdir(bench.folder)

    def train(*words: str) -> int:
        return main(["train", "small.toml", "run.name=moved", "run.resume=auto", *words])

    data = bench.folder / "own"
    data.mkdir()
    rows = pq.read_table(bench.folder / "data")
    part = len(rows) // 3
    for number in range(3):
        pq.write_table(rows.slice(number * part, part), data / f"{number}.parquet")
    assert train("train.steps=10", f"data.train={data}") == 0
    assert "finished after 10 steps" in capsys.readouterr().out
    moved = data.rename(bench.folder / "moved")
    (moved / "1.parquet").unlink()
    os.truncate(moved / "0.parquet", 1000)
    again = (f"data.train={moved}", "train.steps=60", "scaling.num_workers=1")
    assert train(*again) == 1
    error = capsys.readouterr().err
    assert "2 of the 3 files that the run began with cannot be used" in error
    assert "Traceback" not in error
    assert train(*again, "data.skip_missing=true") == 0
    said = capsys.readouterr().out
    assert "finished after 60 steps" in said
    assert "left out 2 files that are gone, damaged or changed" in said
    run = bench.run("moved")
    assert len(json.loads((run / "moved.json").read_text())) == 1
    assert sorted(path.name[:9] for path in (run / "quarantine").iterdir()) == ["skipped-0", "skipped-1"]
