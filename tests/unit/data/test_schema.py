"""The data contract: what is legal, what is not and why, and that nothing is lost between table and arrays."""

import re

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from crmuons.data import arrow, schema
from crmuons.data.events import EventArrays
from crmuons.data.schema import EVENT_SCHEMA, FAULTS

PRIMARY = [1e6, 0.5, 0.938, 1950.0]
MUON = [500.0, 1.0, -2.0]


def table(primaries, muons, primary_type=None, muons_type=None):
    primary_type = primary_type or pa.list_(pa.float32())
    muons_type = muons_type or pa.list_(pa.list_(pa.float32()))
    ids = pa.array(range(len(primaries)), pa.uint64())
    return pa.table(
        {
            "primary_major_id": ids,
            "primary_minor_id": ids,
            "primary": pa.array(primaries, primary_type),
            "muons": pa.array(muons, muons_type),
        }
    )


def assert_same(one, other):
    for name in ("ids", "primaries", "counts", "muons"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name), strict=True)


def primary_with(**values):
    return [values.get(name, value) for name, value in zip(schema.PRIMARY_FEATURES, PRIMARY, strict=True)]


def test_a_message_names_the_first_columns_of_many():
    assert schema.names_shown([]) == "none"
    assert schema.names_shown(["a", "b"]) == "a, b"
    shown = schema.names_shown([f"c{i}" for i in range(5000)])
    assert shown.startswith("c0, c1, c2")
    assert shown.endswith("c19 and 4980 more")
    assert schema.names_shown(["x" * 10**6]) == "x" * 80 + "..."


def test_events_survive_the_way_to_a_file_and_back_bit_for_bit(tmp_path, toy_events):
    events = toy_events()
    arrow.write_events(tmp_path / "e.parquet", [arrow.to_table(events)], row_group_rows=7)
    read = pq.read_table(tmp_path / "e.parquet")
    assert read.schema.equals(EVENT_SCHEMA)
    assert not schema.faults(read).any()
    assert_same(arrow.to_arrays(read), events)


def test_a_slice_of_a_table_gives_its_own_rows(toy_events):
    # An Arrow slice shares its parent's buffers: reading these from their start gives other events' muons.
    events = toy_events()
    arrays = arrow.to_arrays(arrow.to_table(events).slice(5, 3))
    start, stop = events.counts[:5].sum(), events.counts[:8].sum()
    np.testing.assert_array_equal(arrays.counts, events.counts[5:8])
    np.testing.assert_array_equal(arrays.muons, events.muons[start:stop])
    np.testing.assert_array_equal(arrays.primaries, events.primaries[5:8])


def test_many_chunks_read_as_one(toy_events):
    events = arrow.to_table(toy_events())
    cut = pa.concat_tables([events.slice(0, 1), events.slice(1, 0), events.slice(1, 9), events.slice(10)])
    assert cut["muons"].num_chunks > 1
    assert_same(arrow.to_arrays(cut), arrow.to_arrays(events))


@pytest.mark.parametrize("empty", [EVENT_SCHEMA.empty_table(), EVENT_SCHEMA.empty_table().slice(0)])
def test_no_rows_are_no_events(empty):
    assert schema.faults(empty).shape == (0,)
    assert arrow.legal_arrays(empty) is not None
    arrays = arrow.to_arrays(empty)
    assert (arrays.ids.shape, arrays.primaries.shape, arrays.muons.shape) == ((0, 2), (0, 4), (0, 3))
    assert_same(arrow.to_arrays(arrow.to_table(arrays)), arrays)


@pytest.mark.parametrize(
    ("primary_type", "muons_type"),
    [
        (pa.list_(pa.float32(), 4), pa.list_(pa.list_(pa.float32(), 3))),
        (pa.large_list(pa.float32()), pa.large_list(pa.large_list(pa.float32()))),
        (pa.large_list(pa.float32()), pa.large_list(pa.list_(pa.float32(), 3))),
        (pa.list_(pa.float64()), pa.list_(pa.list_(pa.float64()))),
        (pa.list_(pa.float32()), pa.list_(pa.large_list(pa.float32()))),
    ],
)
def test_other_list_types_are_the_same_contract(primary_type, muons_type):
    given = ([PRIMARY, primary_with(depth_m=1500.0), PRIMARY], [[MUON, MUON], [], [[1.0, 2.0, 3.0]]])
    odd = table(*given, primary_type, muons_type)
    assert schema.check_schema(odd.schema, "f") is True
    assert not schema.faults(odd).any()
    assert_same(arrow.to_arrays(odd), arrow.to_arrays(table(*given)))
    assert_same(arrow.legal_arrays(odd.slice(1)), arrow.to_arrays(table(*given).slice(1)))
    assert_same(arrow.to_arrays(odd.slice(1)), arrow.to_arrays(table(*given).slice(1)))


