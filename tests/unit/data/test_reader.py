"""Reading: every row is an event, in quarantine or among the outliers, exactly once, and bad files are named."""

import threading
from collections import Counter
from pathlib import Path

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from crmuons.data import arrow, geometry, reader, sample, sampler, schema
from crmuons.data.events import EventArrays
from crmuons.data.quarantine import ReadCounts
from crmuons.data.sampler import FileSlice, Segment
from crmuons.data.selection import Selection, in_split
from crmuons.storage.files import File, list_files


def numbered(number, counts=None, first=0):
    """Events that say which they are: energy_gev 1 + event, x_m the event, y_m the muon of the event."""
    events = np.arange(first, first + number)
    counts = np.asarray(events % 5 if counts is None else counts, np.int64)
    muons = np.concatenate([np.arange(count) for count in counts]) if number else np.empty(0)
    columns = [1.0 + events, 0.1 + 0 * events, 0.938 + 0 * events, 1950.0 + 0 * events]
    return EventArrays(
        ids=np.stack([1 + 0 * events, events // 3], axis=1).astype(np.uint64),  # Three depths of a shower.
        primaries=np.stack(columns, axis=1).astype(np.float32),
        counts=counts,
        muons=np.stack([1 + 0 * muons, np.repeat(events, counts), muons], axis=1).astype(np.float32),
    )


def numbers(events):
    """The events' numbers, after checking that each has its own ids and exactly its own muons."""
    number = events.primaries[:, 0].astype(int) - 1
    np.testing.assert_array_equal(events.ids[:, 1], number // 3)
    starts = np.cumsum(events.counts) - events.counts
    for event, start, count in zip(number, starts, events.counts, strict=True):
        mine = events.muons[start : start + count]
        assert set(mine[:, 1]) <= {event}
        assert sorted(mine[:, 2]) == list(range(count))
    assert events.counts.sum() == len(events.muons)
    return number.tolist()


def whole(file):
    return FileSlice(file, 0, 1)


def read_all(file, selection=None):
    return reader.read_slice(whole(file), selection or Selection())


def segment_of(slices, start=0, seed=0):
    return Segment(0, 0, start, seed, tuple(slices))


@pytest.mark.parametrize("row_group_rows", [1, 7, 1000])
@pytest.mark.parametrize("parts", [1, 3, 24])
def test_slices_give_every_row_once_however_row_groups_lie(tmp_path, row_group_rows, parts):
    events = numbered(100)
    arrow.write_events(tmp_path / "e.parquet", [arrow.to_table(events)], row_group_rows=row_group_rows)
    file = File(str(tmp_path / "e.parquet"), 1)
    read = [reader.read_slice(FileSlice(file, part, parts), Selection()) for part in range(parts)]
    assert [number for events, _ in read for number in numbers(events)] == list(range(100))
    assert sum((read_counts for _, read_counts in read), ReadCounts()) == ReadCounts(rows=100)


def test_no_row_group_is_decoded_for_two_slices_unless_it_is_larger_than_they_are(tmp_path, monkeypatch):
    decoded = []
    read_row_groups = pq.ParquetFile.read_row_groups

    def spy(self, groups, **options):
        decoded.extend(groups)
        return read_row_groups(self, groups, **options)

    monkeypatch.setattr(pq.ParquetFile, "read_row_groups", spy)
    for rows, parts, wanted in ((16, 4, list(range(7))), (30, 4, [0, 0, 1, 1, 2, 2, 3])):
        arrow.write_events(tmp_path / "e.parquet", [arrow.to_table(numbered(100))], row_group_rows=rows)
        decoded.clear()
        for part in range(parts):
            reader.read_slice(FileSlice(File(str(tmp_path / "e.parquet"), 1), part, parts), Selection())
        assert decoded == wanted


def test_a_segment_is_its_slices_rows_shuffled_and_is_continued_where_it_was_left(tmp_path, write_toy):
    file = write_toy(tmp_path / "e.parquet", numbered(100))
    slices = [FileSlice(file, part, 4) for part in (2, 0)]
    read_counts, events = reader.read_segment(segment_of(slices), Selection())
    order = numbers(events)
    assert sorted(order) == [*range(25), *range(50, 75)]
    assert order != sorted(order)
    assert read_counts == ReadCounts(rows=50)
    rest = reader.read_segment(segment_of(slices, start=20), Selection())[1]
    assert numbers(rest) == order[20:]
    np.testing.assert_array_equal(rest.muons, events.muons[events.counts[:20].sum() :])
    assert not len(reader.read_segment(segment_of(slices, start=50), Selection())[1].counts)  # All was taken before.
    assert numbers(reader.read_segment(segment_of(slices, seed=1), Selection())[1]) != order


def test_what_was_counted_before_is_not_counted_again(tmp_path, write_toy):
    # A checkpoint inside a segment has counted all rows of the segment already.
    file = write_toy(tmp_path / "e.parquet", numbered(10))
    assert reader.read_segment(segment_of([whole(file)], start=4), Selection())[0] == ReadCounts()


def test_training_draws_the_muons_that_it_takes_of_a_large_event_and_leaves_the_others_in_order(tmp_path, write_toy):
    counts = [50, 0, 10, 11, 50, 9] * 300
    file = write_toy(tmp_path / "e.parquet", numbered(1800, counts=counts))
    events = reader.read_segment(segment_of([whole(file)]), Selection(muons_per_event=10))[1]
    numbers(events)
    first = np.cumsum(events.counts) - events.counts
    places = events.muons[:, 2].astype(int)  # The muon's place in the file.
    for start, count in zip(first, events.counts, strict=True):
        if count <= 10:
            assert places[start : start + count].tolist() == list(range(count))
    drawn = np.stack([places[start : start + 10] for start in first[events.counts == 50]])
    # 600 draws of 10 out of 50: each muon 120 times, with a standard deviation of sqrt(600 * 0.2 * 0.8) = 9.8; five of them.
    assert abs(np.bincount(drawn.ravel(), minlength=50) - 120).max() < 49
    # The order is random too: each of the ten places holds the mean, 24.5, with an error of 14.4 / sqrt(600) = 0.59.
    assert abs(drawn.mean(axis=0) - 24.5).max() < 5 * 0.59
    other = reader.read_segment(Segment(1, 0, 0, 0, (whole(file),)), Selection(muons_per_event=10))[1]
    again = reader.read_segment(segment_of([whole(file)], start=7), Selection(muons_per_event=10))[1]
    assert sorted(numbers(other)) == sorted(numbers(events))
    np.testing.assert_array_equal(
        again.muons, events.muons[first[7] :]
    )  # What is drawn does not depend on where it begins.


def test_splits_share_the_showers_out_whatever_the_files_are_called(tmp_path, write_toy):
    shares = {"validation_share": 0.2, "test_share": 0.1}
    events = numbered(3000)
    file = write_toy(tmp_path / "a" / "x.parquet", events)
    turned = write_toy(tmp_path / "b" / "y.parquet", reader.take(events, np.arange(3000)[::-1]))
    splits = {split: read_all(file, Selection(split, **shares))[0] for split in ("train", "validation", "test")}
    got = {split: set(numbers(part)) for split, part in splits.items()}
    assert sorted(number for part in got.values() for number in part) == list(range(3000))  # Disjoint, and all.
    for split, part in got.items():
        assert set(numbers(read_all(turned, Selection(split, **shares))[0])) == part
        assert all(number in part for each in part for number in range(each // 3 * 3, each // 3 * 3 + 3))
    # 1000 showers: 200 +- 13 and 100 +- 9.5 (binomial); four sigma.
    assert len(got["validation"]) / 3 == pytest.approx(200, abs=51)
    assert len(got["test"]) / 3 == pytest.approx(100, abs=38)


def test_the_split_of_a_shower_never_changes():
    # A shower that changes sides between two versions makes the held-out data known.
    ids = np.array([[0, 0], [0, 1], [1, 0], [1, 1], [7, 42], [2**64 - 1, 2**63], [10001, 3], [10001, 4]], np.uint64)
    selection = {split: Selection(split, 0.3, 0.3) for split in ("train", "validation", "test")}
    names = [next(name for name, chosen in selection.items() if in_split(ids[i : i + 1], chosen)[0]) for i in range(8)]
    assert names == ["train", "test", "validation", "train", "validation", "train", "validation", "test"]


def test_a_larger_validation_share_takes_showers_from_training_alone():
    ids = np.stack([np.zeros(500), np.arange(500)], axis=1).astype(np.uint64)
    for share in (0.1, 0.4):
        np.testing.assert_array_equal(
            in_split(ids, Selection("test", share, 0.2)), in_split(ids, Selection("test", 0.0, 0.2))
        )
    small, large = (in_split(ids, Selection("validation", share, 0.2)) for share in (0.1, 0.4))
    assert (large | ~small).all()


def table_with_faults():
    """Ten events, of which rows 1, 4, 5, 7, 8 and 9 cannot be used."""
    rows = [(row.as_py(), muons.as_py()) for row, muons in zip(*arrow.to_table(numbered(10)).columns[2:], strict=True)]
    rows[1] = ([np.nan, *rows[1][0][1:]], rows[1][1])
    rows[4] = (rows[4][0], [[-1.0, 0.0, 0.0], *rows[4][1]])
    rows[5] = ([*rows[5][0][:2], 0.0, 1950.0], [])
    rows[7] = (rows[7][0][:3], rows[7][1])
    rows[8] = (rows[8][0], [[1.0, 2.0]])
    rows[9] = (rows[9][0], None)
    primaries, muons = zip(*rows, strict=True)
    nullable = pa.schema([field.with_nullable(nullable=True) for field in schema.EVENT_SCHEMA])
    ids = numbered(10).ids
    return pa.table([ids[:, 0], ids[:, 1], list(primaries), list(muons)], schema=nullable)


@pytest.mark.parametrize("parts", [1, 4])
def test_rows_that_cannot_be_used_are_kept_with_file_row_and_reason(tmp_path, caplog, parts):
    table = table_with_faults()
    pq.write_table(table, tmp_path / "e.parquet", row_group_size=3)
    file = File(str(tmp_path / "e.parquet"), 1)
    selection = Selection(quarantine=str(tmp_path / "quarantine"))
    for _ in range(2):  # Another epoch adds nothing.
        read = [reader.read_slice(FileSlice(file, part, parts), selection) for part in range(parts)]
    assert [number for events, _ in read for number in numbers(events)] == [0, 2, 3, 6]
    assert sum((read_counts for _, read_counts in read), ReadCounts()) == ReadCounts(rows=10, quarantined=6)
    kept = pa.concat_tables([pq.read_table(path) for path in (tmp_path / "quarantine").iterdir()]).sort_by("row")
    assert kept["row"].to_pylist() == [1, 4, 5, 7, 8, 9]
    assert set(kept["source"].to_pylist()) == {file.url}
    words = ["NaN", "energy_gev is not positive", "mass_gev", "not 4 wide", "not 3 wide", "not 3 wide"]
    for reason, word in zip(kept["reason"].to_pylist(), words, strict=True):
        assert word in reason
    for name in table.column_names:  # The rows themselves are there, as they were (NaN is not equal to itself).
        assert str(kept[name].to_pylist()) == str(table[name].take([1, 4, 5, 7, 8, 9]).to_pylist())
    assert "e.parquet: 1 of 2 rows cannot be used" in caplog.text or "6 of 10 rows" in caplog.text


def test_events_above_the_cap_go_to_the_outliers_whole(tmp_path, write_toy):
    events = numbered(12, counts=[0, 3, 9, 1, 4, 5, 0, 10, 2, 4, 4, 6])
    file = write_toy(tmp_path / "e.parquet", events)
    selection = Selection(max_muons=4, outliers=str(tmp_path / "outliers"))
    for _ in range(2):
        kept, read_counts = reader.read_slice(FileSlice(file, 0, 1), selection)
    assert numbers(kept) == [0, 1, 3, 4, 6, 8, 9, 10]
    assert read_counts == ReadCounts(rows=12, outliers=4, outlier_muons=9 + 5 + 10 + 6)
    (path,) = (tmp_path / "outliers").iterdir()
    table = pq.read_table(path)
    assert table.schema.equals(schema.EVENT_SCHEMA)
    assert numbers(arrow.to_arrays(table)) == [2, 5, 7, 11]


def test_outliers_are_those_of_the_split_alone(tmp_path, write_toy):
    file = write_toy(tmp_path / "e.parquet", numbered(300))
    rest = {}
    for split in ("train", "validation"):
        selection = Selection(split, 0.5, 0.0, max_muons=2, outliers=str(tmp_path / split))
        kept, read_counts = read_all(file, selection)
        outliers = arrow.to_arrays(pq.read_table(tmp_path / split))
        rest[split] = numbers(kept) + numbers(outliers)
        assert read_counts.outliers == len(outliers.counts)
    assert sorted(rest["train"] + rest["validation"]) == list(range(300))


def test_rows_without_ids_are_named_by_file_and_row(tmp_path):
    bare = arrow.to_table(numbered(30)).select(["primary", "muons"])
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        pq.write_table(bare, tmp_path / folder / "e.parquet")
    pq.write_table(bare, tmp_path / "other.parquet")
    first, _ = read_all(File(str(tmp_path / "a" / "e.parquet"), 1))
    again = [
        reader.read_slice(FileSlice(File(str(tmp_path / "b" / "e.parquet"), 1), i, 3), Selection())[0] for i in range(3)
    ]
    assert len({tuple(pair) for pair in first.ids.tolist()}) == 30
    np.testing.assert_array_equal(reader.concat(again).ids, first.ids)  # Neither the folder nor the cutting matters.
    assert read_all(File(str(tmp_path / "other.parquet"), 1))[0].ids[0, 0] != first.ids[0, 0]


def test_files_of_one_name_in_two_folders_are_other_showers(tmp_path):
    # The field's files are called part0.parquet in every folder: rows with equal numbers would go to one split together.
    for folder, first in (("a", 0), ("b", 30)):
        (tmp_path / folder).mkdir()
        pq.write_table(
            arrow.to_table(numbered(30, first=first)).select(["primary", "muons"]), tmp_path / folder / "part0.parquet"
        )
    both = [read_all(File(str(tmp_path / folder / "part0.parquet"), 1))[0].ids for folder in ("a", "b")]
    assert len(np.unique(np.concatenate(both), axis=0)) == 60


def test_rows_without_ids_keep_their_numbers_where_others_are_left_out(tmp_path):
    table = table_with_faults().select(["primary", "muons"])
    pq.write_table(table, tmp_path / "e.parquet")
    events, _ = read_all(File(str(tmp_path / "e.parquet"), 1))
    assert events.ids[:, 1].tolist() == [0, 2, 3, 6]
    assert (events.primaries[:, 0] - 1).tolist() == [0, 2, 3, 6]


def test_a_vertical_depth_becomes_the_path_through_the_ice():
    zenith = np.array([0.0, np.pi / 3, np.pi / 3, np.pi / 2])
    depth = np.array([1950.0, 1950.0, 10.0, 1950.0])
    primaries = np.stack([1e6 + 0 * depth, zenith, 0.938 + 0 * depth, depth], axis=1).astype(np.float32)
    events = EventArrays(np.zeros((4, 2), np.uint64), primaries, np.zeros(4, np.int64), np.empty((0, 3), np.float32))
    slant = geometry.with_slant_depth(events).primaries[:, 3]
    assert slant[0] == 1950.0  # Straight down.
    # A flat Earth gives d / cos 60 = 3900; the curved one is shorter by 3/2 d^2 tan^2 / (... R): 0.07 % here.
    assert slant[1] == pytest.approx(3900, rel=1.5e-3)
    assert slant[1] < 3900
    assert slant[2] == pytest.approx(20, rel=1e-5)
    # Horizontal at depth d: half a chord, sqrt(R^2 - (R - d)^2) = sqrt(1950 (2 x 6,374,150 - 1950)) = 157.65 km.
    assert slant[3] == pytest.approx(157_657, rel=1e-4)
    np.testing.assert_array_equal(events.primaries, primaries)  # What was given is not changed.


def test_vertical_depths_are_converted_only_where_they_are_said_to_be(tmp_path, write_toy):
    file = write_toy(tmp_path / "e.parquet", numbered(3))
    assert read_all(file)[0].primaries[0, 3] == 1950.0
    converted = read_all(file, Selection(vertical_depth=True))[0]
    assert converted.primaries[0, 3] == pytest.approx(1950 / np.cos(0.1), rel=1e-3)


def broken_files(tmp_path):
    right = numbered(500)
    arrow.write_events(tmp_path / "right.parquet", [arrow.to_table(right)])
    content = (tmp_path / "right.parquet").read_bytes()
    yield "empty", b""
    yield "text", b"energy,zenith\n1,2\n" * 50
    yield "short", b"PAR1"
    yield "noise", b"PAR1" + np.random.default_rng(0).bytes(4000) + b"PAR1"
    for share in (0.1, 0.5, 0.9, 0.999):
        yield f"cut{share}", content[: int(len(content) * share)]
    damaged = np.frombuffer(content, np.uint8).copy()
    damaged[len(damaged) // 3 : len(damaged) // 2] ^= 0x5A  # The footer is whole, the pages are not.
    yield "damaged", damaged.tobytes()
    footer = np.frombuffer(content, np.uint8).copy()
    footer[-200:-60] ^= 0x5A
    yield "footer", footer.tobytes()


def test_files_that_are_not_parquet_or_not_whole_are_refused_by_name(tmp_path):
    for name, content in broken_files(tmp_path):
        path = tmp_path / f"{name}.parquet"
        path.write_bytes(content)
        with pytest.raises(ValueError, match=rf"{name}\.parquet (is not a Parquet|cannot be read).*leave it out"):
            read_all(File(str(path), len(content)))


def test_a_file_of_another_schema_is_refused_by_name(tmp_path):
    pq.write_table(arrow.to_table(numbered(3)).drop_columns(["muons"]), tmp_path / "e.parquet")
    with pytest.raises(ValueError, match=r"e\.parquet: no column 'muons'"):
        read_all(File(str(tmp_path / "e.parquet"), 1))


def test_a_row_with_a_null_id_goes_to_quarantine(tmp_path):
    # Every other row keeps its ids to the last of their 64 bits.
    table = arrow.to_table(numbered(3)).set_column(0, "primary_major_id", pa.array([1, None, 2**64 - 1], pa.uint64()))
    pq.write_table(table, tmp_path / "e.parquet")
    events, read_counts = read_all(File(str(tmp_path / "e.parquet"), 1), Selection(quarantine=str(tmp_path / "q")))
    assert events.ids[:, 0].tolist() == [1, 2**64 - 1]
    assert read_counts == ReadCounts(rows=3, quarantined=1)
    assert pq.read_table(tmp_path / "q")["reason"].to_pylist() == ["a shower id is null"]


@pytest.mark.parametrize("rows", [0, 1])
def test_files_of_no_row_or_one_are_read_in_any_number_of_parts(tmp_path, write_toy, rows):
    file = write_toy(tmp_path / "e.parquet", numbered(rows, counts=[2] * rows))
    read = [reader.read_slice(part, Selection()) for part in sampler.cut_files([file])]
    assert [number for events, _ in read for number in numbers(events)] == list(range(rows))


def test_odd_columns_and_list_types_do_not_matter(tmp_path):
    table = arrow.to_table(numbered(20))
    fixed = table.set_column(2, "primary", table["primary"].cast(pa.list_(pa.float32(), 4)))
    odd = fixed.add_column(0, "weight", pa.array(np.ones(20))).select(["muons", "weight", *fixed.column_names[:3]])
    pq.write_table(odd, tmp_path / "e.parquet")
    assert numbers(read_all(File(str(tmp_path / "e.parquet"), 1))[0]) == list(range(20))


def test_a_sample_is_of_the_splits_asked_for_and_no_larger(tmp_path, write_toy):
    for i in range(4):
        write_toy(tmp_path / f"{i}.parquet", numbered(300, first=300 * i))
    wanted = [(Selection("train", 0.3, 0.2), 400), (Selection("validation", 0.3, 0.2), 10_000)]
    (train, validation), read_counts = sample.sample_events(list_files(str(tmp_path)), wanted)
    assert len(train.counts) == 400
    assert read_counts == ReadCounts(rows=1200)
    expected = np.flatnonzero(in_split(numbered(1200).ids, wanted[1][0]))
    assert sorted(numbers(validation)) == expected.tolist()  # All there are.
    assert not set(numbers(train)) & set(expected.tolist())


def test_a_sample_reads_no_more_than_it_needs(tmp_path, write_toy):
    for i in range(70):
        write_toy(tmp_path / f"{i:02}.parquet", numbered(10, first=10 * i))
    (some,), read_counts = sample.sample_events(list_files(str(tmp_path / "*.parquet")), [(Selection(), 25)])
    assert len(some.counts) == 25
    assert read_counts.rows == 30
    assert Counter(number // 10 for number in numbers(some)).most_common(1)[0][1] == 10
    assert not list(Path(tmp_path).glob(".*"))


def test_remote_files_are_read_several_at_once():
    slices = [FileSlice(File(f"memory://far/{number}", 2**20), 0, 1) for number in range(8)]
    together = threading.Barrier(4)  # Broken where fewer are read at once.

    def read(part, selection):
        together.wait(30)
        return part

    assert list(reader.read_ordered(read, slices, Selection())) == slices


def test_a_remote_item_is_the_local_one(tmp_path):
    far, near = [], []
    for number in range(20):
        path = tmp_path / f"{number}.parquet"
        arrow.write_events(path, [arrow.to_table(numbered(30, first=30 * number))])
        fsspec.filesystem("memory").pipe_file(f"/item/{number}.parquet", path.read_bytes())
        near.append(whole(File(str(path), path.stat().st_size)))
        far.append(whole(File(f"memory://item/{number}.parquet", path.stat().st_size)))
    (read_counts, events), (expected_counts, wanted) = (
        reader.read_segment(segment_of(each), Selection()) for each in (far, near)
    )
    assert read_counts == expected_counts == ReadCounts(600)
    for name in ("ids", "primaries", "counts", "muons"):
        np.testing.assert_array_equal(getattr(events, name), getattr(wanted, name))
    fsspec.filesystem("memory").rm("/item", recursive=True)
