"""Formats of other tools: each is read back by its public package, or by a strict parser of its documented lines."""

import re
import runpy
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from crmuons.cli import main
from crmuons.data import arrow, features
from crmuons.data.events import EventArrays
from crmuons.generation.formats import FORMATS, format_named
from crmuons.generation.formats.tracks import MUON_MASS_GEV, axes, azimuths, parse_fill, to_tracks
from crmuons.generation.rewrite import FormatOptions, rewrite

NAMES = ("energy_gev", "x_m", "y_m", "t_ns", "dir_x", "dir_y", "charge")
DECLARED = features.named(NAMES, "--features")


@pytest.fixture(scope="module")
def events(toy_events):
    """Toy events whose muons have directions, times and charges."""
    plain = toy_events(700)  # More than one part of a file.
    rng = np.random.default_rng(1)
    number = len(plain.muons)
    angle, azimuth = rng.exponential(0.01, number), rng.uniform(0, 2 * np.pi, number)
    more = np.stack(
        [
            rng.exponential(5, number),
            np.sin(angle) * np.cos(azimuth),
            np.sin(angle) * np.sin(azimuth),
            rng.choice([-1, 1], number),
        ]
    )
    muons = np.concatenate([plain.muons, more.T.astype(np.float32)], axis=1)
    return EventArrays(plain.ids, plain.primaries, plain.counts, muons)


@pytest.fixture(scope="module")
def source(events, tmp_path_factory):
    path = tmp_path_factory.mktemp("events") / "bundles.parquet"
    arrow.write_events(path, [arrow.to_table(events, DECLARED)], features=DECLARED)
    return path


@pytest.fixture(scope="module")
def tracks(events):
    return to_tracks(events, NAMES, azimuth_rad=azimuths(events.ids))


def write(source, out, name, **options):
    rewrite([str(source)], str(out), FormatOptions(format_named(name, "--to"), options.pop("fill", {}), **options))
    return out / f"{source.stem}{FORMATS[name].suffix}"


def assert_single(found, expected):
    np.testing.assert_array_equal(np.asarray(found, np.float32), np.asarray(expected, np.float32))


def test_tracks_fly_away_from_where_the_shower_comes_and_keep_their_distances(events, tracks):
    np.testing.assert_allclose(np.linalg.norm(tracks.direction, axis=1), 1, atol=1e-12)
    distance = np.linalg.norm(tracks.position_m, axis=1)
    np.testing.assert_allclose(distance, np.hypot(*events.muons[:, 1:3].T.astype(float)), rtol=1e-6)
    zenith, azimuth = events.primaries[:, 1].astype(float), tracks.azimuth_rad
    comes_from = [np.sin(zenith) * np.cos(azimuth), np.sin(zenith) * np.sin(azimuth), np.cos(zenith)]
    cosine = -(tracks.direction * np.stack(comes_from, axis=1)[tracks.event]).sum(axis=1)
    np.testing.assert_allclose(cosine, np.sqrt(1 - (events.muons[:, 4:6].astype(float) ** 2).sum(axis=1)), atol=1e-9)
    frame = axes(zenith, azimuth)
    np.testing.assert_allclose(frame @ frame.transpose(0, 2, 1), np.tile(np.eye(3), (len(zenith), 1, 1)), atol=1e-12)
    assert (frame[:, 0, 2] >= 0).all()  # x rises,
    assert (frame[:, 1, 2] == 0).all()  # and y is horizontal.


def test_all_depths_of_a_shower_have_its_azimuth_and_azimuths_are_uniform(events, tracks):
    same = tracks.azimuth_rad.reshape(-1, 3)
    assert (same == same[:, :1]).all()
    assert abs(np.exp(1j * same[:, 0]).mean()) < 3 / np.sqrt(len(same))  # 3 sigma of a mean of unit vectors
    assert not np.array_equal(azimuths(events.ids, seed=1), tracks.azimuth_rad)


def test_corsika8_columns_hold_every_muon(source, tmp_path, tracks):
    table = pq.read_table(write(source, tmp_path / "out", "corsika8"))
    assert table.column_names == [
        "shower", "pdg", "kinetic_energy", "x", "y", "z", "nx", "ny", "nz", "time", "weight"
    ]  # fmt: skip
    np.testing.assert_array_equal(table["shower"], tracks.event)
    np.testing.assert_array_equal(table["pdg"], np.where(tracks.charge < 0, 13, -13))
    assert_single(table["kinetic_energy"], tracks.energy_gev - MUON_MASS_GEV)
    for at, axis in enumerate("xyz"):
        assert_single(table[axis], tracks.position_m[:, at])
        assert_single(table[f"n{axis}"], tracks.direction[:, at])
    assert_single(table["time"].to_numpy() * 1e9, tracks.t_ns)  # in seconds
    assert (table["weight"].to_numpy() == 1).all()


