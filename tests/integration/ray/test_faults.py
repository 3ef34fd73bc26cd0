"""Errors of users and of machines, from the command line: one clear sentence, exit code 1, and nothing is lost."""

import json
import os
import re
import signal
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from crmuons.cli import main
from crmuons.models import saved_model
from crmuons.runs import checkpoint
from crmuons.runs.directory import Run
from tests.integration.conftest import TRACKED, Bench, fill, output, wait_for


def rows(bench: Bench) -> pa.Table:
    return pq.read_table(bench.folder / "data" / "events-00000.parquet")


def with_column(table: pa.Table, name: str, values: pa.Array) -> pa.Table:
    return table.set_column(table.column_names.index(name), name, values)


def with_primaries(table: pa.Table, change) -> pa.Table:
    """Return the table after `change` has changed its primaries [N, 4] in place."""
    values = np.array(table["primary"].to_pylist(), np.float32)
    change(values)
    return with_column(table, "primary", pa.array(list(values), pa.list_(pa.float32())))


def in_kilometres(values: np.ndarray) -> None:
    values[:, 3] /= 1000


def spoil(share: float):
    def change(values: np.ndarray) -> None:
        values[: int(share * len(values)), 0] = np.nan

    return change


BAD_DATA = {
    "text": (lambda t: b"no Parquet at all", r"bad/text.parquet is not a Parquet file"),
    "cut": (None, "bad/cut.parquet is not a Parquet file, or is damaged or cut short"),
    "no_muons": (
        lambda t: t.drop_columns(["muons"]),
        "bad/no_muons.parquet: no column 'muons' (found primary_major_id",
    ),
    "typed": (
        lambda t: with_column(t, "muons", pa.array(["a"] * len(t))),
        "column 'muons' has type string, expected list<list<float32>>",
    ),
    "wide": (
        lambda t: with_column(t, "primary", pa.array([[1e6, 0.1, 1.0]] * len(t), pa.list_(pa.float32()))),
        "4000 of the first 4000 rows read cannot be used",
    ),
    "no_rows": (lambda t: t.slice(0, 0), "have no rows"),
    "kilometres": (lambda t: with_primaries(t, in_kilometres), "depths are in metres, this looks like kilometres"),
    "nan": (
        lambda t: with_primaries(t, spoil(0.5)),
        "2000 of the first 4000 rows read cannot be used, more than data.max",
    ),
    "empty_events": (
        lambda t: with_column(t, "muons", pa.array([[]] * len(t), pa.list_(pa.list_(pa.float32())))),
        "the features need 100: are nearly all events empty",
    ),
}


@pytest.fixture
def refused(bench: Bench, monkeypatch, capsys, caplog):
    """Runs `crmuons train small.toml WORDS` in this process, which saves seconds of imports; returns its output."""

    def command(*words: str) -> str:
        monkeypatch.chdir(bench.folder)
        assert main(["train", "small.toml", "data.train=data", "train.steps=2", *words]) == 1
        (sentence,) = capsys.readouterr().err.splitlines()
        assert sentence.startswith("crmuons train: ")
        return f"{caplog.text}\n{sentence}"

    return command


@pytest.mark.parametrize("name", BAD_DATA)
def test_data_that_cannot_be_used_are_named_and_leave_no_run_behind(bench: Bench, refused, name: str) -> None:
    make, message = BAD_DATA[name]
    path = bench.folder / "bad" / f"{name}.parquet"
    path.parent.mkdir(exist_ok=True)
    made = (
        path.parent.parent.joinpath("data/events-00000.parquet").read_bytes()[:9999]
        if make is None
        else make(rows(bench))
    )
    if isinstance(made, bytes):
        path.write_bytes(made)
    else:
        pq.write_table(made, path)
    assert message in refused(f"data.train=bad/{name}.parquet", f"run.name=bad-{name}")
    assert not bench.run(f"bad-{name}").exists()


WRONG_SETTINGS = {
    "data.train=nowhere": "nothing to read at 'nowhere': no such file or directory",
    "data.train=nowhere/*.parquet": "the glob matches no file",
    "data.train=vacant": "the directory holds no file ending in .parquet",
    "data.trian=data": "unknown setting 'data.trian'; the nearest valid one is 'data.train'",
    "train.steps=0": "train.steps: Input should be greater than or equal to 1 (got 0)",
    "train.steps": "'train.steps' is not of the form section.key=value",
    "run.storage_path=small.toml": "small.toml is a file; choose another name",
    "data.train=https://host/a.parquet?token=hush": "https://host/a.parquet?token=***' carries a secret (token=...), which files and logs would keep",
}


