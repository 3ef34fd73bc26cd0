"""Prepared data: every legal event once in the shard of its split, however often the making is interrupted, and no damage passes."""

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from crmuons import config
from crmuons.cli import main
from crmuons.data import loader, reader, sampler
from crmuons.data import shards as data_shards
from crmuons.data.events import concat
from crmuons.data.manifest import Manifest, event_files, is_shard, origins
from crmuons.data.prepare import build, shuffle
from crmuons.data.prepare.shuffle import PrepareSettings
from crmuons.data.sampler import FileSlice, ReadPlan
from crmuons.data.selection import Selection, training_selection
from crmuons.data.shards import MAPPED_BYTES, is_mapped, slices_and_segment_bytes
from crmuons.models.features import Features, fit_to_file
from crmuons.storage.files import File, list_files
from crmuons.training import setup

SHARES = {"validation_share": 0.2, "test_share": 0.1}


@pytest.fixture(scope="module")
def raw(tmp_path_factory, toy_events, write_toy):
    """1200 events of 400 showers in four files; the depths of a shower are neighbours."""
    root = tmp_path_factory.mktemp("raw")
    events = toy_events(400)
    for i in range(4):
        write_toy(root / f"{i}" / "events.parquet", reader.take(events, np.arange(300 * i, 300 * (i + 1))))
    return root


