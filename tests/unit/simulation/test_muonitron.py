"""The predecessor's HDF5 and Parquet dumps, written here as its scripts do."""

import sys

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from crmuons import cli
from crmuons.data import arrow, geometry

DEPTHS = (1_500.0, 2_000.0, 2_500.0)


def dump(showers=4, *, time=True, first=1, dtype="f4"):
    """Primaries, muons and counts as the dump has them: events without muons have one muon of zeros."""
    primaries, muons, counts = [], [], []
    rng = np.random.default_rng(0)
    for shower in range(showers):
        ids = [7, first + shower]
        for depth in DEPTHS:
            primaries.append([*ids, 1e6 + shower, 0.3, 0.938, *([0.5] if time else []), depth])
            number = (shower + int(depth) // 500) % 3
            rows = [[*ids, 100.0 + rng.random(), 1.0, -2.0, *([9.0] if time else [])] for _ in range(number)]
            muons += rows or [[*ids, 0, 0, 0, *([0] if time else [])]]
            counts.append(max(number, 1))
    return {
        "primaries": np.array(primaries, dtype), "muons": np.array(muons, dtype), "counts": np.array(counts, "i4"),
    }  # fmt: skip


def hdf5(path, data):
    with h5py.File(path, "w") as file:
        for name, values in data.items():
            file.create_dataset(name, data=values, maxshape=(None, *values.shape[1:]), chunks=True)
    return path


def parquet(path, data, ids=None):
    ends = np.cumsum(data["counts"])
    muons = [data["muons"][end - count : end].tolist() for end, count in zip(ends, data["counts"], strict=True)]
    columns = {"primary": pa.array(data["primaries"].tolist(), pa.list_(pa.float32()))}
    columns["muons"] = pa.array(muons, pa.list_(pa.list_(pa.float32())))
    if ids is not None:
        columns |= {f"primary_{name}_id": pa.array(ids[:, at]) for at, name in enumerate(("major", "minor"))}
    pq.write_table(pa.table(columns), path)
    return path


def convert(form, *words):
    return cli.main(["convert", form, *map(str, words)])


def events(folder):
    return arrow.to_arrays(pq.read_table(folder))


@pytest.mark.parametrize(("form", "write"), [("hdf5", hdf5), ("parquet", parquet)])
@pytest.mark.parametrize("time", [True, False])
def test_the_predecessors_rows_become_events_and_dummy_muons_are_left_out_and_counted(
    tmp_path, capsys, form, write, time
):
    data = dump(time=time)
    path = write(tmp_path / f"dump.{'h5' if form == 'hdf5' else form}", data)
    assert convert(form, path, "--out", tmp_path / "out") == 0
    found = events(tmp_path / "out")
    real = data["muons"][:, 2] > 0
    assert found.counts.sum() == real.sum() < len(real)
    assert found.counts.tolist() == [(shower + int(depth) // 500) % 3 for shower in range(4) for depth in DEPTHS]
    assert found.muons.tolist() == data["muons"][real][:, 2:5].tolist()
    assert found.primaries.tolist() == data["primaries"][:, [2, 3, 4, 6 if time else 5]].tolist()
    assert found.ids.tolist() == data["primaries"][:, :2].astype(int).tolist()
    said = capsys.readouterr().out
    assert f"{(~real).sum()} events without muons, which had a dummy muon of energy 0: it is left out" in said
    assert "4 showers, 12 events, " in said
    assert "which need --vertical" in said


def test_vertical_depths_become_slant_ones(tmp_path):
    path = hdf5(tmp_path / "dump.h5", dump())
    assert convert("hdf5", path, "--out", tmp_path / "out", "--vertical") == 0
    expected = geometry.slant_depth_m(np.array(DEPTHS), np.cos([0.3]))
    assert events(tmp_path / "out").primaries[:3, 3] == pytest.approx(expected, rel=1e-6)


def test_ids_that_single_precision_rounds_are_replaced_so_that_showers_stay_apart(tmp_path, capsys):
    """2^31 + 0 .. 3 are one number in single precision: four showers, which only their primaries tell apart."""
    data = dump(first=2**31)
    assert len(np.unique(data["primaries"][:, 1])) == 1
    assert convert("hdf5", hdf5(tmp_path / "dump.h5", data), "--out", tmp_path / "out") == 0
    ids, rows = np.unique(events(tmp_path / "out").ids, axis=0, return_counts=True)
    assert len(ids) == 4
    assert rows.tolist() == [3, 3, 3, 3]
    assert "whose shower ids are rounded or missing" in capsys.readouterr().out
    exact = hdf5(tmp_path / "exact.h5", dump(first=2**31, dtype="f8"))
    assert convert("hdf5", exact, "--out", tmp_path / "exact") == 0
    assert sorted(set(events(tmp_path / "exact").ids[:, 1].tolist())) == [2**31 + shower for shower in range(4)]


def test_columns_name_other_layouts(tmp_path):
    """The second dump of the predecessor: no ids, and a muon's radius before x and y."""
    data = dump()
    data["primaries"] = data["primaries"][:, [2, 3, 4, 6]]
    data["muons"] = np.insert(data["muons"][:, 2:5], 1, np.sqrt(5.0), axis=1)
    path = parquet(tmp_path / "dump.parquet", data)
    columns = ["--columns", "muons=energy_gev,radius,x_m,y"]
    assert convert("parquet", path, "--out", tmp_path / "out", *columns) == 0
    found = events(tmp_path / "out")
    assert set(map(tuple, found.muons[:, 1:].tolist())) == {(1.0, -2.0)}
    assert len(np.unique(found.ids, axis=0)) == 4  # Rows of the same primary are one shower.


def test_id_columns_beside_the_rows_are_kept(tmp_path):
    data = dump()
    ids = np.repeat(np.array([[2**63 + 1, shower] for shower in range(4)], np.uint64), 3, axis=0)
    path = parquet(tmp_path / "dump.parquet", data, ids)
    assert convert("parquet", path, "--out", tmp_path / "out") == 0
    assert events(tmp_path / "out").ids.tolist() == ids.tolist()


def test_signed_ids_are_the_unsigned_ones_of_the_same_bits_and_a_null_is_refused(tmp_path, capsys):
    data, ids = dump(), np.repeat(np.array([[-1, shower] for shower in range(4)]), 3, axis=0)
    assert convert("parquet", parquet(tmp_path / "dump.parquet", data, ids), "--out", tmp_path / "out") == 0
    assert set(events(tmp_path / "out").ids[:, 0].tolist()) == {2**64 - 1}
    rows = pq.read_table(tmp_path / "dump.parquet")
    holed = rows.set_column(2, "primary_major_id", pa.array([None, *ids[1:, 0].tolist()]))
    pq.write_table(holed, tmp_path / "holed.parquet")
    assert convert("parquet", tmp_path / "holed.parquet", "--out", tmp_path / "none") == 1
    assert "holed.parquet: a shower id is null" in capsys.readouterr().err


@pytest.mark.parametrize(("form", "write"), [("hdf5", hdf5), ("parquet", parquet)])
def test_unknown_widths_are_refused_with_the_width_found(tmp_path, capsys, form, write):
    data = dump()
    data["primaries"] = np.concatenate([data["primaries"], data["primaries"][:, :2]], axis=1)
    path = write(tmp_path / f"dump.{'h5' if form == 'hdf5' else form}", data)
    assert convert(form, path, "--out", tmp_path / "out") == 1
    said = capsys.readouterr().err
    assert f"{path}: the rows of 'primary' have 9 numbers, expected 4: name each number, for example --columns " in said
    named = ["--columns", "primary=major,minor,energy,zenith,mass,time,depth,_,_"]
    assert convert(form, path, "--out", tmp_path / "out", *named, "muons=major,minor,energy,x,y,time") == 0


def test_a_wrong_mapping_is_seen_by_the_ids_of_the_muons(tmp_path, capsys):
    path = hdf5(tmp_path / "dump.h5", dump())
    words = ["--columns", "muons=x,energy,major,minor,y,time"]
    assert convert("hdf5", path, "--out", tmp_path / "out", *words) == 1
    assert "a muon has the shower ids" in capsys.readouterr().err


def test_rows_that_break_the_contract_are_left_out_and_counted_by_reason(tmp_path, capsys):
    data = dump()
    data["primaries"][4, 2] = np.nan
    data["primaries"][5, 6] = 2.5
    assert convert("hdf5", hdf5(tmp_path / "dump.h5", data), "--out", tmp_path / "out") == 0
    assert len(events(tmp_path / "out").counts) == 10
    said = capsys.readouterr().out
    assert "1 rows left out: primary holds NaN or infinity" in said
    assert "1 rows left out: primary depth_m is below 10 m" in said


def changed(name, values):
    return {**dump(), name: values}


@pytest.mark.parametrize(
    ("data", "says"),
    [
        ({"muons": np.zeros((1, 6))}, "no data set 'primaries' (found muons)"),
        (changed("counts", np.ones(3, "i4")), "expected [events, numbers]"),
        (changed("counts", np.full(12, 9, "i4")), "the counts add up to 108 muons"),
        (changed("counts", -np.ones(12, "i4")), "the counts add up to -12 muons"),
        (changed("muons", np.zeros(14)), "expected [events, numbers]"),
        (
            changed("primaries", dump()["primaries"] * (1, 1, -1, 1, 1, 1, 1)),
            "12 rows left out: primary energy_gev is not positive)",
        ),
    ],
)
def test_damaged_dumps_are_named(tmp_path, capsys, data, says):
    path = hdf5(tmp_path / "dump.h5", data)
    assert convert("hdf5", path, "--out", tmp_path / "out") == 1
    said = capsys.readouterr().err
    assert f"{path}: " in said
    assert says in said
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("share", [0.05, 0.3, 0.6, 0.9, 0.99])
def test_a_dump_that_is_cut_short_costs_no_other(tmp_path, capsys, share):
    whole, cut = hdf5(tmp_path / "a.h5", dump()), tmp_path / "b.h5"
    content = whole.read_bytes()
    cut.write_bytes(content[: int(share * len(content))])
    assert convert("hdf5", tmp_path, "--out", tmp_path / "out") == 1
    said = capsys.readouterr().err
    assert said.count(f"{cut}: ") == 1
    assert len(events(tmp_path / "out").counts) == 12


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["primary=energy,zenith,mass"], "depth is missing"),
        (["muons=energy,energy,x,y"], "energy is given twice"),
        (["muons=major,energy,x,y"], "give both of major and minor"),
        (["counts=energy"], "expected primary=NAME"),
    ],
)
def test_columns_that_cannot_be_are_refused(tmp_path, capsys, words, says):
    path = hdf5(tmp_path / "dump.h5", dump())
    assert convert("hdf5", path, "--out", tmp_path / "out", "--columns", *words) == 1
    assert says in capsys.readouterr().err


