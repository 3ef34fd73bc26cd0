"""The CORSIKA reader on files written here to the format's letter, and on real ones."""

import importlib
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from crmuons import cli
from crmuons.data import arrow, schema
from crmuons.simulation import corsika
from crmuons.simulation.bundles import bundle_tables
from crmuons.simulation.comparison import LEAST_SHOWERS, compare_with_simulator
from crmuons.simulation.convert import convert_corsika
from crmuons.simulation.corsika import read_showers
from crmuons.simulation.surface import DepthSettings
from tests.unit.simulation.corsika_files import BLOCK, MUON, dat_bytes, event_blocks

SHARED = Path(__file__).parents[3].parent / "shared" / "data" / "corsika"


def convert(paths, out, **settings):
    """Convert files; return what was left out."""
    return convert_corsika(paths, str(out), DepthSettings(**settings)).left_out


@pytest.fixture
def dat(tmp_path):
    """Write a file of events."""

    def write(*events, name="DAT000001", run=1):
        path = tmp_path / "in" / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(dat_bytes(*events, run=run))
        return path

    return write


def test_muons_alone_are_read(dat):
    parents = [(-5004.0, *MUON[1:]), (75001.0, *MUON[1:]), (14001.0, *MUON[1:])]
    (found,) = read_showers(dat(event_blocks(3, [parents[0], MUON, parents[1], (6001.0, *MUON[1:]), parents[2]])))
    assert (found.run, found.event, found.mass_number) == (1, 3, 1)
    assert found.altitude_m == 2_835
    assert found.muons.counts.tolist() == [2]
    assert found.muons.energy_gev == pytest.approx(5e3)


def test_positions_are_across_the_axis_of_an_inclined_shower(dat):
    zenith, azimuth = np.pi / 3, 0.0
    axis = np.array([np.sin(zenith), 0.0, np.cos(zenith)])
    parallel_x = (5001.0, *(5e3 * axis), 1_000.0, 0.0, 0.0)
    parallel_y = (6001.0, *(5e3 * axis), 0.0, 1_000.0, 0.0)
    (found,) = read_showers(dat(event_blocks(1, [parallel_x, parallel_y], zenith=zenith, azimuth=azimuth)))
    # 10 m along the azimuth are 10 cos 60 = 5 m across the axis; 10 m beside it stay 10 m.
    assert found.muons.x_m == pytest.approx([5.0, 0.0], abs=1e-5)
    assert found.muons.y_m == pytest.approx([0.0, 10.0], abs=1e-5)
    assert found.muons.angle_x == pytest.approx([0.0, 0.0], abs=1e-6)


def test_muons_follow_straight_lines_to_the_plane_across_the_axis(dat, tmp_path):
    zenith, azimuth, depth = 0.9, 2.0, 2_000.0
    axis = np.array([np.sin(zenith) * np.cos(azimuth), np.sin(zenith) * np.sin(azimuth), np.cos(zenith)])
    momentum = 5e4 * axis + np.array([30.0, -20.0, 10.0])
    muon = (5001.0, *momentum, 4_000.0, -7_000.0, 0.0)
    path = dat(event_blocks(1, [muon], zenith=zenith, azimuth=azimuth))
    assert convert([str(path)], tmp_path / "out", depths_m=(depth,)) == {}
    (found,) = arrow.to_arrays(pq.read_table(tmp_path / "out")).muons.astype(float)
    # The muon's line meets the plane at `depth` along the axis; its distance from the axis there, without any basis.
    start = np.array([40.0, -70.0, 0.0])
    point = start + momentum * (depth - start @ axis) / (momentum @ axis)
    # Scattering in the ice moves a muon of this energy by centimetres.
    assert np.hypot(*found[1:]) == pytest.approx(np.linalg.norm(point - depth * axis), abs=0.3)
    assert found[0] < np.linalg.norm(momentum)


