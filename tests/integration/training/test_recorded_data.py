"""A run continues on the data that it began with, and on no others, whatever happened to the files in between."""

import json
import os
import re
import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from crmuons.cli import main
from crmuons.data import arrow, quarantine
from crmuons.runs.directory import Run
from tests.integration.training.conftest import SMALL

pytestmark = pytest.mark.usefixtures("no_figures")


@pytest.fixture(scope="module")
def begun(tmp_path_factory, toy_events, write_toy):
    """Four files, and a run of four steps on them, which is about an epoch."""
    root = tmp_path_factory.mktemp("begun")
    for number in range(4):
        write_toy(root / "data" / f"{number}.parquet", toy_events(100, seed=number))
    assert train(root) == 0
    return root


@pytest.fixture(scope="module")
def unchanged(begun, tmp_path_factory):
    """The losses of the run when it continues on its data as they were."""
    kept = shutil.copytree(begun / "runs", tmp_path_factory.mktemp("kept") / "runs")
    assert continued(begun) == 0
    losses = metrics(begun)
    shutil.rmtree(begun / "runs")
    shutil.move(kept, begun / "runs")
    return losses


@pytest.fixture
def root(begun, tmp_path, monkeypatch):
    """A copy of the run and its data at the same path as when it began."""
    monkeypatch.setattr(quarantine, "_named", set())
    shutil.copytree(begun, tmp_path / "kept")
    yield begun
    shutil.rmtree(begun)
    shutil.copytree(tmp_path / "kept", begun)


def train(root, *words):
    (root / "small.toml").touch()
    where = f"data.train={root / 'data'}"
    return main(["train", str(root / "small.toml"), *SMALL, where, f"run.storage_path={root / 'runs'}", *words])


def continued(root, *words):
    return train(root, "train.steps=8", *words)


def metrics(root):
    """The losses of each step."""
    lines = [json.loads(line) for line in (root / "runs" / "r" / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name.startswith("train/")} for line in lines]


def skipped(root):
    folder = root / "runs" / "r" / "quarantine"
    rows = [pq.read_table(path).to_pylist()[0] for path in sorted(folder.glob("skipped-*"))]
    return {Path(row["source"]).name: row["reason"] for row in rows}


def overwrite(path, content):
    path.write_bytes(content)
    os.utime(path, (1, 1))  # Long after or before, but not the time of the first writing.


def grow(path, toy_events):
    arrow.write_events(path, [arrow.to_table(toy_events(300, seed=77))])


def replace_in_place(path, toy_events):
    overwrite(path, path.read_bytes()[:-40] + bytes(reversed(path.read_bytes()[-40:])))


def remove(path, toy_events):
    path.unlink()


