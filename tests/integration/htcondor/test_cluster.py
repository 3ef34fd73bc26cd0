"""What the HTCondor job runs, without a pool around it: evicted, it saves a checkpoint; started again, it goes on."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from crmuons.runs import checkpoint
from crmuons.runs.directory import Run
from tests.integration.conftest import Bench, output, wait_for

ROOT = Path(__file__).parents[3]
CHECKPOINTED = 85  # checkpoint_exit_code of cluster/htcondor/train.sub


@pytest.fixture
def scratch(bench: Bench, tmp_path: Path) -> Path:
    """The job's directory, with what HTCondor transfers."""
    shutil.copy(bench.folder / "small.toml", tmp_path)
    return tmp_path


def start(bench: Bench, scratch: Path, *words: str) -> "subprocess.Popen[str]":
    path = f"{Path(sys.executable).parent}{os.pathsep}{bench.environment['PATH']}"
    return bench.start(str(ROOT / "cluster" / "htcondor" / "train.sh"), *words, cwd=scratch, PATH=path)


def test_an_evicted_job_goes_on_where_it_was(bench: Bench, scratch: Path) -> None:
    run = Run(scratch / "runs" / "first")
    words = ("small.toml", f"data.train={bench.folder}/data", "run.name=first")
    evicted = start(bench, scratch, *words, "train.steps=100000")
    wait_for(lambda: run.latest_metrics().get("step", 0) > 0)
    evicted.terminate()
    output(evicted, CHECKPOINTED)
    saved = max(checkpoint.steps(run.checkpoints))
    again = start(bench, scratch, *words, f"train.steps={saved + 4}")
    assert f"finished after {saved + 4} steps" in output(again, 0)


def test_a_job_that_fails_says_so_and_leaves_what_is_fetched(bench: Bench, scratch: Path) -> None:
    assert "no preset at gone.toml" in output(start(bench, scratch, "gone.toml"), 1)
    assert (scratch / "runs").is_dir()
