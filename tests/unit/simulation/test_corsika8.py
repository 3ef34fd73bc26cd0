"""CORSIKA 8's output directories, written here as its writers do."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from crmuons import cli
from crmuons.data import arrow
from crmuons.simulation.corsika8 import read_showers
from tests.unit.simulation.corsika_files import MUON, dat_bytes, event_blocks

FIELDS = {
    "shower": pa.int32(), "pdg": pa.int32(), "kinetic_energy": pa.float32(), "x": pa.float32(), "y": pa.float32(),
    "nx": pa.float32(), "ny": pa.float32(), "nz": pa.float32(), "time": pa.float64(), "weight": pa.float32(),
}  # fmt: skip
DOWN = (0.0, 0.0, -1.0)
HEIGHT_M = 112_000.0


def row(*, shower=0, pdg=13, energy=5e3, x=0.0, y=0.0, direction=DOWN, weight=1.0):
    return (shower, pdg, energy, x, y, *direction, 4e-4, weight)


def primary(pdg=2212, energy=1e6, direction=DOWN):
    """The primary at its injection, on an axis through the plane's centre."""
    x, y, z = (-np.array(direction) * HEIGHT_M / -direction[2]).tolist()
    nx, ny, nz = direction
    return {"pdg": pdg, "name": "x", "kinetic_energy": energy, "x": x, "y": y, "z": z, "nx": nx, "ny": ny, "nz": nz}


def library(folder, rows, primaries, *, altitude=2_835.0, normal=(0.0, 0.0, 1.0), fields=FIELDS):
    for name in ("particles", "primary", "profile"):
        (folder / name).mkdir(parents=True)
    columns = list(zip(*rows, strict=True)) if rows else [[]] * len(FIELDS)
    table = {name: pa.array(column, type_) for (name, type_), column in zip(FIELDS.items(), columns, strict=True)}
    pq.write_table(pa.table({name: table[name] for name in fields}), folder / "particles" / "particles.parquet")
    pq.write_table(pa.table({"X": [1.0]}), folder / "profile" / "profile.parquet")
    plane = {"center": [0.0, 0.0, 6_371_000.0 + altitude], "normal": list(normal)}
    texts = {
        "config.yaml": {"name": "library"},
        "particles/config.yaml": {"type": "ObservationPlane", "plane": plane},
        "primary/summary.yaml": {f"shower_{number}": one for number, one in enumerate(primaries)},
    }
    for name, text in texts.items():
        (folder / name).write_text(yaml.safe_dump(text), encoding="utf-8")
    return folder


def corsika(*words):
    return cli.main(["convert", "corsika", *map(str, words)])


def test_muons_and_primaries_are_read_and_empty_showers_too(tmp_path):
    rows = [row(), row(pdg=-13, energy=2e3, x=3.0, y=-4.0), row(pdg=11), row(shower=2, energy=700.0)]
    primaries = [primary(), primary(2112), primary(1_000_260_560, 5e7)]
    showers = list(read_showers(str(library(tmp_path / "lib", rows, primaries))))
    assert [(one.event, one.mass_number, one.muons.counts.tolist()) for one in showers] == [
        (0, 1, [2]), (1, 1, [0]), (2, 56, [1]),
    ]  # fmt: skip
    assert showers[0].muons.energy_gev == pytest.approx([5e3 + 0.105658, 2e3 + 0.105658])
    assert np.hypot(showers[0].muons.x_m, showers[0].muons.y_m) == pytest.approx([0.0, 5.0])
    assert showers[0].energy_gev == pytest.approx(1e6 + 0.938272)
    assert {one.altitude_m for one in showers} == {2_835.0}


def test_numbers_are_read_as_yaml_cpp_writes_them(tmp_path):
    folder = library(tmp_path / "lib", [], [])
    text = "shower_0: {pdg: 2212, kinetic_energy: 1e+06, x: 1e-05, y: -0, z: 112000, nx: 0, ny: 0, nz: -1}"
    (folder / "primary" / "summary.yaml").write_text(text, encoding="utf-8")
    (only,) = read_showers(str(folder))
    assert only.energy_gev == pytest.approx(1e6, rel=1e-5)


def test_it_agrees_with_the_same_inclined_shower_of_corsika_7(tmp_path):
    """A muon beside the axis with an angle to it; positions are along x, y in both, and z downward in CORSIKA 7."""
    zenith, azimuth = 0.9, 2.0
    axis = np.array([np.sin(zenith) * np.cos(azimuth), np.sin(zenith) * np.sin(azimuth), np.cos(zenith)])
    momentum = 5e4 * axis + np.array([30.0, -20.0, 10.0])
    seven = dat_bytes(event_blocks(1, [(5001.0, *momentum, 4_000.0, -7_000.0, 0.0)], zenith=zenith, azimuth=azimuth))
    (tmp_path / "DAT000001").write_bytes(seven)
    down = np.array([1.0, 1.0, -1.0])
    size = float(np.linalg.norm(momentum))
    muon = row(energy=size, x=40.0, y=-70.0, direction=tuple(momentum / size * down))
    eight = library(tmp_path / "lib", [muon], [primary(direction=tuple((axis * down).tolist()))])
    found = []
    for given, out in ((tmp_path / "DAT000001", "seven"), (eight, "eight")):
        assert corsika(given, "--out", tmp_path / out, "--depths", "100") == 0
        found.append(arrow.to_arrays(pq.read_table(tmp_path / out)))
    assert found[0].muons[:, 1:] == pytest.approx(found[1].muons[:, 1:], rel=1e-3)
    assert found[0].primaries == pytest.approx(found[1].primaries, rel=1e-4)