def test_fixed_number_of_muons_per_event_is_a_list_too():
    odd = table([PRIMARY] * 2, [[MUON, MUON]] * 2, muons_type=pa.list_(pa.list_(pa.float32(), 3), 2))
    np.testing.assert_array_equal(arrow.to_arrays(odd).counts, [2, 2])


@pytest.mark.parametrize(
    ("bad", "found"),
    [
        (([*PRIMARY, 0.0, 1.0, 2.0], [MUON]), r"column 'primary' is not 4 wide .* \(found 7\)"),
        ((None, [MUON]), r"column 'primary' is not 4 wide .* \(found 0\)"),
        ((PRIMARY, [MUON, [*MUON, 1.0, 2.0], None]), r"a muon that is not 3 wide .* \(found 0 and 3 and 5\)"),
        ((PRIMARY, None), r"a muon that is not 3 wide .* \(found nothing\)"),
        ((primary_with(energy_gev=0.0), []), "primary energy_gev is not positive"),
    ],
)
def test_the_words_for_a_fault_name_the_widths_found(bad, found):
    rows = table([PRIMARY, bad[0]], [[MUON], bad[1]])
    assert re.fullmatch(f".*{found}", schema.fault_of(rows, 1, schema.faults(rows)[1]))


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        ((PRIMARY[:3], [MUON]), "column 'primary' is not 4 wide"),
        (([*PRIMARY, 0.0], [MUON]), "column 'primary' is not 4 wide"),
        ((None, [MUON]), "column 'primary' is not 4 wide"),
        ((PRIMARY, [MUON, MUON[:2]]), "a muon that is not 3 wide"),
        ((PRIMARY, [[], MUON]), "a muon that is not 3 wide"),
        ((PRIMARY, [MUON, None]), "a muon that is not 3 wide"),
        ((PRIMARY, None), "a muon that is not 3 wide"),
        ((primary_with(energy_gev=np.nan), []), "primary holds NaN"),
        ((primary_with(zenith_rad=None), []), "primary holds NaN"),
        ((primary_with(depth_m=np.inf), []), "primary holds NaN"),
        ((primary_with(energy_gev=0.0), []), "primary energy_gev is not positive"),
        ((primary_with(mass_gev=0.0), []), "primary mass_gev is not positive"),
        ((primary_with(zenith_rad=-0.01), []), "zenith_rad is outside"),
        ((primary_with(zenith_rad=60.0), []), "zenith_rad is outside"),
        ((primary_with(depth_m=1.95), []), "looks like kilometres"),
        ((PRIMARY, [MUON, [1.0, np.nan, 0.0]]), "a muon holds NaN"),
        ((PRIMARY, [MUON, [1.0, None, 0.0]]), "a muon holds NaN"),
        ((PRIMARY, [[1.0, np.inf, -np.inf]]), "a muon holds NaN"),
        ((PRIMARY, [MUON, [-1.0, 0.0, 0.0]]), "a muon's energy_gev is not positive"),
        ((PRIMARY, [MUON, [0.0, 0.0, 0.0]]), "a muon's energy_gev is not positive"),
    ],
)
def test_an_illegal_row_is_named_with_its_reason_and_spares_its_neighbours(bad, reason):
    neighbours = [(PRIMARY, [MUON] * 3), (PRIMARY, []), bad, (PRIMARY, []), (PRIMARY, [MUON])]
    fault = schema.faults(table(*zip(*neighbours, strict=True)))
    np.testing.assert_array_equal(fault > 0, [False, False, True, False, False])
    assert reason in FAULTS[fault[2]]
    assert arrow.legal_arrays(table(*zip(*neighbours, strict=True))) is None
    alone = schema.faults(table([bad[0]], [bad[1]]))
    assert FAULTS[alone[0]] == FAULTS[fault[2]]


def test_each_of_many_bad_rows_gets_its_own_reason():
    rows = [
        (PRIMARY, [MUON, [np.nan, 0, 0]]), (PRIMARY, [MUON]), (PRIMARY[:2], None), (PRIMARY, []),
        (primary_with(mass_gev=-1.0), [[-1.0, 0, 0]]), (PRIMARY, [MUON[:1], MUON]), (PRIMARY, [[-1.0, 0, 0], MUON]),
    ]  # fmt: skip
    fault = schema.faults(table(*zip(*rows, strict=True)))
    assert fault.tolist() == [8, 0, 1, 0, 5, 2, 9]  # The first check that applies names the row.


def test_limits_of_the_contract_are_legal():
    edge = [primary_with(zenith_rad=float(np.pi / 2)), primary_with(zenith_rad=0.0), primary_with(depth_m=10.0)]
    assert not schema.faults(table(edge, [[[1e-30, 0.0, 0.0]]] * 3)).any()
    assert arrow.legal_arrays(table(edge, [[[1e-30, 0.0, 0.0]]] * 3)) is not None
    assert arrow.legal_arrays(table([PRIMARY], [[[3e38, 3e38, 3e38]]])) is not None  # Their sum is infinite.