@pytest.fixture(scope="module", autouse=True)
def small_sizes():
    """A group for each file, several shards for each split, several batches for each shard."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(build, "GROUP_BYTES", 1)
        patch.setattr(shuffle, "SHARD_BYTES", 40_000)
        patch.setattr(data_shards, "EVENTS_PER_BATCH", 64)
        yield


def make(raw, out, **settings):
    begun = build.claim_dataset(out, [str(raw)], PrepareSettings(**(SHARES | settings)))
    return build.prepare_dataset(begun, fit_to_file)


@pytest.fixture(scope="module")
def done(raw, tmp_path_factory):
    """The data of `raw`, prepared."""
    out = tmp_path_factory.mktemp("done") / "set"
    make(raw, out)
    return out


def read_all(urls, selection=None):
    selection = selection or Selection()
    slices = sampler.cut_files(event_files(str(urls), selection.bounds))
    return concat([reader.read_slice(part, selection)[0] for part in slices])


def identities(events):
    """Each event as bytes: ids, primary, and its muons, whose order is random."""
    muons = np.split(events.muons, np.cumsum(events.counts)[:-1]) if len(events.counts) else []
    rows = zip(events.ids, events.primaries, (np.sort(each, axis=0) for each in muons), strict=True)
    return [b"".join(part.tobytes() for part in row) for row in rows]


def content(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


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


@pytest.mark.parametrize(
    "shares", [{"validation_share": 0.4, "test_share": 0.05}, {"validation_share": 0.0, "test_share": 0.1}]
)
@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_other_shares_than_those_of_the_preparation_give_the_same_events_as_raw_data(raw, done, split, shares):
    selection = Selection(split, **shares)
    assert sorted(identities(read_all(done, selection))) == sorted(identities(read_all(raw, selection)))


def test_training_reads_every_prepared_event_once_an_epoch_in_another_order(raw, done):
    data = config.Data(train=[str(done)], **SHARES)
    selection = training_selection(data, None, 128)
    listed = event_files(str(done), selection.bounds)
    slices = tuple(FileSlice(file, part, 3) for file in listed for part in range(3))
    reading = ReadPlan(slices, 0, 30_000, 1)
    wanted = sorted(identities(read_all(raw, selection)))
    opened = loader.Loader(
        reading, 0, selection=selection, data=data, events_per_batch=len(wanted), prepare=lambda batch: batch
    )
    first, second = (next(opened) for _ in range(2))
    opened.close()
    assert sorted(identities(first)) == sorted(identities(second)) == wanted
    assert identities(first) != identities(second)


def test_training_meets_other_muons_of_a_large_event_in_every_epoch(done):
    slices = tuple(sampler.cut_files(event_files(str(done))))
    first, second, stored = (
        reader.read_segment(sampler.Segment(epoch, 0, 0, 0, slices), Selection(muons_per_event=drawn))[1]
        for epoch, drawn in ((0, 2), (1, 2), (0, None))
    )
    assert sorted(identities(first)) == sorted(identities(second)) == sorted(identities(stored))
    starts = np.cumsum(first.counts) - first.counts
    changed = [not np.array_equal(first.muons[start], stored.muons[start]) for start in starts[first.counts > 2]]
    # Of an event with 8 muons, say, one in 8 is not turned.
    assert 0.6 < np.mean(changed) < 0.98
    for start, count in zip(starts[first.counts <= 2], first.counts[first.counts <= 2], strict=True):
        np.testing.assert_array_equal(first.muons[start : start + count], stored.muons[start : start + count])


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


def test_a_position_inside_prepared_data_is_found_again(done):
    slices = tuple(sampler.cut_files(event_files(str(done))))
    segment = sampler.Segment(1, 0, 0, 0, slices)
    whole = reader.read_segment(segment, Selection(muons_per_event=3))[1]
    rest = reader.read_segment(sampler.Segment(1, 0, 700, 0, slices), Selection(muons_per_event=3))[1]
    assert identities(rest) == identities(whole)[700:]


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
    with pytest.raises(ValueError, match=r"ready lies inside the data directory .*; name a directory outside it"):
        make(raw, raw / "ready")
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


def copy_of(done, tmp_path):
    return Path(shutil.copytree(done, tmp_path / "copy"))


def damage(path, at, change=0x5A):
    held = bytearray(path.read_bytes())
    held[at] ^= change
    path.write_bytes(held)


def test_damage_anywhere_in_a_shard_is_named_or_harmless(done, tmp_path):
    copy = copy_of(done, tmp_path)
    path = copy / "train" / "shard-00000.arrow"
    whole, right = path.read_bytes(), identities(read_all(path))
    named = 0
    for at in np.random.default_rng(0).integers(0, len(whole), 60).tolist():
        path.write_bytes(whole)
        damage(path, at)
        try:
            assert identities(read_all(path)) == right  # Padding, or a name.
        except ValueError as error:
            said = str(error).split("shard-00000.arrow is not a shard of a prepared data set, or is damaged (")
            assert len(said) == 2  # Told, and told once.
            named += 1
    assert named > 40


def test_a_missing_a_shortened_and_a_foreign_shard_are_named(done, tmp_path):
    copy = copy_of(done, tmp_path)
    path = copy / "train" / "shard-00001.arrow"
    whole = path.read_bytes()
    path.write_bytes(whole[:-100])
    with pytest.raises(
        ValueError, match=rf"shard-00001\.arrow has {len(whole) - 100} bytes, but was written with {len(whole)}"
    ):
        event_files(str(copy))
    with pytest.raises(ValueError, match=r"shard-00001\.arrow is not a shard of a prepared data set, or is damaged"):
        read_all(path)
    path.unlink()
    with pytest.raises(FileNotFoundError, match=r"shard-00001\.arrow is in the manifest but missing"):
        event_files(str(copy))
    with pa.ipc.new_file(str(path), pa.schema([("a", pa.int64())])) as writer:
        writer.write_batch(pa.record_batch({"a": [1]}))
    with pytest.raises(ValueError, match=r"or is damaged \(its metadata are missing or wrong\)"):
        read_all(path)
    (copy / "manifest.json").write_text("{")
    with pytest.raises(ValueError, match=r"manifest\.json is damaged, or was not written by crmuons"):
        event_files(str(copy))


def test_a_data_set_is_found_from_a_folder_above_a_glob_and_beside_raw_files(raw, done):
    shards = event_files(str(done))
    assert all(is_shard(file) for file in shards)
    assert event_files(str(done.parent)) == event_files(f"{done}/*") == shards
    assert event_files([str(raw), str(done)]) == sorted([*list_files(str(raw)), *shards])
    assert len(read_all(raw).counts) == 1200


def test_where_prepared_events_come_from_is_known(raw, done):
    # So that an evaluation sees that a model was trained on its truth, whichever of the two was prepared.
    assert set(list_files(str(raw))) <= set(origins(str(done)))
    assert origins(str(raw)) == list_files(str(raw))
    assert origins(str(done / "train"))


def test_shards_elsewhere_are_read_without_being_mapped(done):
    import fsspec

    store = fsspec.filesystem("memory")
    store.put(str(done), "/far", recursive=True)
    try:
        assert sorted(identities(read_all("memory://far"))) == sorted(identities(read_all(done)))
        assert not any(is_mapped(file) for file in event_files("memory://far"))
    finally:
        store.rm("/far", recursive=True)


def test_a_run_starts_from_the_features_that_were_fitted(done):
    words = [
        f"data.train={done}",
        "data.validation_share=0.2",
        "data.test_share=0.1",
        "train.steps=1",
        "train.validation_events=100",
    ]
    listed, features, validation = setup.set_up_run(config.load(None, words))
    stored = torch.load(done / "features.pt", weights_only=True)
    assert all(torch.equal(value, stored[name]) for name, value in features.state_dict().items())
    first = Features().fit(read_all(done, Selection("train", **SHARES)))  # All of them: fewer than are sampled.
    torch.testing.assert_close(first.state_dict(), stored, rtol=1e-5, atol=1e-5)
    assert all("/train/" in file.url for file in listed)
    assert 0 < len(validation.counts) <= 100
    capped, *_ = setup.set_up_run(config.load(None, [*words, "data.max_muons_per_event=5"]))[1:]
    assert not torch.equal(capped.knots, stored["knots"])  # Of other events: fitted on a sample of them.


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


def test_large_mapped_shards_are_read_in_small_slices_and_others_are_not():
    shards = [File(f"/data/train-{i}.arrow", 100 * 2**20) for i in range(4)]
    slices, segment_bytes = slices_and_segment_bytes(shards, 32 * 2**20)
    assert max(part.size for part in slices) <= MAPPED_BYTES == segment_bytes
    largest = max(
        sum(part.size for part in segment) for segment in ReadPlan(tuple(slices), 0, segment_bytes, 1).segments(0)
    )
    assert largest <= 2 * MAPPED_BYTES
    assert slices_and_segment_bytes(shards, 1000)[1] == 1000
    for url in ("pelican://host/train.arrow", "/data/events.parquet"):
        mixed = [*shards, File(url, 100 * 2**20)]
        assert slices_and_segment_bytes(mixed, 32 * 2**20) == (sampler.cut_files(mixed), 32 * 2**20)


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
