"""What `crmuons convert` makes of many files: names, content, what is left out, and going on after an interruption."""

import gzip
import os

import numpy as np
import pyarrow.parquet as pq
import pytest

from crmuons.data import arrow
from crmuons.simulation import convert, propagation, source
from crmuons.simulation.surface import DepthSettings
from tests.unit.simulation.corsika_files import (
    BLOCK,
    MUON,
    corsika,
    dat_bytes,
    events,
    put,
    run_file,
)


def test_files_of_one_name_in_two_folders_are_both_converted(tmp_path):
    first, second = put(tmp_path / "a" / "DAT000001", run_file(1)), put(tmp_path / "b" / "DAT000001", run_file(2))
    assert corsika(first, second, "--out", tmp_path / "out", "--depths", "600") == 0
    assert np.unique(events(tmp_path / "out").ids, axis=0).shape == (10, 2)
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert [name.rpartition("-")[0] for name in names] == ["DAT000001-run000001", "DAT000001-run000002"]


def test_different_files_of_one_run_number_are_both_converted_and_a_copy_is_not(tmp_path, capsys):
    """Productions in several folders often count their runs from 1."""
    protons, iron = run_file(1, particles=[MUON] * 9), run_file(1, particles=[MUON] * 9, particle_id=5626)
    contents = {"a": protons, "b": iron, "c": gzip.compress(protons), "d": iron}
    for folder, content in contents.items():
        put(tmp_path / folder / "DAT000001", content)
    words = [*(tmp_path / folder / "DAT000001" for folder in contents), "--out", tmp_path / "out", "--depths", "600"]
    for converted in ("2 files converted", "0 files converted, 2 were there already"):
        assert corsika(*words) == 1
        said = capsys.readouterr()
        assert converted in said.out
        assert "10 showers, 10 events, 90 muons" in said.out
        assert "1 files have the run number of another file" in said.out
        assert f"{tmp_path}/c/DAT000001: run 1 is also in {tmp_path}/a/DAT000001" in said.err
        assert f"{tmp_path}/d/DAT000001: run 1 is also in {tmp_path}/b/DAT000001" in said.err
    found = events(tmp_path / "out")
    assert len(np.unique(found.ids, axis=0)) == 10
    assert (found.ids[:, 0] == 1).sum() == 5
    assert len(set(found.muons[:, 0].tolist())) > 80  # The energy losses differ too.


def test_two_sources_with_one_output_are_an_error_before_anything_is_written(tmp_path, monkeypatch, capsys):
    paths = [put(tmp_path / folder / "DAT000001", run_file(1)) for folder in ("a", "b")]
    monkeypatch.setattr(source.hashlib, "sha256", lambda _: type("Equal", (), {"hexdigest": lambda _: "0" * 64})())
    assert corsika(*paths, "--out", tmp_path / "out") == 1
    assert f"{paths[0]} and {paths[1]} would both be written to" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_hidden_source_gives_a_file_that_readers_find(tmp_path):
    assert corsika(put(tmp_path / "_DAT000001", run_file(1)), "--out", tmp_path / "out") == 0
    (name,) = (path.name for path in (tmp_path / "out").iterdir())
    assert name.startswith("DAT000001-run000001-")


def test_a_url_takes_the_events_and_a_second_run_continues_there(tmp_path):
    path, out = put(tmp_path / "DAT000001", run_file(1)), "memory://converted/events"
    settings = DepthSettings(depths_m=(600.0,))
    results = [convert.convert_corsika([str(path)], out, settings) for _ in range(2)]
    assert [(result.converted, result.kept) for result in results] == [(1, 0), (0, 1)]


def test_one_unreadable_file_costs_no_other(tmp_path, capsys):
    good = [put(tmp_path / "in" / f"DAT00000{run}", run_file(run)) for run in (1, 4)]
    cut = put(tmp_path / "in" / "DAT000002", run_file(2)[:-BLOCK])
    empty = put(tmp_path / "in" / "DAT000003", dat_bytes(run=3))
    assert corsika(tmp_path / "in", "--out", tmp_path / "out", "--depths", "600") == 1
    said = capsys.readouterr().err
    assert f"{cut}: it ends before its end record (RUNE)" in said
    assert f"{empty}: it holds no event" in said
    assert set(events(tmp_path / "out").ids[:, 0].tolist()) == {1, 4}
    assert len(good) == len(list((tmp_path / "out").iterdir()))


