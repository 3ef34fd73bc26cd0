"""What `crmuons convert` makes of many files: names, content, what is left out, and going on after an interruption."""

import bz2
import gzip
import lzma
import os
import re

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from corsikaio.subblocks.event_header import get_event_header_dtype

from crmuons import cli
from crmuons.data import arrow
from crmuons.simulation import convert, propagation, source
from crmuons.simulation.surface import DepthSettings
from tests.unit.simulation.corsika_files import BLOCK, MUON, THIN_BLOCK, dat_bytes, event_blocks

EVENTIO = (b"\x37\x8a\x1f\xd4", b"\xd4\x1f\x8a\x37")
BUNCH = (5.0, 120.0, -80.0, 0.02, -0.01, 33.0, 8e5)  # photons, x, y (cm), two direction cosines, ns, height (cm)
COMPRESSIONS = {
    "gz": gzip.compress,
    "bz2": bz2.compress,
    "xz": lzma.compress,
    "zst": lambda content: pa.Codec("zstd").compress(content, asbytes=True),
}


def run_file(run, *, showers=5, particles=(MUON,), **options):
    return dat_bytes(*(event_blocks(event + 1, particles, run=run, **options) for event in range(showers)), run=run)


def put(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def corsika(*words):
    return cli.main(["convert", "corsika", *map(str, words)])


def events(folder):
    return arrow.to_arrays(pq.read_table(folder))


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


@pytest.mark.parametrize("magic", EVENTIO)
@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_eventio_is_told_by_its_sync_marker_and_costs_the_run_nothing(tmp_path, capsys, magic, pack):
    photons = put(tmp_path / "in" / "CER000001", pack(magic + bytes(3_000)))
    put(tmp_path / "in" / "DAT000001", run_file(1))
    assert corsika(tmp_path / "in", "--out", tmp_path / "out", "--depths", "600") == 1
    said = capsys.readouterr().err
    assert f"{photons}: not a CORSIKA particle file: an EventIO (IACT) file with Cherenkov photons" in said
    assert len(events(tmp_path / "out").counts) == 5


@pytest.mark.parametrize(("particles", "flag"), [((BUNCH,), 1.0), ((), 1.0), (((301_450.0, *BUNCH[1:]),), 0.0)])
def test_a_cherenkov_file_with_corsika_headers_does_not_take_the_run_of_its_particle_file(
    tmp_path, capsys, particles, flag
):
    photons = put(tmp_path / "in" / "CER000001", run_file(1, particles=particles, cerenkov_flag=flag))
    put(tmp_path / "in" / "DAT000001", run_file(1))
    assert corsika(tmp_path / "in", "--out", tmp_path / "out", "--depths", "600") == 1
    said = capsys.readouterr()
    assert re.search(rf"{photons}: a Cherenkov file.*DAT file", said.err)
    assert "5 showers, 5 events, 5 muons" in said.out


def test_a_particle_file_without_any_particle_is_converted(tmp_path):
    assert corsika(put(tmp_path / "DAT000001", run_file(1, particles=())), "--out", tmp_path / "out") == 0
    assert events(tmp_path / "out").counts.tolist() == [0] * 15


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("pack", [bytes, *COMPRESSIONS.values()])
def test_damage_at_any_place_is_one_sentence_or_no_fault(tmp_path, capsys, pack):
    whole, rng = pack(run_file(1, particles=[MUON] * 20)), np.random.default_rng(0)
    for number in range(12):
        content = bytearray(whole)
        first = int(rng.integers(len(content)))
        if number % 3 == 0:
            del content[first:]
        else:
            content[first : first + 40] = rng.bytes(min(40, len(content) - first))
        path = put(tmp_path / "DAT000001", bytes(content))
        out = tmp_path / f"out{number}"
        code = corsika(path, "--out", out, "--depths", "600")
        said = capsys.readouterr().err
        assert code == said.count(f"{path}: ")
        assert out.exists() == (code == 0)


def test_a_url_takes_the_events_and_a_second_run_continues_there(tmp_path):
    path, out = put(tmp_path / "DAT000001", run_file(1)), "memory://converted/events"
    settings = DepthSettings(depths_m=(600.0,))
    results = [convert.convert_corsika([str(path)], out, settings) for _ in range(2)]
    assert [(result.converted, result.kept) for result in results] == [(1, 0), (0, 1)]


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"", "empty"),
        (b"PAR1" + bytes(100), None),
        (b"\x89HDF\r\n\x1a\n" + bytes(100), "an HDF5 file"),
        (b"root" + bytes(100), "a ROOT file"),
        (b"PK\x03\x04" + bytes(100), "a ZIP archive"),
        (bytes(257) + b"ustar" + bytes(300), "a tar archive"),
        ("RUNNR 1\nSchauer für µ\n".encode() * 300, "a text file"),
        (gzip.compress(b"RUNNR 1\n" * 300), "a text file"),
        (bytes(range(256)) * 20, "no run header (RUNH) at its start"),
        (b"\x28\xb5\x2f\xfd" + bytes(40), None),
        (b"BZh9" + bytes(40), None),
        (b"\xfd7zXZ\x00" + bytes(40), None),
        (gzip.compress(b"RUNH" * 3_000)[:-20], None),
        (b"RUNH\x00\x00\x80?", "file seems to be truncated"),
        (b"RUNH\x00\x00\xc0\x7f" + bytes(5_000), "the run number nan in its header cannot be right"),
    ],
    ids=map(str, range(15)),  # Compressed bytes hold the time: no name for a test.
)
def test_what_is_no_corsika_file_is_named_once_by_what_it_is(tmp_path, capsys, content, what):
    path = put(tmp_path / "in" / "DAT000002", content)
    assert corsika(tmp_path / "in", "--out", tmp_path / "deep" / "out") == 1
    said = capsys.readouterr()
    assert said.err.count(f"{path}: ") == 1
    assert "nothing was converted" in said.err
    assert "Traceback" not in said.err
    assert what is None or what in said.err
    assert not (tmp_path / "deep").exists()


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


