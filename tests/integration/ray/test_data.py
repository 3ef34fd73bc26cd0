"""Reading with Ray Data and preparing in Ray tasks give the results of one process; a test of their benchmark."""

import signal
import sys
import threading
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from crmuons.benchmark import events, read_through_ray
from crmuons.data import arrow, manifest, reader, sampler
from crmuons.data.events import EventArrays
from crmuons.data.prepare import build
from crmuons.data.prepare.shuffle import PrepareSettings
from crmuons.data.quarantine import ReadCounts
from crmuons.data.sampler import FileSlice, ReadPlan
from crmuons.data.selection import Selection
from crmuons.models.features import fit_to_file
from crmuons.ray_backend import data, tasks
from tests.integration.conftest import Bench, output

pytestmark = [
    pytest.mark.ray,
    pytest.mark.timeout(900),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # Ray's own, where it copies its context.
    # Of two executions at once Ray opens the log of the second again when the first ends, and forgets the first opening.
    pytest.mark.filterwarnings("ignore:unclosed file .*ray-data-dataset:ResourceWarning"),
]


def events_of(pieces: Iterator[reader.ReadResult]) -> list[bytes]:
    """The counts, and the bytes of the events between them, in order."""
    said: list[bytes] = []
    for piece in pieces:
        if isinstance(piece, ReadCounts):
            said.append(repr(piece).encode())
        else:
            arrays = (piece.ids, piece.primaries, piece.counts, piece.muons)
            said.append(b"".join(np.ascontiguousarray(array).tobytes() for array in arrays))
    return said