def test_the_same_command_goes_on_after_an_interruption(tmp_path, monkeypatch, capsys):
    for run in (1, 2, 3):
        put(tmp_path / "in" / f"DAT00000{run}", run_file(run))
    words = (tmp_path / "in", "--out", tmp_path / "out", "--depths", "600")
    write, written = convert.write_source, []

    def interrupted(one, *rest):
        if len(written) == 2:
            raise KeyboardInterrupt
        written.append(one.url)
        return write(one, *rest)

    monkeypatch.setattr(convert, "write_source", interrupted)
    assert corsika(*words) == 130
    assert "run the same command to continue" in capsys.readouterr().err
    monkeypatch.setattr(convert, "write_source", lambda one, *rest: written.append(one.url) or write(one, *rest))
    kept = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()}
    assert len(kept) == 2
    assert corsika(*words) == 0
    assert len(written) == len(set(written)) == 3
    assert all((tmp_path / "out" / name).stat().st_mtime_ns == when for name, when in kept.items())
    assert "15 showers, 15 events, 15 muons" in capsys.readouterr().out


@pytest.mark.parametrize("scheme", ["", "file://", "local://"])
def test_an_output_among_the_sources_is_no_source(tmp_path, capsys, scheme):
    put(tmp_path / "in" / "DAT000001", run_file(1))
    (tmp_path / "link").symlink_to(tmp_path / "in")
    words = (tmp_path / "link", "--out", f"{scheme}{tmp_path}/in/out", "--depths", "600")
    assert [corsika(*words), corsika(*words)] == [0, 0]
    assert "0 files converted, 1 were there already" in capsys.readouterr().out


def test_a_file_that_was_mended_is_converted_by_the_next_run_and_the_others_are_not_touched(tmp_path, capsys):
    whole = run_file(2)
    put(tmp_path / "in" / "DAT000001", run_file(1))
    bad = put(tmp_path / "in" / "DAT000002", whole[:-BLOCK])
    words = (tmp_path / "in", "--out", tmp_path / "out", "--depths", "600")
    assert corsika(*words) == 1
    bad.write_bytes(whole)
    assert corsika(*words) == 0
    assert "1 files converted, 1 were there already" in capsys.readouterr().out
    assert set(events(tmp_path / "out").ids[:, 0].tolist()) == {1, 2}


def test_a_source_that_was_replaced_is_converted_again(tmp_path):
    path = put(tmp_path / "DAT000001", run_file(1))
    words = (path, "--out", tmp_path / "out", "--depths", "600")
    assert corsika(*words) == 0
    path.write_bytes(run_file(1, particles=[MUON, MUON]))
    os.utime(path, ns=(1, 1))
    assert corsika(*words) == 0
    assert events(tmp_path / "out").counts.tolist() == [2] * 5


@pytest.mark.parametrize("name", ["notes.txt", "events.parquet"])
def test_a_directory_with_something_else_is_left_alone(tmp_path, capsys, write_toy, toy_events, name):
    out = tmp_path / "out"
    write_toy(out / name, toy_events(3)) if name.endswith("parquet") else put(out / name, b"mine")
    assert corsika(put(tmp_path / "DAT000001", run_file(1)), "--out", out) == 1
    assert f"is not empty, it holds {name}, which is no result of crmuons convert corsika" in capsys.readouterr().err
    assert [path.name for path in out.iterdir()] == [name]


def test_a_full_disk_is_not_blamed_on_the_files(tmp_path, monkeypatch, capsys):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(source.arrow, "write_events", full)
    assert corsika(put(tmp_path / "DAT000001", run_file(1)), "--out", tmp_path / "out") == 1
    said = capsys.readouterr().err
    assert "No space left" in said
    assert "left out" not in said


