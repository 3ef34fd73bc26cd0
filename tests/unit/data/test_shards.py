"""Reading prepared shards: every event once an epoch, from any position, wherever they are, and no damage unseen."""

import pickle
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from crmuons import config
from crmuons.data import loader, reader, sampler
from crmuons.data.manifest import event_files, is_shard, origins
from crmuons.data.sampler import FileSlice, ReadPlan
from crmuons.data.selection import Selection, training_selection
from crmuons.data.shards import MAPPED_BYTES, is_mapped, slices_and_segment_bytes
from crmuons.models.features import Features
from crmuons.storage.files import File, list_files
from crmuons.training import setup
from tests.unit.data.prepared import (
    SHARES,
    copy_of,
    damage,
    identities,
    read_all,
)

pytestmark = pytest.mark.usefixtures("small_sizes")


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


@pytest.mark.parametrize("drawn", [None, 2])
def test_a_shard_that_is_overwritten_after_it_was_read_changes_no_event(done, tmp_path, drawn):
    # If the events were still mapped, they would show the new content, and a file that is cut would end the process.
    slices = tuple(sampler.cut_files(event_files(str(copy_of(done, tmp_path)))))
    events = reader.read_segment(sampler.Segment(0, 0, 0, 0, slices), Selection(muons_per_event=drawn))[1]
    before = pickle.dumps(events)
    for part in slices:
        Path(part.file.url).write_bytes(b"x" * part.file.size)
    assert pickle.dumps(events) == before


def test_a_position_inside_prepared_data_is_found_again(done):
    slices = tuple(sampler.cut_files(event_files(str(done))))
    segment = sampler.Segment(1, 0, 0, 0, slices)
    whole = reader.read_segment(segment, Selection(muons_per_event=3))[1]
    rest = reader.read_segment(sampler.Segment(1, 0, 700, 0, slices), Selection(muons_per_event=3))[1]
    assert identities(rest) == identities(whole)[700:]


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