def test_double_precision_too_large_for_single_is_not_finite():
    rows = table([primary_with(energy_gev=1e300), PRIMARY], [[], [[1e300, 0, 0]]], pa.list_(pa.float64()),
                 pa.list_(pa.list_(pa.float64())))  # fmt: skip
    assert schema.faults(rows).tolist() == [3, 8]


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        ({"muons": None}, ["f.parquet", "no column 'muons'", "primary", "expected list<list<float32>>"]),
        ({"primary": None}, ["no column 'primary'", "expected list<float32>"]),
        ({"primary": pa.array([1.0, 2.0])}, ["column 'primary' has type double", "expected list<float32>"]),
        ({"muons": pa.array([[1.0], [2.0]])}, ["column 'muons' has type list<", "expected list<list<float32>>"]),
        ({"muons": pa.array([[[1]], [[2]]])}, ["column 'muons' has type", "expected list<list<float32>>"]),
        ({"primary_major_id": pa.array(["a", "b"])}, ["column 'primary_major_id' has type string", "expected uint64"]),
        ({"primary_minor_id": None}, ["'primary_major_id' without 'primary_minor_id'"]),
    ],
)
def test_a_wrong_schema_is_refused_with_file_column_and_type(columns, words):
    right = table([PRIMARY] * 2, [[MUON]] * 2)
    wrong = {name: columns.get(name, right[name]) for name in right.column_names}
    found = pa.table({name: column for name, column in wrong.items() if column is not None})
    with pytest.raises(ValueError, match=r"f\.parquet") as caught:
        schema.check_schema(found.schema, "f.parquet")
    for word in words:
        assert word in str(caught.value)


def test_a_file_without_ids_is_legal_and_gets_the_ids_it_is_given():
    bare = table([PRIMARY] * 2, [[MUON], []]).select(["primary", "muons"])
    assert schema.check_schema(bare.schema, "f") is False
    with pytest.raises(ValueError, match="no columns primary_major_id and primary_minor_id"):
        arrow.to_arrays(bare)
    ids = np.array([[1, 2], [3, 2**64 - 1]], np.uint64)
    np.testing.assert_array_equal(arrow.to_arrays(bare, ids).ids, ids)


def test_ids_of_64_bits_are_kept_and_a_null_id_is_refused(toy_events):
    ids = np.array([[2**64 - 1, 2**53 + 1], [0, 2**63]], np.uint64)
    kept = EventArrays(ids, np.array([PRIMARY] * 2, np.float32), np.zeros(2, np.int64), np.empty((0, 3), np.float32))
    np.testing.assert_array_equal(arrow.to_arrays(arrow.to_table(kept)).ids, ids)
    rows = table([PRIMARY] * 2, [[], []])
    holed = rows.set_column(1, "primary_minor_id", pa.array([1, None], pa.uint64()))
    assert arrow.legal_arrays(holed) is None
    with pytest.raises(ValueError, match="a shower id is null"):
        arrow.to_arrays(holed)


def test_wrong_widths_never_pass_as_other_muons():
    # Two muons of widths 2 and 4 are 6 numbers, which would reshape into two muons of others' values.
    with pytest.raises(ValueError, match="column 'muons', list 0: width 2, expected 3"):
        arrow.to_arrays(table([PRIMARY], [[[1.0, 2.0], [3.0, 4.0, 5.0, 6.0]]]))
    with pytest.raises(ValueError, match="column 'primary', list 1: width 5, expected 4"):
        arrow.to_arrays(table([PRIMARY, [*PRIMARY, 1.0], PRIMARY[:3]], [[]] * 3))


def test_a_file_appears_only_once_it_is_whole(tmp_path, toy_events):
    events = arrow.to_table(toy_events())
    with pytest.raises(ValueError, match="schema"):
        arrow.write_events(tmp_path / "e.parquet", [events, events.drop_columns(["muons"])])
    assert not list(tmp_path.glob("*.parquet"))
    arrow.write_events(tmp_path / "e.parquet", [events, events])  # The left-over of the failure is no obstacle.
    assert pq.read_table(tmp_path / "e.parquet").num_rows == 2 * events.num_rows


def test_a_null_in_a_fixed_size_list_is_a_fault_of_its_row_alone():
    fixed = pa.list_(pa.float32(), 4), pa.list_(pa.list_(pa.float32(), 3))
    rows = table([PRIMARY, None, PRIMARY, PRIMARY], [[MUON], [MUON], [MUON, None], [MUON]], *fixed)
    assert schema.faults(rows).tolist() == [0, 1, 2, 0]
    kept = arrow.to_arrays(rows.filter(pa.array(schema.faults(rows) == 0)))
    assert_same(kept, arrow.to_arrays(rows.take([0, 3])))
    np.testing.assert_array_equal(kept.counts, [1, 1])