@pytest.mark.parametrize("fill", [b"", bytes(3 * BLOCK)])
def test_runs_that_were_joined_in_one_file_are_all_read(tmp_path, fill):
    path = put(tmp_path / "joined", run_file(1) + fill + run_file(2) + fill)
    assert corsika(path, "--out", tmp_path / "out", "--depths", "600") == 0
    assert len(np.unique(events(tmp_path / "out").ids, axis=0)) == 10


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (run_file(1) + run_file(1), "run 1, event 1 is there twice"),
        (run_file(1) + run_file(2)[: 3 * BLOCK], "it ends before its end record"),
        (run_file(1) + b"x" * BLOCK, "a run or event header was expected"),
        (run_file(1) + event_blocks(9, [MUON]), "a run or event header was expected"),
    ],
)
def test_what_follows_the_end_record_is_not_passed_over(tmp_path, capsys, content, says):
    path = put(tmp_path / "joined", content)
    assert corsika(path, "--out", tmp_path / "out") == 1
    assert f"{path}: {says}" in capsys.readouterr().err


@pytest.mark.parametrize("ending", COMPRESSIONS)
@pytest.mark.parametrize("name", ["DAT000001.{}", "DAT000001"])
def test_compressed_files_give_the_same_events_whatever_their_name(tmp_path, ending, name):
    content = run_file(1)
    plain, packed = (
        put(tmp_path / "DAT000001.plain", content),
        put(tmp_path / name.format(ending), COMPRESSIONS[ending](content)),
    )
    tables = []
    for path, out in ((plain, "plain"), (packed, "packed")):
        assert corsika(path, "--out", tmp_path / out, "--depths", "600") == 0
        tables.append(pq.read_table(tmp_path / out))
    assert tables[0].equals(tables[1])


@pytest.mark.parametrize(
    ("weight", "fields", "says"),
    [
        (250.0, {}, "thinned (level 0, largest weight 250)"),
        (1.0, {"energy_fraction_if_thinning_level_hadronic": 1e-6}, "thinned (level 1e-06, largest weight 1)"),
        (1.0, {"energy_fraction_if_thinning_level_em": 1e-5}, "thinned (level 1e-05"),
    ],
)
def test_thinned_files_are_said_to_be_thinned(tmp_path, capsys, weight, fields, says):
    thin = event_blocks(1, [(*MUON, weight)], thin=True, **fields)
    path = put(tmp_path / "DAT000001", dat_bytes(thin, size=THIN_BLOCK))
    assert corsika(path, "--out", tmp_path / "out") == 1
    assert f"{path}: {says}" in capsys.readouterr().err


def test_thinning_fields_in_a_file_without_weights_are_refused_too(tmp_path, capsys):
    content = dat_bytes(event_blocks(1, [MUON], energy_fraction_if_thinning_level_hadronic=1e-6))
    assert corsika(put(tmp_path / "DAT000001", content), "--out", tmp_path / "out") == 1
    assert "thinned" in capsys.readouterr().err


@pytest.mark.parametrize("fortran", [False, True])
def test_records_of_8_words_without_thinning_give_the_same_muons(tmp_path, fortran):
    thin = dat_bytes(*(event_blocks(event, [(*MUON, 1.0)] * 50, thin=True) for event in (1, 2)), size=THIN_BLOCK)
    plain = dat_bytes(*(event_blocks(event, [MUON] * 50) for event in (1, 2)))
    if fortran:
        thin, plain = (
            b"".join([np.int32(len(one)).tobytes(), one, np.int32(len(one)).tobytes()]) for one in (thin, plain)
        )
    for content, out in ((thin, "thin"), (plain, "plain")):
        assert corsika(put(tmp_path / "DAT000001", content), "--out", tmp_path / out) == 0
    assert pq.read_table(tmp_path / "thin").equals(pq.read_table(tmp_path / "plain"))


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


@pytest.mark.parametrize(
    ("field", "value", "says"),
    [
        ("total_energy", np.nan, "the header cannot be right"),
        ("total_energy", -5.0, "the header cannot be right"),
        ("run_number", np.inf, "cannot convert float infinity"),
        ("event_number", -3.0, "the header cannot be right"),
        ("zenith", 2.0, "expected a shower from above the horizon"),
        ("n_observation_levels", 0.0, "0 observation levels"),
        ("particle_id", 1.0, "is not a nucleus"),
    ],
)
def test_headers_that_cannot_be_are_named(tmp_path, capsys, field, value, says):
    content = bytearray(run_file(1, showers=1))
    dtype = get_event_header_dtype(7.75)
    offset = BLOCK + dtype.fields[field][1]
    content[offset : offset + 4] = np.float32(value).tobytes()
    path = put(tmp_path / "DAT000001", bytes(content))
    assert corsika(path, "--out", tmp_path / "out") == 1
    said = capsys.readouterr().err
    assert f"{path}: " in said
    assert says in said
