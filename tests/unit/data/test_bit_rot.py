"""A bit that flips on a disk is found in everything that is read back: it never becomes a wrong number."""

import json
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from crmuons.data import arrow, inspection, quarantine, reader
from crmuons.data.parquet import open_parquet
from crmuons.data.prepare import build, shuffle
from crmuons.data.prepare.shuffle import PrepareSettings
from crmuons.data.sampler import FileSlice
from crmuons.data.schema import FAULTS
from crmuons.data.selection import Selection
from crmuons.generation.primaries import PrimaryFiles
from crmuons.models.features import fit_to_file
from crmuons.models.saved_model import read_tensors, write_tensors
from crmuons.runs.directory import Run
from crmuons.storage.files import File


def flips(content, number, seed=0):
    """Yield copies of a file's content with one bit flipped, somewhere."""
    random = np.random.default_rng(seed)
    for at, bit in zip(random.integers(0, len(content), number), random.integers(0, 8, number), strict=True):
        damaged = bytearray(content)
        damaged[at] ^= 1 << int(bit)
        yield bytes(damaged)


def rot_muon_energies(path, row_group=0):
    """Flip a bit in the middle of the muons of a row group."""
    metadata = pq.read_metadata(path)
    (column,) = [i for i in range(metadata.num_columns) if metadata.schema.column(i).path.startswith("muons")]
    chunk = metadata.row_group(row_group).column(column)
    content = bytearray(path.read_bytes())
    start = chunk.dictionary_page_offset or chunk.data_page_offset
    content[start + chunk.total_compressed_size // 2] ^= 0x04
    path.write_bytes(content)


def read(path):
    return reader.read_slice(FileSlice(File(str(path), path.stat().st_size), 0, 1), Selection("all"))[0]


def same(one, other):
    return all(np.array_equal(getattr(one, name), getattr(other, name)) for name in vars(one))


@pytest.fixture
def rotten(tmp_path, toy_events):
    """A file of four row groups, as Spark would write it, with a flipped bit in the third."""
    path = tmp_path / "rot.parquet"
    # Not compressed: without a checksum nothing but a wrong number would show it.
    table = arrow.to_table(toy_events(200))
    pq.write_table(table, path, compression="none", use_dictionary=False, write_page_checksum=True, row_group_size=150)
    rot_muon_energies(path, row_group=2)
    return path


def test_no_flip_in_a_file_of_ours_changes_what_is_read(tmp_path, toy_events, write_toy):
    path = tmp_path / "events.parquet"
    write_toy(path, toy_events(200))
    right, named = read(path), 0
    for damaged in flips(path.read_bytes(), 60):
        path.write_bytes(damaged)
        try:
            assert same(read(path), right)
        except ValueError as error:
            named += str(error).startswith(str(path))
    assert named > 50


def test_a_footer_of_two_minds_about_the_rows_is_named(tmp_path, toy_events, write_toy):
    """Arrow reads such a file; the number of rows for the file and for each row group are both used."""
    path, said = tmp_path / "events.parquet", []
    write_toy(path, toy_events(200))
    right, content, number = read(path), path.read_bytes(), pq.read_metadata(path).num_rows
    # As thrift writes numbers from 64 to 8191: doubled, seven bits in the first byte.
    stated, other = (bytes((2 * rows & 0x7F | 0x80, 2 * rows >> 7)) for rows in (number, number + 1))
    for at in range(len(content) - 3000, len(content)):
        if content[at : at + 2] == stated:
            path.write_bytes(content[:at] + other + content[at + 2 :])
            try:
                assert same(read(path), right)
            except ValueError as error:
                said.append(str(error))
    assert any("events.parquet is not a Parquet file, or is damaged" in line for line in said)
    assert any(f"the footer states {number + 1} rows, and its row groups have {number}" in line for line in said)


def test_a_damaged_page_is_named_with_file_column_and_row_group(rotten):
    with pytest.raises(ValueError, match=r"rot\.parquet .*damaged .*column 'muons', row group 2: .*checksum"):
        read(rotten)


def test_every_reader_of_parquet_compares_the_checksums(rotten, tmp_path, toy_events):
    (reason,) = inspection.inspect([str(rotten)], max_rows=None).broken.values()
    assert "column 'muons', row group 2" in reason
    with pytest.raises(ValueError, match="column 'muons', row group 2"):
        list(PrimaryFiles([str(rotten)], with_counts=True))
    dataset = build.claim_dataset(tmp_path / "ready", [str(rotten)], PrepareSettings())
    with pytest.raises(ValueError, match="column 'muons', row group 2"):
        build.prepare_dataset(dataset, fit_to_file)
    shutil.copy(rotten, tmp_path / "validation.parquet")
    with pytest.raises(ValueError, match="column 'muons', row group 2"):
        Run(tmp_path).load_validation()


def test_rows_set_aside_have_checksums(tmp_path, toy_events, write_toy):
    events = toy_events(20)
    table = arrow.to_table(events)
    fault = np.ones(table.num_rows, np.int64) * (len(FAULTS) - 1)
    quarantine.keep_quarantined(
        table, fault, 0, FileSlice(write_toy(tmp_path / "f.parquet", events), 0, 1), str(tmp_path / "q")
    )
    (path,) = (tmp_path / "q").iterdir()
    rot_muon_energies(path)
    with pytest.raises(ValueError, match="checksum"), open_parquet(path, str(path)) as parquet:
        parquet.read()


def test_a_flip_in_what_an_interrupted_preparation_left_is_found(tmp_path, toy_events, write_toy, monkeypatch):
    write_toy(tmp_path / "raw" / "e.parquet", toy_events(200))
    begun = build.claim_dataset(tmp_path / "ready", [str(tmp_path / "raw")], PrepareSettings())

    def killed(*_arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(shuffle, "gather_shard", killed)
        with pytest.raises(KeyboardInterrupt):
            build.prepare_dataset(begun, fit_to_file)
    (group,) = (tmp_path / "ready" / shuffle.SCRATCH).glob("group-*.arrow")
    content = bytearray(group.read_bytes())
    content[len(content) // 2] ^= 0x04
    group.write_bytes(content)
    with pytest.raises(ValueError, match=r"group-00000\.arrow is damaged"):
        build.prepare_dataset(begun, fit_to_file)


def test_a_flipped_digit_in_a_shards_range_of_showers_is_found(tmp_path, toy_events, write_toy):
    write_toy(tmp_path / "raw" / "e.parquet", toy_events(200))
    begun = build.claim_dataset(tmp_path / "ready", [str(tmp_path / "raw")], PrepareSettings(validation_share=0.25))
    build.prepare_dataset(begun, fit_to_file)
    shard = tmp_path / "ready" / "train" / "shard-00000.arrow"
    metadata = pa.ipc.open_file(shard).schema.metadata[b"crmuons.shard"]
    assert json.loads(metadata)["places"] == [0.3, 1.0]  # Else choose the digit anew.
    shard.write_bytes(shard.read_bytes().replace(b"[0.3,", b"[0.1,"))
    with pytest.raises(ValueError, match=r"shard-00000\.arrow .*damaged .*metadata do not have the checksum"):
        read(shard)


def test_no_flip_in_saved_tensors_changes_a_weight(tmp_path):
    path, weights = tmp_path / "weights.pt", torch.randn(2000)
    write_tensors(path, {"weight": weights})
    named = 0
    for damaged in flips(path.read_bytes(), 60):
        path.write_bytes(damaged)
        try:
            assert torch.equal(read_tensors(path)["weight"], weights)
        except ValueError as error:
            named += "weights.pt" in str(error)
    assert named > 50
