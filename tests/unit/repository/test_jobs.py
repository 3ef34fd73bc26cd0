"""The entry points in jobs/: every job that fails ends with one sentence and an exit code that Ray passes on."""

import runpy
import sys
from pathlib import Path

import pytest

FAILING = {
    "benchmark": (["read", "--data", "/nowhere"], "crmuons benchmark: nothing to read at '/nowhere'"),
    "compare_corsika": (["/nowhere"], "compare_corsika: nothing to read at '/nowhere'"),
    "evaluate": (["--truth", "/nowhere", "--model", "/nowhere", "--out", "out"], "crmuons evaluate: "),
    "generate": (["--model", "/nowhere", "--spectrum", "events=1", "--out", "out"], "crmuons generate: "),
    "prepare": (["/nowhere", "--out", "out"], "crmuons prepare: nothing to read at '/nowhere'"),
    "simulate": (["--events", "1", "--energy-range", "1e6", "1e5", "--out", "out"], "crmuons simulate: "),
    "sweep": (["small.toml", "data.train=/nowhere"], "crmuons sweep: nothing to read at '/nowhere'"),
    "train": (["small.toml", "data.train=/nowhere"], "crmuons train: nothing to read at '/nowhere'"),
    "validate": (["/nowhere", "--out", "out"], "crmuons validate: nothing to read at '/nowhere'"),
    "wait_for_nodes": (["2", "--seconds=0"], "wait_for_nodes: nothing listens at RAY_ADDRESS"),
}
JOBS = sorted(path.stem for path in (Path(__file__).parents[3] / "jobs").glob("*.py") if path.stem != "__init__")


@pytest.mark.parametrize("job", ["compare_corsika", "wait_for_nodes"])
def test_a_job_of_its_own_ends_in_one_sentence_after_an_error_that_nobody_foresaw(job, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr("argparse.ArgumentParser.parse_args", lambda _: {}["gone"])
    monkeypatch.setattr(sys, "argv", [job, "x"])
    with pytest.raises(SystemExit, match="70"):
        runpy.run_module(f"jobs.{job}", run_name="__main__")
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1
    assert said[0].startswith(f"{job}: an error that crmuons did not foresee (KeyError: 'gone'); please report it with")


@pytest.mark.parametrize("job", JOBS)
def test_a_job_that_fails_says_why_in_its_last_line(job, tmp_path, monkeypatch, capsys):
    words, reason = FAILING[job]
    monkeypatch.chdir(tmp_path)
    Path("small.toml").write_text("[train]\nsteps = 10\nvalidate_every = 1\n")
    if job == "wait_for_nodes":
        monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    monkeypatch.setattr(sys, "argv", [job, *words])
    with pytest.raises(SystemExit) as ended:
        runpy.run_module(f"jobs.{job}", run_name="__main__")
    assert ended.value.code == 1
    assert capsys.readouterr().err.splitlines()[-1].startswith(reason)