def test_f2k_lines_are_those_that_ppc_reads(source, tmp_path, tracks):
    lines = write(source, tmp_path / "out", "f2k").read_text().splitlines()
    assert lines[:2] == ["V 2000.1.2", "TBEGIN ? ? ?"]
    assert lines[-2:] == ["TEND ? ? ?", "END"]
    number = r"-?\d+(?:\.\d+)?(?:e[+-]?\d+)?"
    track = re.compile(rf"TR (\d+) (\d+) (amu[+-]) ({number})" + rf" ({number})" * 7)
    found, events = [], []
    for line in lines[2:-2]:
        if line.startswith("EM "):
            events.append(0)
        elif line != "EE":
            fields = track.fullmatch(line).groups()
            assert (int(fields[0]), int(fields[1])) == (len(events) - 1, events[-1])
            events[-1] += 1
            found.append([*map(float, fields[3:]), -1.0 if fields[2] == "amu-" else 1.0])
    np.testing.assert_array_equal(events, tracks.counts)
    x, y, z, theta, phi, length, energy, time, charge = np.array(found).T
    assert_single(np.stack([x, y, z], axis=1), tracks.position_m)
    # ppc turns the angles round: theta = 180 - theta, phi = phi + 180, then takes the direction of flight.
    theta, phi = np.deg2rad(180 - theta), np.deg2rad(np.where(phi < 180, phi + 180, phi - 180))
    flight = np.stack([np.sin(theta) * np.cos(phi), np.sin(theta) * np.sin(phi), np.cos(theta)], axis=1)
    np.testing.assert_allclose(flight, tracks.direction, atol=6e-7)  # float32 of an azimuth in degrees
    assert_single(energy, tracks.energy_gev)
    assert_single(time, tracks.t_ns)
    np.testing.assert_array_equal(charge, tracks.charge)
    # 1 TeV comes 2.4 km w.e. with MMC's mean losses of 0.26 GeV and 0.36e-3 a metre: ln(1 + 1.36) / 0.36e-3 / 0.917.
    assert length[np.argmin(np.abs(energy - 1e3))] == pytest.approx(2_600, rel=0.1)


def test_the_mupage_table_has_a_row_for_each_muon(source, tmp_path, tracks):
    head, livetime, *lines = write(source, tmp_path / "out", "mupage").read_text().splitlines()
    assert (head, livetime) == ("Run Number: 1", "livetime : 0 0")
    assert all(re.fullmatch(r"\d+ \d+ \d+( \S+){8} 6", line) for line in lines)
    table = np.array([line.split() for line in lines], np.float64)
    np.testing.assert_array_equal(table[:, 0], tracks.event + 1)
    np.testing.assert_array_equal(table[:, 1], tracks.counts[tracks.event])
    assert [*table[: tracks.counts[0], 2]] == [*range(1, tracks.counts[0] + 1)]
    assert_single(table[:, 3:6], tracks.position_m)
    assert_single(table[:, 6:9], tracks.direction)
    assert_single(table[:, 9], tracks.energy_gev)
    assert_single(table[:, 10], tracks.t_ns)


def test_siren_rows_are_momenta_and_positions(source, tmp_path, tracks):
    head, *lines = write(source, tmp_path / "out", "siren").read_text().splitlines()
    assert head == "E,px,py,pz,x0,y0,z0"
    table = np.array([[float(number) for number in line.split(",")] for line in lines])
    assert table.shape == (len(tracks.energy_gev), 7)
    assert_single(table[:, 0], tracks.energy_gev)
    np.testing.assert_allclose(table[:, 0] ** 2 - (table[:, 1:4] ** 2).sum(axis=1), MUON_MASS_GEV**2, atol=1e-5 * 1e8)
    momentum = np.sqrt(tracks.energy_gev**2 - MUON_MASS_GEV**2)
    assert_single(table[:, 1:4], tracks.direction * momentum[:, None])
    assert_single(table[:, 4:], tracks.position_m)


def test_icecubes_tables_hold_events_and_muons(source, tmp_path, events, tracks):
    h5py = pytest.importorskip("h5py")
    with h5py.File(write(source, tmp_path / "out", "icecube")) as file:
        assert "I3CorsikaInfo" not in file  # It is not known from which spectrum these come.
        primary, muon, index = file["PolyplopiaPrimary"][:], file["I3MCTree"][:], file["__I3Index__/I3MCTree"][:]
        weight = file["CorsikaWeightMap"][:]
    np.testing.assert_array_equal(primary["Event"], np.arange(len(events.counts)))
    assert_single(primary["energy"], events.primaries[:, 0])
    assert_single(primary["zenith"], events.primaries[:, 1])
    masses = {0.938: 2212, 3.727: 1000020040, 52.1: 1000260560}
    expected = [masses[round(float(mass), 3)] for mass in events.primaries[:, 2]]
    np.testing.assert_array_equal(primary["type"], expected)
    np.testing.assert_array_equal(weight["PrimaryType"], expected)
    assert (weight["Weight"] == 1).all()
    np.testing.assert_array_equal(index["stop"] - index["start"], events.counts)
    np.testing.assert_array_equal(muon["Event"], tracks.event)
    for at, axis in enumerate("xyz"):
        assert_single(muon[axis], tracks.position_m[:, at])
    zenith, azimuth = muon["zenith"], muon["azimuth"]
    flight = -np.stack([np.sin(zenith) * np.cos(azimuth), np.sin(zenith) * np.sin(azimuth), np.cos(zenith)], axis=1)
    np.testing.assert_allclose(flight, tracks.direction, atol=1e-12)
    assert_single(muon["time"], tracks.t_ns)
    np.testing.assert_array_equal(muon["type"], np.where(tracks.charge < 0, 13, -13))


