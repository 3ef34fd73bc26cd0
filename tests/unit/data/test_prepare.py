"""Prepared data: every legal event once in the shard of its split, however often the making is interrupted, and no damage passes."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from crmuons import config
from crmuons.cli import main
from crmuons.data.manifest import Manifest, event_files, is_shard
from crmuons.data.prepare import build, shuffle
from crmuons.data.prepare.shuffle import PrepareSettings
from crmuons.data.selection import Selection
from crmuons.models.features import fit_to_file
from crmuons.storage import listing
from crmuons.training import setup
from tests.unit.data.prepared import (
    SHARES,
    content,
    damage,
    identities,
    make,
    read_all,
)

pytestmark = pytest.mark.usefixtures("small_sizes")


def test_every_event_is_in_one_shard_of_its_split_with_its_own_muons(raw, done):
    manifest = Manifest.read(str(done))
    assert len(manifest.shards) == len(list(done.rglob("*.arrow"))) > 4
    assert sum(shard.events for shard in manifest.shards) == manifest.rows == 1200
    assert sorted(identities(read_all(raw))) == sorted(identities(read_all(done)))
    for split in ("train", "validation", "test"):
        selection = Selection(split, **SHARES)
        wanted = sorted(identities(read_all(raw, selection)))
        assert sorted(identities(read_all(done, selection))) == wanted
        assert sorted(identities(read_all(done / split))) == wanted  # The split is the folder: no id is looked at.
    assert not (done / ".scatter").exists()


def test_the_shuffle_is_global(done):
    # 840 training events, 210 of each file, in shards of the same size: each shard has some of each file.
    for file in event_files(str(done), Selection("train", **SHARES).bounds):
        showers = read_all(file.url).ids[:, 1].astype(int)  # Files hold showers 0..99, 100..199, ...
        assert set(showers // 100) == {0, 1, 2, 3}
        steps = np.diff(showers)
        assert (
            np.count_nonzero(steps == 0) < len(steps) / 10
        )  # Neighbours in the file share their shower in two of three cases.


def test_muons_are_shuffled_among_themselves(raw, done):
    before = read_all(raw)
    place_of = {tuple(muon): place for place, muon in enumerate(before.muons.tolist())}
    after = read_all(done)
    starts = np.cumsum(after.counts) - after.counts
    large = after.counts >= 10
    pairs = [
        place_of[tuple(a)] < place_of[tuple(b)]
        for a, b in zip(after.muons[starts[large]].tolist(), after.muons[starts[large] + 1].tolist(), strict=True)
    ]
    assert np.mean(pairs) == pytest.approx(
        0.5, abs=5 * 0.5 / len(pairs) ** 0.5
    )  # The first two, in the file's order or not.


def test_the_same_input_gives_the_same_files_and_nothing_is_done_twice(raw, done, tmp_path):
    make(raw, tmp_path / "again")
    again = content(tmp_path / "again")
    assert again == content(done)
    times = {path: path.stat().st_mtime_ns for path in done.rglob("*")}
    make(raw, done)
    assert {path: path.stat().st_mtime_ns for path in done.rglob("*")} == times
    make(raw, tmp_path / "other", seed=1)
    assert identities(read_all(tmp_path / "other" / "train")) != identities(read_all(done / "train"))


class KilledError(Exception):
    """Stands for SIGKILL: nothing after it runs."""


@pytest.mark.parametrize("tasks", [2, 4, 6])
def test_what_was_interrupted_goes_on_and_keeps_what_is_finished(raw, done, tmp_path, tasks):
    def some(do, jobs):
        for job in jobs:
            nonlocal tasks
            if tasks == 0:
                raise KilledError
            tasks -= 1
            yield do(job)

    begun = build.claim_dataset(tmp_path / "set", [str(raw)], PrepareSettings(**SHARES))
    with pytest.raises(KilledError):
        build.prepare_dataset(begun, fit_to_file, some)
    (tmp_path / "set" / ".scatter" / ".group-00000.arrow.partial").write_bytes(b"half")
    with pytest.raises(ValueError, match=r"set is not fully prepared; run the same `crmuons prepare` again"):
        event_files(str(tmp_path / "set"))
    finished = {path: path.stat().st_mtime_ns for path in (tmp_path / "set").rglob("*.arrow") if path.name[0] != "."}
    made = {}

    def watched(do, jobs):
        for job in jobs:
            yield do(job)
        made.update({path: path.stat().st_mtime_ns for path in finished if path.exists()})

    build.prepare_dataset(
        build.claim_dataset(tmp_path / "set", [str(raw)], PrepareSettings(**SHARES)), fit_to_file, watched
    )
    assert made == finished
    assert content(tmp_path / "set") == content(done)


def test_a_shard_without_its_receipt_is_made_again(raw, done, tmp_path):
    # The kill came between the shard and its receipt.
    begun = build.claim_dataset(tmp_path / "set", [str(raw)], PrepareSettings(**SHARES))

    def without_receipts(do, jobs):
        results = [do(job) for job in jobs]
        if do.func is shuffle.gather_shard:
            begun.plan.receipt(begun.plan.shards[0]).unlink()
            raise KilledError
        return results

    with pytest.raises(KilledError):
        build.prepare_dataset(begun, fit_to_file, without_receipts)
    make(raw, tmp_path / "set")
    assert content(tmp_path / "set") == content(done)


def test_other_settings_or_files_are_named(raw, tmp_path):
    shutil.copytree(raw, tmp_path / "raw")
    make(tmp_path / "raw", tmp_path / "set")
    with pytest.raises(ValueError, match=r"set was prepared .*: test_share was 0.1, is 0.3; seed was 0, is 5\. Name"):
        make(tmp_path / "raw", tmp_path / "set", seed=5, test_share=0.3)
    path = tmp_path / "raw" / "2" / "events.parquet"
    path.touch()  # No change of the content.
    make(tmp_path / "raw", tmp_path / "set")
    damage(path, -20)  # As large as before.
    with pytest.raises(ValueError, match=r"1 changed file, the first is .*2/events\.parquet"):
        make(tmp_path / "raw", tmp_path / "set")
    path.rename(tmp_path / "raw" / "new.parquet")
    with pytest.raises(ValueError, match=r"1 new file, the first is .*new\.parquet; 1 missing file"):
        make(tmp_path / "raw", tmp_path / "set")
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "mine.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"taken is not empty and was not made by `crmuons prepare`"):
        make(tmp_path / "raw", tmp_path / "taken")


def test_what_cannot_be_prepared_is_said_before_anything_is_written(raw, done, tmp_path):
    with pytest.raises(ValueError, match=r"shard-00000\.arrow is already prepared; name the raw files"):
        make(done, tmp_path / "set")
    # The command makes its output, for the mark of its owner, before it looks.
    (raw / "ready").mkdir()
    with pytest.raises(ValueError, match=rf"ready lies inside the data directory {raw}; name a directory outside it"):
        make(raw, raw / "ready")
    (raw / "ready").rmdir()
    with pytest.raises(ValueError, match=r"--test-share -0\.1: expected a number from 0 to 1"):
        make(raw, tmp_path / "set", test_share=-0.1)
    for shares in ({"validation_share": 0.6, "test_share": 0.4},):
        with pytest.raises(
            ValueError, match=r"leave nothing to train on; each must be at least 0, and their sum less than 1"
        ):
            make(raw, tmp_path / "set", **shares)
    with pytest.raises(ValueError, match=r"--seed -1: expected a whole number from 0"):
        make(raw, tmp_path / "set", seed=-1)
    assert not (tmp_path / "set").exists()


def spoil_rows(path, rows):
    table = pq.read_table(path)
    primaries = np.array(table["primary"].to_pylist(), np.float32)
    primaries[rows, 0] = np.nan
    column = pa.array(list(primaries), pa.list_(pa.float32()))
    pq.write_table(table.set_column(2, "primary", column), path)


def test_rows_that_cannot_be_used_are_kept_and_counted_and_too_many_are_refused(raw, tmp_path, toy_events):
    shutil.copytree(raw, tmp_path / "raw")
    spoil_rows(tmp_path / "raw" / "1" / "events.parquet", [3, 5])
    begun = build.claim_dataset(tmp_path / "set", [str(tmp_path / "raw")], PrepareSettings(**SHARES))
    with pytest.raises(
        ValueError, match=r"2 of the first \d+ rows read cannot be used, more than --max-quarantined-share 0\.001"
    ):
        build.prepare_dataset(begun, fit_to_file, max_quarantined_share=0.001)
    manifest = build.prepare_dataset(begun, fit_to_file)
    assert (manifest.rows, manifest.quarantined) == (1200, 2)
    assert sum(shard.events for shard in manifest.shards) == 1198
    assert sorted(pq.read_table(tmp_path / "set" / "quarantine")["row"].to_pylist()) == [3, 5]
    assert not any(is_shard(file) is False for file in event_files(str(tmp_path / "set")))


def test_vertical_depths_are_converted_once(raw, tmp_path):
    make(raw, tmp_path / "set", vertical_depth=True)
    vertical = Selection(vertical_depth=True)
    assert sorted(identities(read_all(tmp_path / "set", vertical))) == sorted(identities(read_all(raw, vertical)))
    settings = config.load(None, [f"data.train={tmp_path / 'set'}", "data.depth=vertical", "train.steps=1"])
    with pytest.raises(ValueError, match=r"holds prepared shards, whose depths are slant"):
        setup.set_up_run(settings)


def test_the_command_says_what_it_made_and_inspect_reads_it(raw, tmp_path, capsys):
    words = ["prepare", str(raw), "--out", str(tmp_path / "set"), "--validation-share", "0.2", "--test-share", "0.1"]
    assert main(words) == 0
    said = capsys.readouterr().out
    manifest = json.loads((tmp_path / "set" / "manifest.json").read_text())
    assert f"{len(manifest['shards'])} shards of events: test" in said
    assert main(["inspect", str(tmp_path / "set")]) == 0
    assert "rows      1,200" in capsys.readouterr().out
    assert main([*words, "--seed", "3"]) == 1
    assert "seed was 0, is 3" in capsys.readouterr().err
    assert main(["prepare", str(tmp_path / "nothing"), "--out", str(tmp_path / "new")]) == 1
    assert not (tmp_path / "new").exists()


def names_inside(raw, tmp_path):
    """Yield (data, --out) whose output lies inside the data, by name or by what links and `..` lead to."""
    (tmp_path / "x").mkdir()
    (tmp_path / "link").symlink_to(raw)
    (tmp_path / "outside").mkdir()
    (raw / "sub").symlink_to(tmp_path / "outside")
    here = raw / "ready"
    yield raw, tmp_path / "x" / ".." / raw.name / "ready"
    yield raw, tmp_path / "link" / "ready"
    yield tmp_path / "link", here
    yield raw, tmp_path / "outside" / "ready"  # A listing follows the link in the data.
    yield raw / "*", here
    yield raw / "**", raw / "0" / "ready"
    yield f"file://{raw}", here
    yield raw, raw


def test_an_output_inside_the_data_is_refused_whatever_it_is_called(raw, tmp_path):
    shutil.copytree(raw, tmp_path / "raw")
    for data, out in names_inside(tmp_path / "raw", tmp_path):
        with pytest.raises(
            ValueError, match=r"lies inside the data directory .*; name a directory outside it with --out"
        ):
            build.claim_dataset(out, [str(data)], PrepareSettings(**SHARES))
        assert not (out / "preparation.json").exists()
    build.claim_dataset(
        tmp_path / "raw" / "ready", [str(tmp_path / "raw" / "?" / "*.parquet")], PrepareSettings(**SHARES)
    )


def test_a_preparation_that_was_killed_at_its_first_rename_goes_on(raw, done, tmp_path, monkeypatch):
    def kill(*_):
        raise KilledError

    out = tmp_path / "set"
    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", kill)
        patch.setattr(Path, "unlink", lambda *_, **__: None)  # SIGKILL tidies nothing up.
        with pytest.raises(KilledError):
            make(raw, out)
    (partial,) = out.iterdir()
    assert partial.name.startswith(".preparation.json.")
    make(raw, out)
    assert content(out) == content(done)
    assert not partial.exists()


def test_a_preparation_of_an_early_version_goes_on(raw, tmp_path):
    make(raw, tmp_path / "set")
    claim = tmp_path / "set" / "preparation.json"
    request = json.loads(claim.read_text())
    request["files"] = [[url, size, int(stamp)] for url, size, stamp, _ in request["files"]]
    claim.write_text(json.dumps(request))
    make(raw, tmp_path / "set")
    request["files"][0][2] += 1
    claim.write_text(json.dumps(request))
    with pytest.raises(ValueError, match=r"1 changed file, the first is .*0/events\.parquet"):
        make(raw, tmp_path / "set")


def test_a_raw_file_that_is_replaced_while_it_is_prepared_is_named(raw, tmp_path, toy_events, write_toy):
    shutil.copytree(raw, tmp_path / "raw")
    begun = build.claim_dataset(tmp_path / "set", [str(tmp_path / "raw")], PrepareSettings(**SHARES))
    write_toy(tmp_path / "raw" / "3" / "events.parquet", toy_events(50, seed=5))
    with pytest.raises(ValueError, match=r"3/events\.parquet has changed"):
        build.prepare_dataset(begun, fit_to_file)


@pytest.mark.parametrize("others", ["train", "*/*.arrow"])
def test_a_linked_folder_gives_no_shard_twice_and_one_sentence_says_what_is_passed_over(done, tmp_path, caplog, others):
    (tmp_path / "link").symlink_to(done)
    wanted = [file.url for file in event_files(str(done))]
    caplog.clear()
    listing._logged.clear()
    found = event_files([f"{tmp_path}/link/{others}", str(done)])
    assert sorted(os.path.realpath(file.url) for file in found) == wanted
    assert caplog.text.count("passed over") == 1
