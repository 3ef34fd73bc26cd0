"""Features of a muon: a file declares them, three-column files are as they were, and illegal values are named."""

import json
import re

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from crmuons.data import arrow, features, schema
from crmuons.data.events import EventArrays, concat, partial_shuffle, take
from crmuons.data.features import BASE, KNOWN, MuonFeature

OWN = MuonFeature("speed_c", "1", "positive")
DECLARED = (*BASE, KNOWN["t_ns"], KNOWN["dir_x"], KNOWN["dir_y"], KNOWN["charge"], OWN)
LEGAL = [100.0, 1.0, 2.0, 3.0, 0.01, 0.02, -1.0, 0.99]


@pytest.fixture
def events(toy_events):
    plain = toy_events(20)
    more = np.tile(np.array(LEGAL[3:], np.float32), (len(plain.muons), 1))
    more[:, 0] = np.arange(len(more))
    return EventArrays(plain.ids, plain.primaries, plain.counts, np.concatenate([plain.muons, more], axis=1))


def test_a_declaration_comes_back_from_a_file_with_the_muons(events, tmp_path):
    arrow.write_events(tmp_path / "e.parquet", [arrow.to_table(events, DECLARED)], features=DECLARED)
    table = pq.read_table(tmp_path / "e.parquet")
    found = features.declared(table.schema, "e")
    assert found == DECLARED
    back = arrow.legal_arrays(table, features=found)
    np.testing.assert_array_equal(back.muons, events.muons)
    np.testing.assert_array_equal(arrow.from_flat(arrow.to_flat(events)).muons, events.muons)


def test_files_of_three_columns_declare_nothing(toy_events):
    table = arrow.to_table(toy_events(5))
    assert table.schema.equals(schema.EVENT_SCHEMA, check_metadata=True)
    assert features.declared(table.schema, "f") == BASE


def test_muons_keep_all_their_numbers_when_events_are_taken_joined_and_shuffled(events):
    taken = concat([take(events, np.array([3, 0])), take(events, np.array([5]))])
    assert taken.muons.shape[1] == len(DECLARED)
    copied = EventArrays(events.ids, events.primaries, events.counts, events.muons.copy())
    partial_shuffle(copied, 2, np.random.default_rng(0))
    assert not np.array_equal(copied.muons, events.muons)
    order = np.argsort(copied.muons[:, 3])  # The number of each muon.
    np.testing.assert_array_equal(copied.muons[order], events.muons)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({4: 0.9, 5: 0.9}, "a direction across the axis has a length of 1 at most"),
        ({6: 0.5}, "a charge is -1 or 1"),
        ({7: 0.0}, "a positive feature is above 0"),
        ({4: 30.0}, "no part of a unit vector"),
        ({3: np.nan}, "a muon holds NaN"),
        ({0: -1.0}, "energy_gev is not positive"),
    ],
)
def test_an_illegal_value_is_named_and_spares_its_neighbours(change, reason):
    bad = [change.get(at, value) for at, value in enumerate(LEGAL)]
    table = _table([[LEGAL], [LEGAL, bad], [], [LEGAL]])
    fault = schema.faults(table, DECLARED)
    np.testing.assert_array_equal(fault > 0, [False, True, False, False])
    assert reason in schema.FAULTS[fault[1]]
    assert arrow.legal_arrays(table, features=DECLARED) is None


def test_a_muon_that_is_not_as_wide_as_declared_is_named():
    fault = schema.faults(_table([[LEGAL], [LEGAL[:3]]]), DECLARED)
    np.testing.assert_array_equal(fault > 0, [False, True])
    assert "as the file's metadata declare" in schema.FAULTS[fault[1]]


def test_times_in_seconds_are_recognised_by_their_size():
    muons = [[*LEGAL[:3], 3e-9 * number, *LEGAL[4:]] for number in range(200)]
    fault = schema.faults(_table([muons]), DECLARED)
    assert "times are in ns, these look like seconds" in schema.FAULTS[fault[0]]
    assert arrow.legal_arrays(_table([muons]), features=DECLARED) is None
    still = [[*LEGAL[:3], 0.0, *LEGAL[4:]] for _ in range(200)]  # All in the plane front.
    assert not schema.faults(_table([still]), DECLARED).any()


@pytest.mark.parametrize(
    ("declaration", "message"),
    [
        ("nonsense", "are damaged"),
        (json.dumps([{"name": "energy_gev"}]), "are damaged ('unit')"),
        (json.dumps([{"name": "t_ns", "unit": "ns", "kind": "signed"}]), "expected energy_gev, x_m, y_m first"),
        ("t_ns s signed", "'t_ns' is declared in s as signed; crmuons keeps it in ns as signed"),
        ("speed 1 fast", "has the kind 'fast'; expected positive, signed, angle, discrete"),
    ],
)
def test_a_wrong_declaration_is_named(declaration, message):
    if len(words := declaration.split()) == 3:
        rows = [{"name": one.name, "unit": one.unit, "kind": one.kind} for one in BASE]
        declaration = json.dumps([*rows, dict(zip(("name", "unit", "kind"), words, strict=True))])
    columns = schema.EVENT_SCHEMA.with_metadata({features.FEATURES_KEY: declaration.encode()})
    with pytest.raises(ValueError, match=re.escape(message)):
        features.declared(columns, "d.parquet")


def test_an_unknown_feature_gets_the_nearest():
    with pytest.raises(ValueError, match=r"data\.features time_ns: expected .* the nearest is t_ns"):
        features.named(["time_ns"], "data.features")


def _table(muons):
    primaries = [[1e6, 0.3, 0.938, 1950.0]] * len(muons)
    ids = [pa.array([1] * len(muons), pa.uint64())] * 2
    columns = [*ids, pa.array(primaries, pa.list_(pa.float32())), pa.array(muons, pa.list_(pa.list_(pa.float32())))]
    return pa.Table.from_arrays(columns, schema=arrow.event_schema(DECLARED))