def test_the_end_says_what_the_output_holds(tmp_path, capsys):
    put(tmp_path / "in" / "DAT000001", run_file(1, energy=1e5))
    put(tmp_path / "in" / "DAT000002", run_file(2, energy=2e7, particle_id=5626, zenith=np.pi / 3))
    assert corsika(tmp_path / "in", "--out", tmp_path / "out", "--depths", "600", "700") == 0
    said = capsys.readouterr().out
    assert "10 showers, 20 events, " in said
    assert "masses 0.9383, 52.16 GeV" in said
    assert "energies 1e+05 to 2e+07 GeV" in said
    assert "zenith angles 0.0 to 60.0 degrees" in said
    assert "slant depths 600 to 700 m" in said


def test_muons_that_corsika_dropped_are_said_for_each_file_that_lacks_some(tmp_path, capsys):
    for run, cutoff in ((1, 50.0), (2, 1_000.0)):
        content = run_file(run).replace(np.float32(300).tobytes(), np.float32(cutoff).tobytes())
        put(tmp_path / "in" / f"DAT00000{run}", content)
    assert corsika(tmp_path / "in", "--out", tmp_path / "out", "--depths", "600") == 0
    complete = propagation.complete_water_m(1_000.0, 10.0) / 0.917
    assert (
        "5 showers lack muons at the first depth: CORSIKA dropped those below 1000 GeV, and the events are complete "
        f"from about {complete:.0f} m of ice on"
    ) in capsys.readouterr().out


def test_soft_muons_that_reach_a_shallow_depth_are_kept(tmp_path):
    """At 10 m a muon of 15 GeV is there with about 12.6: nothing between the file and the depth cuts it."""
    content = run_file(1, showers=1, particles=[(5001.0, 0.0, 0.0, 15.0, 0.0, 0.0, 0.0)])
    assert corsika(put(tmp_path / "DAT000001", content), "--out", tmp_path / "out", "--depths", "10") == 0
    assert events(tmp_path / "out").muons[:, 0] == pytest.approx([15 - propagation.IONISATION * 8.32], rel=0.02)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--threshold-gev", "nan"], "--threshold-gev: nan: expected more than 0 GeV"),
        (["--threshold-gev", "inf"], "--threshold-gev: inf: expected more than 0 GeV, at most 1e+06"),
        (["--threshold-gev", "0"], "--threshold-gev: 0: expected more than 0"),
        (["--threshold-gev", "-1"], "--threshold-gev: -1: expected more than 0"),
        (["--depths", "inf"], "--depths: inf: expected depths in metres (not kilometres), 10 or more, at most 100000"),
        (["--depths", "1e300"], "--depths: 1e300: expected depths in metres"),
        (["--depths", "nan"], "--depths: nan: expected depths in metres"),
        (["--seed", "-1"], "--seed: -1: expected a whole number from 0"),
        (["--seed", str(2**64)], "expected a whole number from 0 to 9223372036854775807"),
    ],
)
def test_options_out_of_range_are_refused_with_their_value(tmp_path, capsys, words, says):
    with pytest.raises(SystemExit, match="2"):
        corsika(put(tmp_path / "DAT000001", run_file(1)), "--out", tmp_path / "out", *words)
    assert says in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_too_many_depths_are_refused():
    with pytest.raises(ValueError, match="--depths: 1001 depths, expected 1 to 1000"):
        DepthSettings(depths_m=(600.0,) * 1001)


def test_a_medium_is_recorded_and_changes_what_arrives(tmp_path):
    path = put(tmp_path / "DAT000001", run_file(1, particles=[MUON] * 500))
    arrived = {}
    for medium in ("ice", "water", "rock"):
        assert corsika(path, "--out", tmp_path / medium, "--depths", "1500", "--medium", medium) == 0
        arrived[medium] = events(tmp_path / medium).muons[:, 0].sum()
        (file,) = (tmp_path / medium).iterdir()
        origin = arrow.read_origin(pq.read_metadata(file))
        assert (origin["command"], origin["settings"]["medium"]) == ("convert corsika", medium)
        assert origin["medium"]["density"] == pytest.approx({"ice": 0.917, "water": 1.0, "rock": 2.65}[medium])
    assert arrived["ice"] > arrived["water"] > arrived["rock"] > 0
