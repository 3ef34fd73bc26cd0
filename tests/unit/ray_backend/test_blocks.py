"""What a read task learns of its files comes back with its block: digests, and what it warned of."""

import logging
from dataclasses import replace

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from crmuons.data import arrow, features
from crmuons.data.quarantine import ReadCounts
from crmuons.data.sampler import Segment, cut_files
from crmuons.data.selection import Selection
from crmuons.ray_backend import data, tokens
from crmuons.storage.changed import ChangedError
from crmuons.storage.files import list_files
from crmuons.storage.identity import Digests


@pytest.fixture
def lake(tmp_path, toy_events, write_toy):
    """A remote file of 30 rows, the first with a negative energy."""
    path = tmp_path / "a.parquet"
    write_toy(path, toy_events(10))
    table = pq.read_table(path)
    primary = table["primary"].to_pylist()
    primary[0][0] = -1.0
    table = table.set_column(2, "primary", pa.array(primary, pa.list_(pa.float32())))
    pq.write_table(table, path)
    fsspec.filesystem("memory").pipe("/tasks/a.parquet", path.read_bytes())
    return "memory://tasks/a.parquet"


@pytest.fixture(autouse=True)
def no_tokens(monkeypatch):
    monkeypatch.setattr(tokens, "receive", lambda: None)  # It asks an actor of a cluster.


@pytest.mark.parametrize("split", ["all", "none of it"])
def test_a_block_brings_digests_and_warnings(lake, split, caplog):
    selection = Selection("train", validation_share=1.0) if split == "none of it" else Selection()
    segment = Segment(0, 0, 0, 0, tuple(cut_files(list_files(lake))))
    source = data.SegmentSource([(segment, selection)])
    (task,) = source.get_read_tasks(1)
    assert task is not None
    block = data._read_block(segment, Selection(**vars(selection) | {"digests": Digests()}))
    caplog.clear()
    digests = Digests()
    with caplog.at_level(logging.WARNING):
        counts, *events = data._unpack(block, digests)
    assert counts == ReadCounts(30, 1)
    assert sum(len(part.counts) for part in events) == (29 if split == "all" else 0)
    (url,) = digests.known
    assert url == "memory:///tasks/a.parquet"
    (said,) = (record.message for record in caplog.records)
    assert "1 of 30 rows cannot be used; the first is row 0: primary energy_gev is not positive" in said
    with pytest.raises(ChangedError, match="when it was first opened"):
        list(data._unpack(block, Digests({url: "0" * 16})))


@pytest.mark.parametrize("split", ["all", "none of it"])
def test_a_block_holds_the_declared_features_of_muons(tmp_path, toy_events, split):
    declared = (*features.BASE, *features.parse(("t_ns", "charge")))
    toy = toy_events(10)
    further = np.stack([np.arange(len(toy.muons)), np.resize([-1, 1], len(toy.muons))], axis=1).astype(np.float32)
    wide = replace(toy, muons=np.concatenate([toy.muons, further], axis=1))
    path = tmp_path / "a.parquet"
    arrow.write_events(path, [arrow.to_table(wide, declared)], features=declared)
    shares = {"split": "train", "validation_share": 1.0} if split == "none of it" else {}
    selection = Selection(**shares, features=features.parse(("charge", "t_ns")))
    segment = Segment(0, 0, 0, 0, tuple(cut_files(list_files(str(path)))))
    counts, *events = data._unpack(data._read_block(segment, selection), None)
    assert counts == ReadCounts(len(toy.counts))
    if split == "all":
        read = np.concatenate([part.muons for part in events])
        np.testing.assert_array_equal(read[np.argsort(read[:, 4])], wide.muons[:, [0, 1, 2, 4, 3]])
    else:
        assert not events


def test_a_task_is_sent_the_digests_of_its_own_files_alone(lake):
    segment = Segment(0, 0, 0, 0, tuple(cut_files(list_files(lake))))
    known = Digests({"memory:///tasks/a.parquet": "1" * 16} | {f"memory:///other/{n}": "2" * 16 for n in range(9)})
    (task,) = data.SegmentSource([(segment, Selection(digests=known))]).get_read_tasks(1)
    (cell,) = [cell.cell_contents for cell in task._read_fn.__closure__ if isinstance(cell.cell_contents, Selection)]
    assert cell.digests.known == {"memory:///tasks/a.parquet": "1" * 16}