CHANGES = {
    grow: r"1\.parquet has changed: \d+ bytes when it was listed, \d+ bytes now",
    replace_in_place: r"1\.parquet has changed: \d+ bytes of .*, end [0-9a-f]{16} when it was listed",
    remove: r"1\.parquet is gone; it had \d+ bytes when it was listed",
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_file_is_refused_by_name_and_left_out_if_asked(root, change, toy_events, capsys, caplog):
    change(root / "data" / "1.parquet", toy_events)
    steps = len(metrics(root))
    assert continued(root) == 1
    said = capsys.readouterr().err
    assert "1 of the 4 files that the run began with cannot be used" in said
    assert "data.skip_missing=true" in said
    assert re.search(CHANGES[change], said)
    assert len(metrics(root)) == steps  # Nothing was trained.
    caplog.clear()
    assert continued(root, "data.skip_missing=true", "train.steps=12") == 0
    assert sum("1.parquet" in record.message for record in caplog.records) == 1  # Named once, however many epochs.
    assert list(skipped(root)) == ["1.parquet"]
    assert re.search(CHANGES[change], skipped(root)["1.parquet"])
    assert Run(root / "runs" / "r").latest_metrics()["data/skipped_slices"] >= 1
    assert "left out 1 files that are gone, damaged or changed" in capsys.readouterr().out


def test_touched_and_copied_data_are_the_same_data(unchanged, root):
    for path in (root / "data").iterdir():
        content = path.read_bytes()
        path.unlink()
        overwrite(path, content)
    assert continued(root) == 0
    assert metrics(root) == unchanged


def test_moved_data_are_found_by_content_and_recorded(unchanged, root, caplog, capsys):
    (root / "new" / "below").mkdir(parents=True)
    for number in range(4):
        shutil.move(root / "data" / f"{number}.parquet", root / "new" / "below" / f"x{3 - number}.parquet")
    assert continued(root, f"data.train={root / 'new'}") == 0
    assert metrics(root) == unchanged
    moved = json.loads((root / "runs" / "r" / "moved.json").read_text())
    assert moved == {
        str(root / "data" / f"{n}.parquet"): str(root / "new" / "below" / f"x{3 - n}.parquet") for n in range(4)
    }
    assert "4 training files have moved" in caplog.text
    (root / "new" / "below" / "x0.parquet").unlink()
    assert continued(root, f"data.train={root / 'new'}", "train.steps=10") == 1
    assert "1 of the 4 files" in capsys.readouterr().err
    assert continued(root, f"data.train={root / 'new'}", "train.steps=10", "data.skip_missing=true") == 0
    assert list(skipped(root)) == ["3.parquet"]


def test_other_data_are_no_moved_data(root, toy_events, write_toy, capsys):
    for number in range(4):
        write_toy(root / "other" / f"{number}.parquet", toy_events(100, seed=50 + number))
    for words in ((), ("data.skip_missing=true",)):
        assert continued(root, f"data.train={root / 'other'}", *words) == 1
        assert (
            "4 of the 4 files that the run began with cannot be used: data.train has no file" in capsys.readouterr().err
        )


def test_a_file_that_moved_keeps_the_ids_of_its_rows(root, toy_events, tmp_path):
    for path in (root / "data").iterdir():
        pq.write_table(pq.read_table(path).drop_columns(["primary_major_id", "primary_minor_id"]), path)
    shutil.rmtree(root / "runs")
    assert train(root) == 0
    shutil.copytree(root / "runs", root / "again")
    assert continued(root) == 0
    expected = metrics(root)
    shutil.rmtree(root / "runs")
    shutil.move(root / "again", root / "runs")
    for path in (root / "data").iterdir():
        path.rename(path.with_name(f"renamed-{path.name}"))
    assert continued(root, f"data.train={root / 'data'}/*") == 0
    assert metrics(root) == expected  # Other ids would put other events into the training split.


def test_new_files_are_said_and_not_read(root, toy_events, write_toy, caplog):
    write_toy(root / "data" / "9.parquet", toy_events(20, seed=9))
    assert continued(root) == 0
    assert "the run does not read 1 files of data.train" in caplog.text
    assert f"the first is {root / 'data' / '9.parquet'}" in caplog.text


def test_a_file_that_is_replaced_during_the_run_stops_it(root, toy_events, monkeypatch, capsys):
    from crmuons.training.trainer import Trainer

    step = Trainer.step

    def replacing(self, batches):
        if self.num_steps == 6:
            grow(root / "data" / "2.parquet", toy_events)
        return step(self, batches)

    monkeypatch.setattr(Trainer, "step", replacing)
    assert train(root, "train.steps=200") == 1
    said = capsys.readouterr().err
    assert "2.parquet has changed" in said
    assert "run.resume=auto continues" in said


def test_a_file_that_is_removed_during_the_run_may_be_left_out(root, monkeypatch):
    from crmuons.training.trainer import Trainer

    step = Trainer.step

    def removing(self, batches):
        (root / "data" / "2.parquet").unlink(missing_ok=True)
        return step(self, batches)

    monkeypatch.setattr(Trainer, "step", removing)
    assert train(root, "train.steps=12", "data.skip_missing=true") == 0
    assert list(skipped(root)) == ["2.parquet"]


def test_broken_files_are_left_out_of_a_new_run_if_asked(root, capsys):
    shutil.rmtree(root / "runs")
    (root / "data" / "0.parquet").write_bytes(b"no Parquet")
    assert train(root) == 1
    assert "0.parquet is not a Parquet file" in capsys.readouterr().err
    assert train(root, "data.skip_missing=true") == 0
    assert list(skipped(root)) == ["0.parquet"]


def test_a_run_without_digests_continues_and_is_told_once(root, toy_events, caplog, capsys):
    record = root / "runs" / "r" / "files.json"
    record.write_text(json.dumps([[url, size] for url, size, *_ in json.loads(record.read_text())]))
    assert continued(root) == 0
    assert sum("recorded only the sizes of its training files" in line.message for line in caplog.records) == 1
    assert len(json.loads(record.read_text())[0]) == 2  # Nothing of the run's start is rewritten.
    grow(root / "data" / "1.parquet", toy_events)
    assert continued(root, "train.steps=10") == 1
    assert "1.parquet has changed" in capsys.readouterr().err
    assert continued(root, "train.steps=10", "data.skip_missing=true") == 0
    assert list(skipped(root)) == ["1.parquet"]


def test_a_finished_run_answers_the_same_without_its_data(root):
    shutil.rmtree(root / "data")
    assert train(root) == 0


def test_prepared_shards_that_were_replaced_are_refused(root, capsys):
    words = (f"data.train={root / 'ready'}", "run.name=p")
    assert main(["prepare", str(root / "data"), "--out", str(root / "ready")]) == 0
    assert train(root, *words) == 0
    shutil.rmtree(root / "ready")
    assert main(["prepare", str(root / "data"), "--out", str(root / "ready")]) == 0  # Byte for byte the same.
    assert continued(root, *words) == 0
    shutil.rmtree(root / "ready")
    assert main(["prepare", str(root / "data"), "--out", str(root / "ready"), "--seed", "1"]) == 0
    capsys.readouterr()
    assert train(root, *words, "train.steps=10") == 1
    assert "shard-00000.arrow has changed" in capsys.readouterr().err


def test_the_fingerprint_follows_the_content_and_not_the_time(root, tmp_path):
    record, run = root / "runs" / "r" / "files.json", Run(root / "runs" / "r")
    before = run.fingerprint()
    files = json.loads(record.read_text())
    record.write_text(json.dumps([[url, size, "1", digest] for url, size, _, digest in files]))
    assert run.fingerprint() == before
    record.write_text(json.dumps([[url, size, stamp, digest[::-1]] for url, size, stamp, digest in files]))
    assert run.fingerprint() != before
    record.write_text("[[")
    with pytest.raises(ValueError, match=r"files\.json is damaged, or was not written by crmuons"):
        run.load_files()


@pytest.mark.parametrize("copied", [False, True])
def test_validation_files_among_the_training_files_are_said(root, copied, caplog):
    shutil.rmtree(root / "runs")
    place = root / "data" / "0.parquet"
    if copied:
        place = shutil.copy(place, root / "elsewhere.parquet")
    assert train(root, f"data.validation={place}", "train.steps=1") == 0
    assert "1 files of data.validation are also in data.train" in caplog.text
    assert "how well the model fits its training events, not how well it generalises" in caplog.text


def test_validation_files_of_their_own_are_not(root, toy_events, write_toy, caplog):
    shutil.rmtree(root / "runs")
    write_toy(root / "held.parquet", toy_events(100, seed=40))
    assert train(root, f"data.validation={root / 'held.parquet'}", "train.steps=1") == 0
    assert "are also in data.train" not in caplog.text


def test_raw_validation_files_of_prepared_training_data_are_said(root, caplog):
    assert main(["prepare", str(root / "data"), "--out", str(root / "ready")]) == 0
    words = (
        f"data.train={root / 'ready'}", f"data.validation={root / 'data' / '0.parquet'}", "run.name=p", "train.steps=1"
    )  # fmt: skip
    assert train(root, *words) == 0
    assert "1 files of data.validation are also in data.train" in caplog.text