@pytest.mark.parametrize("word", WRONG_SETTINGS)
def test_wrong_settings_are_said_in_one_sentence(bench: Bench, refused, word: str) -> None:
    (bench.folder / "vacant").mkdir(exist_ok=True)
    said = refused("run.name=wrong", word)
    assert WRONG_SETTINGS[word] in said
    assert "hush" not in said
    assert not bench.run("wrong").exists()


def test_presets_that_cannot_be_read(bench: Bench) -> None:
    (bench.folder / "broken.toml").write_text("[train\nsteps=1")
    assert "no preset at gone.toml" in output(bench.crmuons("train", "gone.toml"), 1)
    assert "broken.toml is not TOML" in output(bench.crmuons("train", "broken.toml"), 1)


def test_a_few_bad_rows_and_large_events_are_set_aside_counted_and_said(bench: Bench) -> None:
    (bench.folder / "few").mkdir()
    pq.write_table(with_primaries(rows(bench), spoil(0.005)), bench.folder / "few" / "events.parquet")
    words = (
        "data.train=few",
        "data.max_muons_per_event=50",
        "train.steps=20",
        "run.name=few",
    )
    said = output(bench.train(*words), 0)
    run = bench.run("few")
    quarantined = pq.read_table(run / "quarantine")
    assert len(quarantined) == 20
    assert set(quarantined["reason"].to_pylist()) == {"primary holds NaN or infinity"}
    assert sorted(quarantined["row"].to_pylist()) == list(range(20))
    outliers = pq.read_table(run / "outliers", schema=rows(bench).schema)
    assert min(map(len, outliers["muons"].to_pylist())) > 50
    assert re.search(rf"rows read, which cannot be used \(.*\): {run / 'quarantine'}", said)
    assert re.search(rf"{run / 'outliers'}", said)


def test_validation_data_of_their_own_files_without_ids_and_less_than_a_batch(bench: Bench) -> None:
    pq.write_table(rows(bench).slice(0, 40).select(["primary", "muons"]), bench.folder / "short.parquet")
    words = (
        "data.train=short.parquet",
        "data.validation=data",
        "train.steps=8",
        "run.name=short",
    )
    output(bench.train(*words), 0)
    assert (bench.run("short") / "model").is_dir()


def test_too_few_muons_to_learn_from_are_refused(bench: Bench, refused) -> None:
    table = rows(bench).slice(0, 400)
    muons: list[list[list[float]]] = [[] for _ in range(400)]
    muons[7] = [[500.0, 1.0, -2.0], [900.0, 0.5, 3.0]]
    pq.write_table(
        with_column(table, "muons", pa.array(muons, pa.list_(pa.list_(pa.float32())))), bench.folder / "one.parquet"
    )
    assert "has 2 muons, and the features need 100" in refused(
        "data.train=one.parquet", "data.validation=data", "data.test_share=0"
    )


def test_a_file_that_turns_bad_on_the_way_stops_the_run_and_mended_it_goes_on(bench: Bench) -> None:
    path = bench.folder / "turning.parquet"
    good = (bench.folder / "data" / "events-00000.parquet").read_bytes()
    path.write_bytes(good)
    run = bench.run("turning")
    words = ("data.train=turning.parquet", "run.name=turning", "run.resume=auto")
    process = bench.train(*words, "train.steps=100000")
    wait_for(lambda: checkpoint.latest(run / "checkpoints"))
    path.write_bytes(bytes(len(good)))
    said = output(process, 1)
    assert "turning.parquet has changed" in said
    assert "run.resume=auto continues" in said
    path.write_bytes(good)
    last = max(checkpoint.steps(run / "checkpoints"))
    assert f"finished after {last + 5} steps" in output(bench.train(*words, f"train.steps={last + 5}"), 0)