def items_of(path: Path, number: int) -> list[sampler.Segment]:
    file = manifest.event_files(str(path))[0]
    reading = ReadPlan(tuple(FileSlice(file, part, 16) for part in range(16)), 3, file.size // 8, 1)
    return list(islice(reading.segments_of_rank(0), number))


def test_executions_follow_each_other_and_give_the_items_in_order(bench: Bench, cluster: None, monkeypatch) -> None:
    monkeypatch.setattr(data, "SEGMENTS_PER_EXECUTION", 8)
    monkeypatch.setattr(data, "SEGMENTS_AHEAD", 4)
    pauses, pause = [], data.SchedulerThrottle.pause

    def counted_pause() -> None:
        pauses.append(time.monotonic())
        pause()

    monkeypatch.setattr(data.SchedulerThrottle, "pause", counted_pause)
    items = items_of(bench.folder / "data", 27)  # Three executions and a part of one; more than three epochs.
    selection = Selection("train", 0.3, 0.2, muons_per_event=8)
    waits, seen, last = [], [], time.monotonic()
    for piece in data.read_with_ray(iter(items), selection):
        waits.append(time.monotonic() - last)
        seen.append(piece)
        time.sleep(0.25)  # A step; while it runs, the next execution starts.
        last = time.monotonic()
    print("longest waits in s:", sorted(waits)[-4:])
    assert events_of(iter(seen)) == events_of(reader.read_in_process(iter(items), selection))
    assert not [thread for thread in threading.enumerate() if thread.name == "ray-data" and thread.is_alive()]
    assert pauses  # Without them Ray's scheduler would hold the interpreter's lock while the step runs.


def test_an_item_without_events_is_counted_and_a_bad_row_is_kept(bench: Bench, cluster: None, tmp_path: Path) -> None:
    table = pq.read_table(bench.folder / "data" / "events-00000.parquet").slice(0, 40)
    arrays = arrow.to_arrays(table)
    arrays = EventArrays(arrays.ids, np.array(arrays.primaries), arrays.counts, arrays.muons)
    arrays.primaries[7, 0] = np.nan
    arrow.write_events(tmp_path / "e.parquet", [arrow.to_table(arrays)])
    items = items_of(tmp_path / "e.parquet", 8)
    selection = Selection("train", 0.0, 0.99, quarantine=str(tmp_path / "q"))  # Nearly no event is left.
    here = events_of(reader.read_in_process(iter(items), selection))
    assert events_of(data.read_with_ray(iter(items), selection)) == here
    assert pq.read_table(tmp_path / "q")["row"].to_pylist() == [7]


def test_prepared_shards_are_read_where_they_are_used(bench: Bench, cluster: None, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(build, "GROUP_BYTES", 1)
    source = str(bench.folder / "data")
    made = [
        build.prepare_dataset(build.claim_dataset(tmp_path / name, [source], PrepareSettings()), fit_to_file, each)
        for name, each in (("here", build.run_locally), ("cluster", tasks.map_unordered))
    ]
    assert made[0] == made[1]
    items = items_of(tmp_path / "cluster", 8)
    monkeypatch.setattr(data, "_read_in_tasks", None)  # Not called.
    selection = Selection("train", 0.05, 0.05)
    assert events_of(data.read_with_ray(iter(items), selection)) == events_of(
        reader.read_in_process(iter(items), selection)
    )


def test_a_job_that_fails_raises_its_own_error(bench: Bench, cluster: None, tmp_path: Path) -> None:
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw" / "bad.parquet").write_text("no Parquet at all")
    begun = build.claim_dataset(tmp_path / "set", [str(tmp_path / "raw")], PrepareSettings())
    with pytest.raises(ValueError, match=r"bad\.parquet is not a Parquet file") as caught:
        build.prepare_dataset(begun, fit_to_file, tasks.map_unordered)
    assert "Traceback" not in str(caught.value)


PREPARE = """
import os, signal, sys, threading, time
from pathlib import Path
from crmuons.data.prepare import build, shuffle
build.GROUP_BYTES, build.GROUPS_IN_PROCESS, shuffle.SHARD_BYTES = 1, 99, 100_000

def die_at(stage):  # In this process: another process may see the file too late.
    while not list(Path(sys.argv[1]).glob(stage)):
        time.sleep(0.001)
    os.kill(os.getpid(), signal.SIGKILL)

for stage in sys.argv[2:]:
    threading.Thread(target=die_at, args=[stage], daemon=True).start()
from crmuons.cli import main
sys.exit(main(["prepare", "parts", "--out", sys.argv[1]]))
"""


def test_a_killed_preparation_goes_on_to_the_same_data_set(bench: Bench) -> None:
    table = pq.read_table(bench.folder / "data" / "events-00000.parquet")
    for i in range(40):
        (bench.folder / "parts").mkdir(exist_ok=True)
        pq.write_table(table.slice(100 * i, 100), bench.folder / "parts" / f"{i:02}.parquet")
    output(bench.start(sys.executable, "-c", PREPARE, "whole"), 0)
    killed = bench.folder / "killed"
    for stage in (".scatter/group-*.arrow", "train/*.arrow"):
        output(bench.start(sys.executable, "-c", PREPARE, "killed", stage), -signal.SIGKILL)
        assert not (killed / "manifest.json").exists()
    output(bench.start(sys.executable, "-c", PREPARE, "killed"), 0)
    for path in (bench.folder / "whole").rglob("*"):
        if path.is_file():
            assert path.read_bytes() == (killed / path.relative_to(bench.folder / "whole")).read_bytes(), path


def test_reading_through_ray_is_told_beside_as_many_threads_of_pyarrow(
    cluster: None, tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.setattr(read_through_ray, "STEADY_BYTES", 1)
    path = tmp_path / "e.parquet"
    arrow.write_events(path, [arrow.to_table(events.draw(200, 3.0, seed=0))])
    one, several = read_through_ray.run(2, [str(path)])
    assert one.name != several.name  # MLflow knows figures by their names.
    assert (one.amount, several.amount) == (8 * 200, 8 * 200)  # Each of the segments is the whole file.
    assert (one.reference_amount, several.reference_amount) == (200, data.READS_AT_ONCE * 200)
    assert (one.times.wall > 0).all()
    assert len(one.times.wall) == len(several.reference_times.wall) == 2