def test_large_dumps_are_read_in_parts(tmp_path, monkeypatch):
    from crmuons.simulation import muonitron

    monkeypatch.setattr(muonitron, "MUONS_AT_ONCE", 5)
    monkeypatch.setattr(muonitron, "EVENTS_AT_ONCE", 4)
    path = hdf5(tmp_path / "dump.h5", dump(20, first=2**31))
    assert convert("hdf5", path, "--out", tmp_path / "parts") == 0
    monkeypatch.undo()
    assert convert("hdf5", path, "--out", tmp_path / "whole") == 0
    assert pq.read_table(tmp_path / "parts").equals(pq.read_table(tmp_path / "whole"))
    assert len(np.unique(events(tmp_path / "whole").ids, axis=0)) == 20


def test_without_h5py_the_error_says_what_to_install_and_no_directory_is_left(tmp_path, monkeypatch, capsys):
    path = hdf5(tmp_path / "dump.h5", dump())
    monkeypatch.setitem(sys.modules, "h5py", None)
    assert convert("hdf5", path, "--out", tmp_path / "out") == 1
    assert "pip install 'crmuons[hdf5]'" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_other_content_is_named(tmp_path, capsys):
    (tmp_path / "notes.h5").write_text("not HDF5\n" * 9)
    assert convert("hdf5", tmp_path / "notes.h5", "--out", tmp_path / "out") == 1
    assert "neither HDF5 nor Parquet but a text file" in capsys.readouterr().err