def test_a_learning_rate_beyond_reason_leaves_no_nan_in_a_checkpoint(bench: Bench) -> None:
    words = ("train.optimizer.lr=1000", "train.optimizer.warmup_steps=0", "train.steps=40", "run.checkpoint_every=1")
    process = bench.train(*words, "run.name=wild")
    said, _ = process.communicate(timeout=400)
    assert "Traceback" not in said
    assert process.returncode == 0 or "is NaN or infinite" in said, said
    for saved in checkpoint.steps(bench.run("wild") / "checkpoints").values():
        weights = torch.load(saved / "weights.pt", weights_only=True)
        assert all(torch.isfinite(value).all() for value in weights.values() if value.is_floating_point())


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a tmpfs needs root")
def test_a_full_disk_stops_the_run_and_freeing_space_continues_it(
    bench: Bench, small_disk: Callable[[Path, str], AbstractContextManager[None]]
) -> None:
    disk = bench.folder / "disk"
    words = ("run.storage_path=disk", "run.name=full", "train.steps=200")
    with small_disk(disk, "3m"):
        process = bench.train(*words)
        wait_for(lambda: checkpoint.steps(disk / "full" / "checkpoints"))
        ballast = disk / "ballast"
        fill(ballast)
        said = output(process, 1)
        assert "No space left on device" in said
        assert "run.resume=auto continues" in said
        last = checkpoint.latest(disk / "full" / "checkpoints")
        assert saved_model.load_model(last)
        ballast.unlink()
        assert "finished after 200 steps" in output(bench.train(*words, "run.resume=auto"), 0)


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a tmpfs needs root")
def test_why_a_worker_failed_is_written_down_on_a_full_disk(
    tmp_path: Path, small_disk: Callable[[Path, str], AbstractContextManager[None]]
) -> None:
    with small_disk(tmp_path / "disk", "200k"):
        run = Run(tmp_path / "disk" / "run")
        run.directory.mkdir()
        run.reserve_failure()
        fill(tmp_path / "disk" / "ballast")
        run.fail({"error": "no room"})
        assert json.loads(run.failure.read_text()) == {"error": "no room"}


def test_a_dead_mlflow_server_loses_nothing_and_sync_sends_it(bench: Bench) -> None:
    words = ("train.steps=10", "run.name=dead", TRACKED)
    dead = {"MLFLOW_TRACKING_URI": "http://user:hush@127.0.0.1:9", "MLFLOW_TRACKING_PASSWORD": "hush-too"}
    said = output(bench.train(*words, **dead), 0)
    assert f"crmuons sync {bench.run('dead')}" in said
    assert "entries of this run; they are kept" in said
    store = f"sqlite:///{bench.folder}/later.db"
    sent = output(bench.crmuons("sync", str(bench.run("dead")), MLFLOW_TRACKING_URI=store), 0)
    assert "sent to MLflow run" in sent
    again = output(bench.train(*words, "run.resume=auto", MLFLOW_TRACKING_URI=store), 0)
    assert "crmuons sync" not in again
    written = [path for path in bench.run("dead").rglob("*") if path.is_file()]
    assert len(written) > 10
    assert not [path for path in written if b"hush" in path.read_bytes()]


@pytest.mark.parametrize(
    "command",
    [
        ("simulate", "--events", "90000", "--energy-range", "1e7", "1e9", "--out", "more"),
        ("inspect", "copies"),
        ("evaluate", "--truth", "data", "--generated", "others", "--split", "all", "--out", "evaluation"),
    ],
    ids=lambda command: command[0],
)
def test_ctrl_c_ends_a_command_in_one_line(bench: Bench, command: tuple[str, ...]) -> None:
    (bench.folder / "copies").mkdir(exist_ok=True)
    for i in range(300):
        copy = bench.folder / "copies" / f"{i}.parquet"
        if not copy.exists():
            copy.hardlink_to(bench.folder / "data" / "events-00000.parquet")
    if "others" in command and not (bench.folder / "others").exists():
        words = ("--events", "4000", "--energy-range", "1e5", "1e7", "--out", "others", "--seed", "2")
        output(bench.crmuons("simulate", *words), 0)
    process = bench.crmuons(*command)
    wait_for(lambda: sum(psutil.Process(process.pid).cpu_times()[:2]) > 2, within=120)  # Past its imports.
    os.killpg(process.pid, signal.SIGINT)
    said = output(process, 130, within=120)
    assert said.strip().splitlines()[-1].startswith(f"crmuons {command[0]}: interrupted")
    assert not Path(bench.folder / "evaluation").exists()
