"""The data set that crmuons simulate writes: the same whoever writes it, and continued after a kill."""

import dataclasses
import logging

import numpy as np
import pyarrow.parquet as pq
import pytest

from crmuons import cli
from crmuons.data import arrow, schema
from crmuons.simulation import simulate
from crmuons.simulation.simulate import SimulationSettings, draw_block


@pytest.fixture
def small_files(monkeypatch):
    """Files of one block each, so that few events fill several."""
    monkeypatch.setattr(simulate, "BLOCKS_PER_FILE", 1)


SETTINGS = SimulationSettings(energy_gev=(1e4, 1e7))


def test_files_do_not_depend_on_who_writes_them_or_when(tmp_path, small_files):
    simulate.simulate(SETTINGS, num_events=4_000, out=tmp_path / "one", seed=7)
    (tmp_path / "two").mkdir()
    for number in (2, 0, 1):
        simulate.write_file(tmp_path / "two", SETTINGS, 7, 4_000, number)
    assert simulate.num_files(4_000, SETTINGS) == 3
    names = sorted(path.name for path in (tmp_path / "one").iterdir())
    assert names == ["events-00000.parquet", "events-00001.parquet", "events-00002.parquet"]
    assert all((tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes() for name in names)


def test_a_data_set_keeps_the_contract_and_names_its_showers(tmp_path, small_files):
    simulate.simulate(SETTINGS, num_events=10_000, out=tmp_path / "sim", seed=7)
    table = pq.read_table(tmp_path / "sim")
    assert table.num_rows == 10_000
    assert not schema.faults(table).any()
    ids = arrow.to_arrays(table).ids
    showers, rows = np.unique(ids, axis=0, return_counts=True)
    assert len(showers) == 3_334  # 3333 showers at three depths, and one at its first
    assert np.bincount(rows).tolist() == [0, 1, 0, 3_333]
    assert (showers[:, 0] == 7).all()


def test_another_seed_or_block_gives_other_events():
    energies = [draw_block(SETTINGS, seed, block).primaries[0, 0] for seed, block in ((0, 0), (1, 0), (0, 1))]
    assert len(set(energies)) == 3


def test_a_directory_that_holds_something_is_left_alone(tmp_path, capsys):
    (tmp_path / "precious").write_text("data")
    assert cli.main(["simulate", "--events", "10", "--out", str(tmp_path)]) == 1
    assert "is not empty: name a new directory" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["precious"]


def test_the_command_writes_what_it_was_asked_for(tmp_path, capsys):
    words = ["--events", "30", "--seed", "3", "--energy-range", "1e5", "1e6", "--masses", "0.938", "--depths", "1500"]
    assert cli.main(["simulate", *words, "--out", str(tmp_path / "new")]) == 0
    assert "30 events" in capsys.readouterr().out
    primaries = arrow.to_arrays(pq.read_table(tmp_path / "new")).primaries
    assert primaries.shape == (30, 4)
    assert (primaries[:, 2] == np.float32(0.938)).all()
    assert (primaries[:, 3] >= 1_500).all()


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"depth_range_m": (1.4, 2.6)}, "is it in kilometres"),
        ({"depths_m": (100.0,)}, "vertical depth 100 m: expected 500 m or more"),
        ({"depth_range_m": (2_000.0, 1_000.0)}, "--depth-range 2000 1000: expected LOW <= HIGH"),
        ({"energy_gev": (1e6, 1e12)}, "at most 1e10"),
        ({"energy_gev": (1e6, 1e5)}, "--energy-range 1e\\+06 100000"),
        ({"masses_gev": (56_000.0,)}, "--masses 56000.0: expected a nucleus by name"),
        ({"masses_gev": ()}, "at least one mass"),
        ({"max_zenith_deg": 95.0}, "expected 0 to 89 degrees"),
        ({"depths_per_shower": 0}, "expected at least 1"),
        ({"threshold_gev": 0.0}, "expected more than 0 GeV"),
        ({"threshold_gev": float("nan")}, "--threshold-gev nan: expected"),
        ({"threshold_gev": float("inf")}, "--threshold-gev inf: expected"),
        ({"threshold_gev": -10.0}, "--threshold-gev -10: expected"),
        ({"gamma": float("inf")}, "--gamma inf: expected 0 to 10"),
        ({"gamma": float("nan")}, "--gamma nan: expected 0 to 10"),
        ({"gamma": -1.0}, "--gamma -1: expected 0 to 10"),
        ({"gamma": (1.0, 1e6)}, "--gamma 1 1e.06: expected a power, or powers with"),
        ({"gamma": (1.0, float("nan"), 2.0)}, "--gamma .*: expected"),
        ({"depths_m": (float("inf"),)}, "--depths inf: expected a depth in metres, at most 100000"),
        ({"depths_m": (1e300,)}, "--depths 1e.300: expected a depth in metres, at most"),
        ({"depths_m": (1e3,) * 1001}, "--depths: 1001 depths, expected at most 1000"),
        ({"depths_per_shower": 10**8}, "at most 1000"),
        ({"energy_gev": (float("nan"), 1e6)}, "--energy-range nan"),
        ({"max_zenith_deg": float("nan")}, "expected 0 to 89 degrees"),
        ({"medium": "lava"}, "--medium lava: expected ice, water, rock"),
        ({"medium": "rock", "depths_m": (150.0,)}, "150 m: expected 200 m or more .*of rock"),
    ],
)
def test_settings_out_of_range_are_refused_with_their_value(changed, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(SimulationSettings(), **changed)


@pytest.mark.parametrize(
    ("num_events", "seed", "message"),
    [
        (0, 0, "--events 0: expected a whole number from 1"),
        (1, -1, "--seed -1"),
        (1, 2**64, "--seed 18446744073709551616: expected"),
        (10**15, 0, "--events 1000000000000000: that would be about 100,000 TB"),
    ],
)
def test_numbers_of_events_and_seeds_that_cannot_be_are_refused(tmp_path, num_events, seed, message):
    with pytest.raises(ValueError, match=message):
        simulate.simulate(SimulationSettings(), num_events=num_events, out=tmp_path / "new", seed=seed)
    assert not (tmp_path / "new").exists()


def test_a_killed_simulation_continues_with_the_files_that_are_missing(tmp_path, small_files, caplog):
    caplog.set_level(logging.INFO, "crmuons")
    simulate.simulate(SETTINGS, num_events=4_000, out=tmp_path / "whole", seed=7)
    whole = {path.name: path.read_bytes() for path in (tmp_path / "whole").iterdir()}
    (tmp_path / "whole" / "events-00001.parquet").unlink()
    kept = (tmp_path / "whole" / "events-00000.parquet").stat().st_mtime_ns
    simulate.simulate(SETTINGS, num_events=4_000, out=tmp_path / "whole", seed=7)
    assert {path.name: path.read_bytes() for path in (tmp_path / "whole").iterdir()} == whole
    assert (tmp_path / "whole" / "events-00000.parquet").stat().st_mtime_ns == kept
    assert "an earlier command finished 2 of 3 files" in caplog.text


@pytest.mark.parametrize(
    ("changes", "seed", "num_events", "why"),
    [
        ({}, 8, 4_000, "made with other settings"),
        ({"medium": "rock"}, 7, 4_000, "made with other settings"),
        ({}, 7, 3_900, "it has 928 rows, not 828"),
        ({}, 7, 3_072, "its files have other names"),
    ],
)
@pytest.mark.usefixtures("small_files")
def test_the_files_of_another_simulation_are_never_continued(tmp_path, changes, seed, num_events, why):
    simulate.simulate(SETTINGS, num_events=4_000, out=tmp_path, seed=7)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    other = dataclasses.replace(SETTINGS, **changes)
    with pytest.raises(ValueError, match=f"is not empty: name a new directory .*{why}"):
        simulate.simulate(other, num_events=num_events, out=tmp_path, seed=seed)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