@pytest.mark.parametrize("name", FORMATS)
def test_a_feature_that_the_muons_lack_is_named_with_the_remedy_and_can_be_filled_in(
    name, toy_events, tmp_path, write_toy
):
    plain = write_toy(tmp_path / "plain.parquet", toy_events(20)).url
    fill = parse_fill([f"{need}=0" if need != "charge" else "charge=-1" for need in FORMATS[name].needs])
    words = " ".join(f"{need}={value:g}" for need, value in fill.items())
    with pytest.raises(ValueError, match=re.escape(f"--fill {words}, which")) as error:
        rewrite([plain], str(tmp_path / "out"), FormatOptions(format_named(name, "--to"), {}))
    assert f"{plain} needs {', '.join(FORMATS[name].needs)}, which the muons lack" in str(error.value)
    assert not [path for path in (tmp_path / "out").glob("*") if not path.name.startswith(".")]
    assert rewrite([plain], str(tmp_path / "out"), FormatOptions(format_named(name, "--to"), fill)).events == 60


def test_the_command_continues_and_makes_again_what_has_changed(toy_events, tmp_path, write_toy, capsys):
    for name in "ab":
        write_toy(tmp_path / "in" / f"{name}.parquet", toy_events(20, seed=ord(name)))
    command = ["convert", "events", str(tmp_path / "in"), "--to", "siren", "--out", str(tmp_path / "out")]
    command += ["--fill", "dir_x=0", "dir_y=0"]
    assert main(command) == 0
    first = {name: (tmp_path / "out" / f"{name}.csv").stat().st_ino for name in "ab"}
    write_toy(tmp_path / "in" / "b.parquet", toy_events(30, seed=5))
    assert main(command) == 0
    assert "2 files with 150 events" in capsys.readouterr().out
    second = {name: (tmp_path / "out" / f"{name}.csv").stat().st_ino for name in "ab"}
    assert (first["a"] == second["a"], first["b"] == second["b"]) == (True, False)
    assert main([*command[:-2], "dir_x=0", "dir_y=0.1"]) == 1
    assert "files of other options (" in capsys.readouterr().err


def test_a_file_that_ends_early_leaves_no_output(tmp_path, toy_events, write_toy):
    path = tmp_path / "in" / "cut.parquet"
    write_toy(path, toy_events(50))
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"cut\.parquet is not a Parquet file, or is damaged"):
        rewrite(
            [str(path)], str(tmp_path / "out"), FormatOptions(format_named("siren", "--to"), {"dir_x": 0, "dir_y": 0})
        )
    assert [path.name for path in (tmp_path / "out").glob("*.csv")] == []


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--to", "parquet"], "--to parquet: the events are in this format already; expected tracks, corsika8"),
        (["--to", "f2"], "--to f2: expected tracks, corsika8, icecube, f2k, mupage, siren; the nearest is f2k"),
        (["--to", "siren", "--fill", "dirx=0"], "--fill dirx=0: expected NAME=VALUE with one of dir_x"),
        (["--to", "siren", "--fill", "dir_x=2"], "--fill dir_x=2: '2' is no value of dir_x"),
        (["--to", "siren", "--fill", "charge=0"], "--fill charge=0: '0' is no value of charge (-1 or 1, in e)"),
        (["--to", "siren", "--fill", "dir_x=0.9", "dir_y=0.9"], "is longer than 1; give a unit vector's components"),
    ],
)
def test_wrong_options_name_the_nearest_or_what_is_expected(words, message, source, tmp_path, capsys):
    assert main(["convert", "events", str(source), "--out", str(tmp_path / "out"), *words]) != 0
    assert message in capsys.readouterr().err


def test_the_icetray_module_reads_the_same_tracks(source, events):
    path = Path(__file__).parents[3] / "cluster" / "icetray" / "bundles.py"
    module = runpy.run_path(str(path))
    tracks = to_tracks(events, NAMES, azimuth_rad=np.full(len(events.counts), 1.1))
    rows = list(module["read_bundles"](source, azimuth=1.1))
    assert len(rows) == len(events.counts)
    position, direction, energy, time, charge = (np.concatenate([row[at] for row in rows]) for at in range(2, 7))
    np.testing.assert_allclose(position, tracks.position_m, atol=1e-9)
    np.testing.assert_allclose(direction, tracks.direction, atol=1e-12)
    np.testing.assert_array_equal(energy, tracks.energy_gev)
    np.testing.assert_array_equal(time, tracks.t_ns)
    np.testing.assert_array_equal(charge, tracks.charge)
