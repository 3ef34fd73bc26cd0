"""The loader of batches: every event once an epoch with its own muons, and the same continuation from every position."""

import functools
from collections import Counter
from itertools import islice, pairwise

import numpy as np
import pytest

from crmuons import config
from crmuons.data import arrow, reader, sampler, schema
from crmuons.data.events import EventArrays
from crmuons.data.loader import Loader
from crmuons.data.quarantine import ReadCounts
from crmuons.data.sampler import FileSlice, ReadPlan
from crmuons.data.selection import Selection, in_split, training_selection

SEGMENT_BYTES = 2_000


def numbered(number, first=0, largest=6):
    """Events that say which they are: energy_gev 1 + event, x_m the event, y_m the muon of the event; some are empty."""
    events = np.arange(first, first + number)
    counts = (events * 5) % (largest + 1)
    muons = np.concatenate([np.arange(count) for count in counts]) if number else np.empty(0)
    columns = [1.0 + events, 0 * events, 1 + 0 * events, 1950 + 0 * events]
    return EventArrays(
        ids=np.stack([1 + 0 * events, events // 3], axis=1).astype(np.uint64),
        primaries=np.stack(columns, axis=1).astype(np.float32),
        counts=counts,
        muons=np.stack([1 + 0 * muons, np.repeat(events, counts), muons], axis=1).astype(np.float32),
    )


def numbers(batch):
    """The numbers of a batch's events, after checking that each has exactly its own muons."""
    number = batch.primaries[:, 0].astype(int) - 1
    assert batch.ids[:, 1].tolist() == (number // 3).tolist()
    assert batch.muons[:, 1].astype(int).tolist() == np.repeat(number, batch.counts).tolist()
    for places in np.split(batch.muons[:, 2], np.cumsum(batch.counts)[:-1]):
        assert sorted(places.tolist()) == list(range(len(places)))
    return number.tolist()


@pytest.fixture(scope="module")
def files(tmp_path_factory, write_toy):
    """200 events in five files of unequal sizes, one of them of a single row and one of none."""
    root, made, first = tmp_path_factory.mktemp("data"), [], 0
    for i, rows in enumerate((90, 1, 0, 70, 39)):
        made.append(write_toy(root / f"{i}.parquet", numbered(rows, first)))
        first += rows
    return made


def cut(files, parts=3):
    """Slices of a few rows: small files are not cut by sampler.cut_files."""
    return tuple(FileSlice(file, part, parts) for file in files for part in range(parts))


def whole(batch):
    return batch


def open_loader(files, rank=0, world=1, *, reading=None, events=16, selection=None, **given):
    data = config.Data(**{key: given.pop(key) for key in list(given) if key in config.Data.model_fields})
    reading = reading or ReadPlan(cut(files), 5, SEGMENT_BYTES, world)
    selection = selection or Selection(max_muons=data.max_muons_per_batch)
    return Loader(reading, rank, selection=selection, data=data, events_per_batch=events, prepare=whole, **given)


@pytest.fixture
def loaders():
    """Opens loaders and closes them in the end."""
    opened = []

    def make(*args, **kwargs):
        opened.append(open_loader(*args, **kwargs))
        return opened[-1]

    yield make
    for loader in opened:
        loader.close()


def read_epoch(loader, events):
    """The batches that hold the first `events` events, and what is left of the last of them."""
    got = []
    while len(got) < events:
        got += numbers(next(loader))
    return got


@pytest.mark.parametrize("world", [1, 2, 3])
@pytest.mark.parametrize("max_muons", [None, 7])
def test_every_event_comes_once_an_epoch_with_its_own_muons(files, loaders, world, max_muons):
    reading = ReadPlan(cut(files), 5, SEGMENT_BYTES, world)
    events_of = epoch_sizes(reading, world)
    seen = [[], []]
    for rank in range(world):
        loader = loaders(files, rank, world, max_muons_per_batch=max_muons)
        first, second = events_of[rank]
        got = read_epoch(loader, first + second)
        seen[0] += got[:first]
        seen[1] += got[first : first + second]
    assert sorted(seen[0]) == sorted(seen[1]) == list(range(200))
    assert seen[0] != seen[1]


def epoch_sizes(reading, world):
    """How many events each rank reads in the first and in the second epoch, from the plan and the files alone."""
    sizes = [[0, 0] for _ in range(world)]
    for rank in range(world):
        for segment in reading.segments_of_rank(rank):
            if segment.epoch > 1:
                break
            sizes[rank][segment.epoch] += sum(map(rows_of, segment.slices))
    return sizes


@functools.cache
def rows_of(part):
    """How many events a part of a file has, read apart from the loader."""
    return len(reader.read_slice(part, Selection())[0].counts)


@pytest.mark.parametrize("world", [1, 3])
def test_epochs_say_how_often_the_data_were_read_and_go_on_at_a_position(files, loaders, world):
    loader = loaders(files, 0, world)
    at = [(loader.position, loader.epochs) for _ in islice(loader, 60)]
    assert [epochs for _, epochs in at] == sorted(epochs for _, epochs in at)
    read = loader.num_events * world / 200
    assert at[-1][1] == pytest.approx(read, abs=1 if world == 1 else 3)  # A rank may read more than its share.
    position, epochs = at[40]
    again = loaders(files, 0, world, position=position)
    next(again)
    assert epochs <= again.epochs <= at[42][1]


def test_batches_have_the_size_asked_for_and_span_segments_and_epochs(files, loaders):
    loader = loaders(files, events=64)
    batches = [next(loader) for _ in range(10)]
    assert [len(batch.counts) for batch in batches] == [64] * 10  # 640 events are three epochs and more.
    assert (loader.num_events, loader.num_muons) == (640, sum(len(batch.muons) for batch in batches))


def test_a_data_set_smaller_than_a_batch_is_read_over_and_over(tmp_path, loaders, write_toy):
    loader = loaders([write_toy(tmp_path / "one.parquet", numbered(1))], events=5)
    assert numbers(next(loader)) == [0] * 5
    small = loaders([write_toy(tmp_path / "few.parquet", numbered(3))], events=8)
    got = numbers(next(small)) + numbers(next(small))
    assert sorted(got[:3]) == sorted(got[3:6]) == [0, 1, 2]  # Epochs do not mix.


def test_a_batch_is_closed_before_it_exceeds_its_muons(files, loaders):
    loader = loaders(files, events=16, max_muons_per_batch=20)
    batches = [next(loader) for _ in range(40)]
    assert max(len(batch.muons) for batch in batches) <= 20
    assert all(1 <= len(batch.counts) <= 16 for batch in batches)
    for batch, following in pairwise(batches):  # None is closed too early.
        assert len(batch.counts) == 16 or len(batch.muons) + int(following.counts[0]) > 20


def test_events_above_the_cap_are_in_the_outliers_and_nowhere_else(files, loaders, tmp_path):
    settings = config.Data(max_muons_per_event=4, max_muons_per_batch=50, validation_share=0, test_share=0)
    loader = loaders(files, selection=training_selection(settings, str(tmp_path)), events=8)
    counts = numbered(200).counts
    got = read_epoch(loader, 2 * int((counts <= 4).sum()))
    assert set(got) == set(np.flatnonzero(counts <= 4).tolist())
    outliers = [arrow.to_arrays(schema_table(path)) for path in (tmp_path / "outliers").iterdir()]
    kept = reader.concat(outliers)
    assert sorted(kept.primaries[:, 0] - 1) == np.flatnonzero(counts > 4).tolist()
    np.testing.assert_array_equal(kept.muons[:, 1], np.repeat(kept.primaries[:, 0] - 1, kept.counts))


def schema_table(path):
    import pyarrow.parquet as pq

    table = pq.read_table(path)
    assert table.schema.equals(schema.EVENT_SCHEMA)
    return table


@pytest.mark.parametrize("given", [{}, {"max_muons_per_batch": 9}])
def test_the_continuation_from_every_position_is_the_same_to_the_bit(files, loaders, given):
    loader, batches, marks = loaders(files, **given), [], []
    for batch in islice(loader, 18):  # An epoch has 12 and a half.
        batches.append(batch)
        marks.append((loader.position, loader.read_counts))
    for done in (1, 2, 7, 12, 13, 17):
        position, read_counts = marks[done - 1]
        again = loaders(files, position=position, read_counts=read_counts, **given)
        for batch, mark in zip(batches[done:], marks[done:], strict=True):
            repeated = next(again)
            for name in ("ids", "primaries", "counts", "muons"):
                np.testing.assert_array_equal(getattr(repeated, name), getattr(batch, name))
            assert (again.position, again.read_counts) == mark


@pytest.mark.parametrize(("before", "after"), [(1, 3), (3, 2), (2, 5)])
def test_no_event_is_lost_or_repeated_where_the_number_of_ranks_changes(files, loaders, before, after):
    first = [loaders(files, rank, before) for rank in range(before)]
    seen = [
        number for rank, loader in enumerate(first) for batch in islice(loader, 2 + rank) for number in numbers(batch)
    ]
    all_counts = [loader.read_counts for loader in first]
    reading, positions = first[0].plan.continued(after, [loader.position for loader in first])
    left = 200 * reading.base_epoch - len(seen)
    for rank, position in enumerate(positions):
        loader = loaders(files, rank, reading=reading, position=position)
        mine = sum(
            sum(map(rows_of, segment.slices)) - segment.start
            for segment in islice(reading.segments_of_rank(rank), len(reading.backlog[rank::after]))
        )
        seen += read_epoch(loader, mine)[:mine]
        left -= mine
        all_counts.append(loader.read_counts)
    assert left == 0
    assert Counter(seen) == Counter([*range(200)] * reading.base_epoch)  # Of the epochs begun.


def test_the_read_counts_holds_what_was_read_up_to_the_batch_given_last(tmp_path, loaders, write_toy):
    events = numbered(256)  # 64 slices of 4 rows in 8 segments of 32: whatever is read ahead, 32 rows at a time count.
    file = write_toy(tmp_path / "e.parquet", events)
    loader = loaders([file], events=16, reading=ReadPlan(cut([file], 64), 0, 1 << 30, 1))
    rows = []
    for _ in range(6):
        next(loader)
        rows.append(loader.read_counts.rows)
    assert rows == [32, 32, 64, 64, 96, 96]


def spoiled(rows):
    """256 events, some of which have a mass of zero."""
    events = numbered(256)
    events.primaries[rows, 2] = 0.0
    return events


def test_too_many_bad_rows_stop_the_run_and_say_where_they_are(tmp_path, loaders, write_toy):
    file = write_toy(tmp_path / "e.parquet", spoiled(np.arange(0, 256, 4)))  # A quarter of the rows.
    selection = Selection(quarantine=str(tmp_path / "q"))
    reading = ReadPlan(cut([file], 64), 0, 1 << 30, 1)  # 8 segments of 32 rows, of which 8 are bad.
    loader = loaders([file], max_quarantined_share=0.2, selection=selection, reading=reading)
    # 0.2 of 256 rows are 51.2: 48 of the first 6 segments might be all there are, the 56 of 7 are too many.
    with pytest.raises(
        ValueError, match=r"56 of 224 rows cannot be used, more than data\.max_quarantined_share = 0\.2 of all rows.*/q"
    ):
        read_epoch(loader, 256)
    assert loader.num_events == 144  # 6 segments of 24 good rows, in batches of 16.
    passes = loaders([file], max_quarantined_share=0.25, reading=reading)
    assert set(read_epoch(passes, 208)) == set(range(256)) - set(range(0, 256, 4))


@pytest.mark.parametrize("world", [1, 2])
def test_one_bad_file_read_early_does_not_stop_a_run_that_is_fine_on_the_whole(tmp_path, loaders, write_toy, world):
    made = [write_toy(tmp_path / f"{i}.parquet", numbered(32, 32 * i)) for i in range(8)]
    reading = ReadPlan(cut(made, 1), 0, 1, world)
    (first,) = reading.segments(0)[0]
    bad = numbered(32)
    bad.primaries[:, 2] = 0.0
    write_toy(first.file.url, bad)
    loader = loaders(made, 0, world, max_quarantined_share=0.15, reading=reading)  # An eighth is bad: 0.125.
    read_epoch(loader, 300)
    assert loader.read_counts.quarantined >= 32
    with pytest.raises(ValueError, match=r"60 of 256 rows cannot be used"):
        loader.check(ReadCounts(256, 60))  # Of all ranks together: 0.23.


def test_data_without_an_event_to_train_on_are_said_instead_of_read_for_ever(tmp_path, loaders, write_toy, monkeypatch):
    monkeypatch.setattr("crmuons.data.loader.MAX_EMPTY_SEGMENTS", 10)
    file = write_toy(tmp_path / "e.parquet", numbered(1))
    (split,) = [s for s in ("train", "validation", "test") if in_split(numbered(1).ids, Selection(s, 0.3, 0.3))[0]]
    other = "test" if split != "test" else "train"
    with pytest.raises(ValueError, match=r"no event to train on in 11 segments of the data \(\d+ rows read\)"):
        next(loaders([file], selection=Selection(other, 0.3, 0.3)))


def test_an_error_of_the_reader_reaches_the_training_thread(tmp_path, loaders):
    (tmp_path / "bad.parquet").write_text("no Parquet")
    file = sampler.File(str(tmp_path / "bad.parquet"), 10)
    with pytest.raises(ValueError, match=r"bad\.parquet is not a Parquet file"):
        next(loaders([file]))


def test_close_ends_the_reading(files):
    loader = open_loader(files, prefetch_batches=1)
    next(loader)
    loader.close()
    assert not loader._ready._thread.is_alive()


def test_training_reads_its_split_and_the_smaller_cap():
    selection = training_selection(config.Data(max_muons_per_event=10, max_muons_per_batch=7, depth="vertical"), "run")
    assert selection == Selection("train", 0.05, 0.05, True, 7, "run/quarantine", "run/outliers")
    assert training_selection(config.Data(), "run", 128).muons_per_event == 128
    # With validation files of their own, only the test share of the training files is left out.
    selection = training_selection(config.Data(validation=["v.parquet"]), None)
    assert selection == Selection("train", 0.0, 0.05)


def test_every_rank_counts_its_own_rows(files, loaders):
    total = ReadCounts()
    for rank in range(2):
        loader = loaders(files, rank, 2, events=1)
        reading = loader.plan
        mine = epoch_sizes(reading, 2)[rank][0]
        read_epoch(loader, mine)
        total += loader.read_counts
    assert total == ReadCounts(rows=200)