@pytest.mark.parametrize("given", ["lib", "lib/particles", "lib/particles/particles.parquet", "."])
def test_a_library_is_found_by_its_particles_and_its_other_files_are_no_fault(tmp_path, given):
    library(tmp_path / "in" / "lib", [row()], [primary()])
    assert corsika(tmp_path / "in" / given, "--out", tmp_path / "out", "--depths", "600") == 0
    (written,) = (tmp_path / "out").iterdir()
    assert written.name.startswith("lib-")
    assert arrow.to_arrays(pq.read_table(tmp_path / "out")).counts.tolist() == [1]


def test_two_libraries_have_different_showers_and_a_copy_the_same(tmp_path, capsys):
    for name, energy in (("a", 1e6), ("b", 2e6), ("copy", 1e6)):
        library(tmp_path / "in" / name, [row()], [primary(energy=energy)])
    assert corsika(tmp_path / "in", "--out", tmp_path / "out", "--depths", "600") == 1
    ids = arrow.to_arrays(pq.read_table(tmp_path / "out")).ids
    assert len(np.unique(ids[:, 0])) == len(ids) == 2
    assert f"{tmp_path}/in/copy/particles/particles.parquet: run " in capsys.readouterr().err


def test_a_file_of_corsika_7_in_the_same_folder_is_converted_too(tmp_path):
    library(tmp_path / "in", [row()], [primary()])
    (tmp_path / "in" / "DAT000001").write_bytes(dat_bytes(event_blocks(1, [MUON])))
    assert corsika(tmp_path / "in", "--out", tmp_path / "out", "--depths", "600") == 0
    assert len(list((tmp_path / "out").iterdir())) == 2


@pytest.mark.parametrize(
    ("broken", "says"),
    [
        ({"rows": [row(weight=12.0)]}, "thinned (1 of 1 muons have weights other than 1, the largest 12)"),
        ({"normal": (0.0, 0.6, 0.8)}, "the observation plane is not horizontal"),
        ({"primaries": [primary(22)]}, "PDG number 22 is not a nucleus"),
        ({"primaries": [primary(direction=(0.0, 0.0, 1.0))]}, "does not come from above"),
        ({"rows": [row(shower=7)]}, "has no primary for shower 7"),
        ({"fields": [name for name in FIELDS if name != "nz"]}, "a Parquet file that CORSIKA 8 did not write"),
        ({"without": "primary/summary.yaml"}, "has no primary/summary.yaml"),
        ({"without": "particles/config.yaml"}, "has no particles/config.yaml"),
        ({"text": ("primary/summary.yaml", "a: [")}, "primary/summary.yaml is damaged"),
        ({"text": ("primary/summary.yaml", "shower_0: {pdg: 2212}")}, "has no 'x'"),
        ({"text": ("primary/summary.yaml", "first: {pdg: 2212}")}, "expected to be shower_NUMBER"),
        ({"text": ("particles/config.yaml", "plane: 3")}, "has no 'center'"),
        ({"text": ("particles/config.yaml", "plane: {center: 3, normal: [0, 0, 1]}")}, "three numbers each"),
        ({"text": ("primary/summary.yaml", "3: {pdg: 2212}")}, "expected to be shower_NUMBER"),
        ({"text": ("primary/summary.yaml", "shower_0: {pdg: [1]}")}, "'pdg' is no number"),
        ({"text": ("primary/summary.yaml", "[" * 600)}, "primary/summary.yaml is damaged"),
        ({"bytes": ("particles/particles.parquet", b"PAR1" + bytes(90))}, "particles.parquet: "),
    ],
)
def test_what_cannot_be_right_is_named(tmp_path, capsys, broken, says):
    rows, primaries = broken.pop("rows", [row()]), broken.pop("primaries", [primary()])
    options = {name: broken[name] for name in ("normal", "fields") if name in broken}
    folder = library(tmp_path / "lib", rows, primaries, **options)
    if "without" in broken:
        (folder / broken["without"]).unlink()
    if "text" in broken:
        (folder / broken["text"][0]).write_text(broken["text"][1], encoding="utf-8")
    if "bytes" in broken:
        (folder / broken["bytes"][0]).write_bytes(broken["bytes"][1])
    assert corsika(folder, "--out", tmp_path / "out", "--depths", "600") == 1
    said = capsys.readouterr().err
    assert says in said
    assert said.count("particles.parquet: ") == 1
    assert not (tmp_path / "out").exists()


def test_particles_elsewhere_are_named_with_where_they_belong(tmp_path, capsys):
    folder = library(tmp_path / "lib", [row()], [primary()])
    lone = (folder / "particles" / "particles.parquet").rename(tmp_path / "muons.parquet")
    assert corsika(lone, "--out", tmp_path / "out") == 1
    assert "particles of CORSIKA 8, but not at DIRECTORY/particles/particles.parquet" in capsys.readouterr().err
