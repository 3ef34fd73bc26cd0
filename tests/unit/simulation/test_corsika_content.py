"""What a source is, by its content: kinds of files, damage, compression, thinning, and how each is named."""

import bz2
import gzip
import lzma
import re

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from corsikaio.subblocks.event_header import get_event_header_dtype

from tests.unit.simulation.corsika_files import (
    BLOCK,
    MUON,
    THIN_BLOCK,
    corsika,
    dat_bytes,
    event_blocks,
    events,
    put,
    run_file,
)

EVENTIO = (b"\x37\x8a\x1f\xd4", b"\xd4\x1f\x8a\x37")


BUNCH = (5.0, 120.0, -80.0, 0.02, -0.01, 33.0, 8e5)  # photons, x, y (cm), two direction cosines, ns, height (cm)


COMPRESSIONS = {
    "gz": gzip.compress,
    "bz2": bz2.compress,
    "xz": lzma.compress,
    "zst": lambda content: pa.Codec("zstd").compress(content, asbytes=True),
}


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


@pytest.mark.parametrize("fill", [b"", bytes(3 * BLOCK)])
def test_runs_that_were_joined_in_one_file_are_all_read(tmp_path, fill):
    path = put(tmp_path / "joined", run_file(1) + fill + run_file(2) + fill)
    assert corsika(path, "--out", tmp_path / "out", "--depths", "600") == 0
    assert len(np.unique(events(tmp_path / "out").ids, axis=0)) == 10


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (run_file(1) + run_file(1), "run 1, event 1 occurs twice"),
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