@pytest.mark.parametrize(
    ("particle_id", "mass_gev"), [(14, 0.93827), (402, 3.7274), (1206, 11.175), (2814, 26.053), (5626, 52.09)]
)
def test_primaries_have_their_mass_in_gev(dat, tmp_path, particle_id, mass_gev):
    convert([str(dat(event_blocks(1, [MUON], particle_id=particle_id)))], tmp_path / "out")
    primaries = arrow.to_arrays(pq.read_table(tmp_path / "out")).primaries
    assert primaries[:, 2] == pytest.approx(mass_gev, rel=2.5e-3)
    assert primaries[:, 3].tolist() == [1_500, 2_000, 2_500]


def test_vertical_depths_become_slant_ones(dat, tmp_path):
    path = dat(event_blocks(1, [MUON], zenith=np.pi / 3))
    convert([str(path)], tmp_path / "out", depths_m=(1_000.0,), vertical=True)
    (primary,) = arrow.to_arrays(pq.read_table(tmp_path / "out")).primaries
    assert primary[3] == pytest.approx(2_000, rel=1e-3)


def test_showers_without_muons_are_events_too(dat, tmp_path):
    path = dat(event_blocks(1, []), event_blocks(2, [MUON]))
    convert([str(path)], tmp_path / "out", depths_m=(600.0,))
    events = arrow.to_arrays(pq.read_table(tmp_path / "out"))
    assert events.ids.tolist() == [[1, 1], [1, 2]]
    assert events.counts.tolist() == [0, 1]


def test_losses_depend_on_the_seed_and_the_shower_alone(dat, tmp_path):
    first, second = event_blocks(1, [MUON] * 9), event_blocks(2, [MUON] * 9)
    both = dat(first, second)
    alone = dat(second, name="DAT000002")

    def energies(path, out, seed):
        convert([str(path)], tmp_path / out, seed=seed)
        events = arrow.to_arrays(pq.read_table(tmp_path / out))
        return events.muons[np.repeat(events.ids[:, 1], events.counts) == 2, 0].tolist()

    assert energies(both, "a", 0) == energies(alone, "b", 0)
    assert energies(alone, "c", 1) != energies(alone, "d", 0)
    showers = arrow.to_arrays(pq.read_table(tmp_path / "a")).muons[:, 0]
    assert len(set(showers.tolist())) == len(showers)  # Two showers of like muons, but no two like losses.


def damaged(folder):
    whole = dat_bytes(event_blocks(1, [MUON]), event_blocks(2, [MUON]), run=9)
    folder.mkdir()
    (folder / "empty").write_bytes(b"")
    (folder / "text").write_text("Not a shower.\n" * 500)
    (folder / "two-bytes").write_bytes(b"ab")
    (folder / "within-a-block").write_bytes(whole[: 2 * BLOCK + 100])
    (folder / "within-an-event").write_bytes(whole[: 5 * BLOCK])
    (folder / "between-events").write_bytes(whole[: 4 * BLOCK])
    (folder / "within-the-run-header").write_bytes(whole[:500])
    (folder / "run-header-alone").write_bytes(whole[:BLOCK])
    (folder / "photon-primary").write_bytes(dat_bytes(event_blocks(1, [MUON], run=8, particle_id=1), run=8))
    return sorted(path.name for path in folder.iterdir())


def test_damaged_files_are_named_and_left_out_whole(dat, tmp_path, capsys):
    names = damaged(tmp_path / "bad")
    good = dat(event_blocks(1, [MUON]))
    out = tmp_path / "out"
    assert cli.main(["convert", "corsika", str(tmp_path / "bad"), str(good), "--out", str(out)]) == 1
    said = capsys.readouterr().err
    assert f"left out {len(names)} files:" in said
    listed = said.split("files:")[1]
    assert all(f"{tmp_path}/bad/{name}: " in listed for name in names)
    (written,) = out.iterdir()
    assert written.name.startswith("DAT000001-run000001-")
    assert all(said.count(f"{tmp_path}/bad/{name}: ") == 1 for name in names)


def test_two_files_of_one_run_are_not_both_converted(dat, tmp_path):
    paths = [str(dat(event_blocks(1, [MUON]), name=name)) for name in ("DAT000001", "copy")]
    left_out = convert(paths, tmp_path / "out")
    assert list(left_out) == [paths[1]]
    assert f"run 1 is also in {paths[0]}" in left_out[paths[1]]


def test_whole_files_convert_with_exit_code_0(dat, tmp_path, capsys):
    path = dat(event_blocks(1, [MUON]))
    assert cli.main(["convert", "corsika", str(path), "--out", str(tmp_path / "out"), "--depths", "600"]) == 0
    assert cli.main(["convert", "corsika", str(path), "--out", str(tmp_path / "out")]) == 1
    said = capsys.readouterr().err
    assert "is not empty" in said
    assert "depths_m was [600.0], is [1500.0, 2000.0, 2500.0]" in said


def test_depths_in_kilometres_are_refused(dat, tmp_path):
    path = dat(event_blocks(1, [MUON]))
    with pytest.raises(ValueError, match=r"--depths 1\.5: expected depths in metres \(not kilometres\), 10 or more"):
        convert([str(path)], tmp_path / "out", depths_m=(1.5,))
    assert not (tmp_path / "out").exists()


def test_without_corsikaio_the_error_says_what_to_install(monkeypatch):
    for name in ("corsikaio", "corsikaio.io", "corsikaio.subblocks"):
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.delitem(sys.modules, "crmuons.simulation.corsika")
    with pytest.raises(ImportError, match=r"pip install 'crmuons\[corsika\]'"):
        importlib.import_module("crmuons.simulation.corsika")
    monkeypatch.undo()
    assert sys.modules["crmuons.simulation.corsika"] is corsika


needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason="needs the CORSIKA files in ../shared/data/corsika")


def median_error(sample):
    """Return the statistical error of a sample's median, by bootstrap; 1.6 m for the 16 muons of the smallest cell."""
    rng = np.random.default_rng(0)
    return np.std([np.median(rng.choice(sample, len(sample))) for _ in range(200)])


@pytest.mark.shared
@needs_shared
def test_the_simulator_agrees_with_real_corsika():
    showers = [one for path in sorted(SHARED.glob("DAT*")) for one in read_showers(path)]
    cells = [cell for cell in compare_with_simulator(showers) if cell.num_showers >= LEAST_SHOWERS]
    assert len(cells) == 6
    for cell in cells:
        real, model = cell.corsika, cell.simulated
        assert abs(model.mean - real.mean) <= 0.2 * real.mean + real.mean_error
        tolerance_m = 0.1 * real.median_radius_m + 2 * median_error(real.radius_m)
        assert abs(model.median_radius_m - real.median_radius_m) <= tolerance_m
        if cell.mass_number == 1:
            assert model.width == pytest.approx(real.width, rel=0.25)


@pytest.mark.shared
@needs_shared
def test_small_bundles_are_as_frequent_and_as_wide_as_real_ones():
    """MUPAGE has 1.6 to 2.8 times the simulator's bundles of 3 to 10 muons, and distances 1.3 times as large."""
    showers = [one for path in sorted(SHARED.glob("DAT*")) for one in read_showers(path)]
    table = {
        line.split("|")[1].strip(): line.split("|")[2:-1] for line in bundle_tables(showers, 3330.0) if "|" in line
    }
    for name in ("1", "3 to 10", "from the axis, bundles of 4 to 10", "of two muons, bundles of 2 to 10"):
        for cell in table[name][2::3]:
            value, error = map(float, cell.split("±"))
            assert abs(value - 1) < 2 * error
            assert error < 0.15


@pytest.mark.shared
@needs_shared
def test_real_files_convert_and_keep_the_contract(tmp_path):
    paths = [str(SHARED / name) for name in ("DAT000020", "DAT000044")]  # Carbon and Fe-54, 5 showers each.
    assert convert(paths, tmp_path / "out") == {}
    table = pq.read_table(tmp_path / "out")
    assert not schema.faults(table).any()
    events = arrow.to_arrays(table)
    assert events.counts.shape == (30,)
    assert set(events.ids[:, 0].tolist()) == {20, 44}
    assert (np.diff(events.counts.reshape(-1, 3), axis=1) <= 0).all()
