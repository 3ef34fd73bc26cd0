"""A generated data set: the same events however it is cut, whole shards alone, one request per directory."""

import tempfile
from contextlib import contextmanager

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

from crmuons.cli import main
from crmuons.data import reader, selection
from crmuons.data.sampler import FileSlice
from crmuons.generation import writer
from crmuons.generation.load import load_generator
from crmuons.generation.primaries import PrimaryFiles
from crmuons.generation.request import GenerationOptions
from crmuons.storage import files
from crmuons.storage.files import File
from crmuons.storage.output import Output
from tests.unit.generation.generated import EVENTS_PER_BLOCK, NUM_EVENTS, generate, read


def test_the_same_events_come_whatever_the_shard_size_and_the_cut_of_the_files(
    model_dir, primaries_file, tmp_path, events, write_toy
):
    for part, rows in enumerate((slice(0, 700), slice(700, None))):
        write_toy(tmp_path / "cut" / f"{part}.parquet", reader.take(events, np.arange(NUM_EVENTS)[rows]))
    generate(model_dir, primaries_file, tmp_path / "one", seed=4)
    tally = generate(model_dir, primaries_file, tmp_path / "many", seed=4, events_per_shard=EVENTS_PER_BLOCK)
    generate(model_dir, tmp_path / "cut", tmp_path / "other", seed=4, events_per_shard=2 * EVENTS_PER_BLOCK)
    one = read(tmp_path / "one")
    assert [len(list((tmp_path / name).glob("*.parquet"))) for name in ("one", "many", "other")] == [1, 3, 2]
    assert one.equals(read(tmp_path / "many"))
    assert one.equals(read(tmp_path / "other"))
    assert (tally.events, tally.muons) == (NUM_EVENTS, len(one["muons"].chunk(0).values))
    generate(model_dir, primaries_file, tmp_path / "seed", seed=5)
    assert not one.equals(read(tmp_path / "seed"))


def test_the_shards_are_what_the_generator_makes_and_the_contracts_reader_accepts_them(
    model_dir, primaries_file, tmp_path, events
):
    generate(model_dir, primaries_file, tmp_path, seed=4)
    path = tmp_path / "events-00000.parquet"
    found, tally = reader.read_slice(FileSlice(File(str(path), path.stat().st_size), 0, 1), selection.Selection())
    expected = load_generator(model_dir).generate(events.primaries, seed=4, ids=events.ids)
    assert tally.quarantined == 0
    for name in ("ids", "primaries", "counts", "muons"):
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name), err_msg=name)


def test_an_interrupted_run_goes_on_and_keeps_what_is_finished(model_dir, primaries_file, tmp_path):
    options = {"seed": 4, "events_per_shard": EVENTS_PER_BLOCK}
    before = generate(model_dir, primaries_file, tmp_path, **options)
    whole, paths = read(tmp_path), sorted(tmp_path.glob("*.parquet"))
    paths[0].unlink()  # Never made.
    content = paths[1].read_bytes()
    paths[1].write_bytes(content[: len(content) // 2])  # Damaged.
    kept = paths[2].stat().st_mtime_ns
    (tmp_path / ".events-00001.parquet.0123abcd.partial").write_bytes(content[:10])  # Of a killed process.
    assert generate(model_dir, primaries_file, tmp_path, seed=4) == before  # The shard size is the directory's.
    assert read(tmp_path).equals(whole)
    assert paths[2].stat().st_mtime_ns == kept
    assert len(list(tmp_path.iterdir())) == 4  # Three shards and the request.


def test_others_read_the_directory_as_one_table(model_dir, primaries_file, tmp_path):
    generate(model_dir, primaries_file, tmp_path)
    assert len(pd.read_parquet(tmp_path)) == NUM_EVENTS


def test_a_write_that_fails_leaves_no_part_of_a_shard(model_dir, primaries_file, tmp_path, monkeypatch):
    def full(*_arguments, **_options):
        msg = "No space left on device"
        raise OSError(28, msg)

    monkeypatch.setattr(pq.ParquetWriter, "write_table", full)
    with pytest.raises(
        OSError, match=r"events-00000.parquet could not be written .*No space.*the same command continues"
    ):
        generate(model_dir, primaries_file, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["_request.json"]


def lengths(table):
    return np.diff(table["muons"].chunk(0).offsets)


def test_counts_are_predicted_given_by_the_file_or_constant(model_dir, primaries_file, tmp_path, events):
    generate(model_dir, primaries_file, tmp_path / "column", counts="column")
    np.testing.assert_array_equal(lengths(read(tmp_path / "column")), events.counts)
    assert generate(model_dir, primaries_file, tmp_path / "seven", counts=7).muons == 7 * NUM_EVENTS
    assert generate(model_dir, primaries_file, tmp_path / "none", counts=0).muons == 0


def test_a_cap_takes_muons_away_and_says_from_how_many(model_dir, primaries_file, tmp_path, events):
    tally = generate(model_dir, primaries_file, tmp_path, counts="column", max_muons_per_event=3)
    table = read(tmp_path)
    np.testing.assert_array_equal(lengths(table), np.minimum(events.counts, 3))
    np.testing.assert_array_equal(table["num_muons_drawn"].to_numpy(), events.counts)
    assert tally.capped == (events.counts > 3).sum() > 0


def test_large_requests_go_to_a_given_cluster_in_shards_of_bounded_size(
    model_dir, primaries_file, tmp_path, monkeypatch
):
    generator, source = load_generator(model_dir), PrimaryFiles([primaries_file])
    small = writer.plan_generation(Output.at(tmp_path / "small"), generator, source, GenerationOptions(counts=1))
    large = writer.plan_generation(Output.at(tmp_path / "large"), generator, source, GenerationOptions(counts=4000))
    assert large.expected_muons == 4000 * NUM_EVENTS
    assert large.request.events_per_shard == EVENTS_PER_BLOCK  # 4 million muons, and no shard is smaller.
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    assert not large.is_for_ray
    monkeypatch.setattr(writer, "CPUS", 64)
    assert (small.is_for_ray, large.is_for_ray) == (False, True)
    monkeypatch.setattr(writer, "CPUS", 2)
    monkeypatch.setenv("RAY_ADDRESS", "there:6379")
    assert (small.is_for_ray, large.is_for_ray) == (False, True)


def test_the_command_generates_says_where_and_refuses_in_one_sentence(model_dir, primaries_file, tmp_path, capsys):
    words = ["generate", "--model", str(model_dir), "--out", str(tmp_path / "out")]
    assert main([*words, "--primaries", primaries_file, "--counts", "2"]) == 0
    assert f"{NUM_EVENTS} events with {2 * NUM_EVENTS} muons in {tmp_path / 'out'}" in capsys.readouterr().out
    assert main([*words, "--spectrum", "events=10"]) == 1
    assert "belongs to another request" in capsys.readouterr().err
    assert main([*words, "--spectrum", "events=10", "--counts", "column"]) == 1
    assert "they do not go with --spectrum" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main([*words, "--primaries", primaries_file, "--counts", "some"])
    assert "--counts: some: expected predict, column, or a number of muons" in capsys.readouterr().err


def test_drawn_primaries_get_the_weights_that_simweights_gives_them(model_dir, tmp_path):
    simweights = pytest.importorskip("simweights")
    from crmuons.generation.spectrum import simweights_tables

    words = ["events=20000", "gamma=2.0", "energy_gev=1e5:1e8", "composition=p:2,Fe:1", "zenith_deg=0:60"]
    out = tmp_path / "out"
    assert main(["generate", "--model", str(model_dir), "--out", str(out), "--counts", "1", "--spectrum", *words]) == 0
    weighter = simweights.CorsikaWeighter(simweights_tables(out))
    flux = simweights.GaisserH3a()
    weights = weighter.get_weights(flux)
    energy = np.geomspace(1e5, 1e8, 2001)
    per_area = sum(np.trapezoid(flux(energy, np.full(len(energy), kind)), energy) for kind in (2212, 1000260560))
    etendue = weighter.surface.spectra[2212][0].dists[-1].etendue  # cm^2 sr
    # The rate through the cylinder; the sum of the weights has a standard error of sqrt(sum of squares).
    assert weights.sum() == pytest.approx(per_area * etendue, abs=4 * np.sqrt((weights**2).sum()))
    assert (weights > 0).all()
    (out / "events-00000.parquet").rename(tmp_path / "gone")
    with pytest.raises((ValueError, FileNotFoundError)):
        simweights_tables(out)


def test_a_spectrum_with_a_break_has_the_weights_of_the_flux_in_every_decade(model_dir, tmp_path):
    simweights = pytest.importorskip("simweights")
    from crmuons.generation.spectrum import simweights_tables

    words = ["events=40000", "gamma=1:1e6:1.5", "energy_gev=600:1e10", "composition=p:2,Fe:1", "zenith_deg=0:60"]
    out = tmp_path / "out"
    assert main(["generate", "--model", str(model_dir), "--out", str(out), "--counts", "0", "--spectrum", *words]) == 0
    tables = simweights_tables(out)
    weighter = simweights.CorsikaWeighter(tables)
    flux = simweights.GaisserH3a()
    weights, drawn = weighter.get_weights(flux), tables["PolyplopiaPrimary"]["energy"]
    etendue = weighter.surface.spectra[2212][0].dists[-1].etendue  # cm^2 sr
    for low, high in ((600, 1e3), *((10.0**decade, 10.0 ** (decade + 1)) for decade in range(3, 10))):
        energy = np.geomspace(low, high, 2001)
        per_area = sum(np.trapezoid(flux(energy, np.full(len(energy), kind)), energy) for kind in (2212, 1000260560))
        inside = weights[(drawn >= low) & (drawn < high)]
        error = np.sqrt((inside**2).sum())
        assert inside.sum() == pytest.approx(per_area * etendue, abs=4 * error)
        assert error < 0.2 * inside.sum()


def test_primaries_of_files_have_no_weights(model_dir, primaries_file, tmp_path):
    from crmuons.generation.spectrum import simweights_tables

    generate(model_dir, primaries_file, tmp_path, counts=0)
    with pytest.raises(ValueError, match="only primaries of --spectrum have a known probability"):
        simweights_tables(tmp_path)


def test_a_url_takes_the_same_shards_and_a_run_goes_on_there(model_dir, primaries_file, tmp_path):
    generate(model_dir, primaries_file, tmp_path / "here", seed=4, events_per_shard=EVENTS_PER_BLOCK)
    (tmp_path / "temporary").mkdir()
    with tempfile_in(tmp_path / "temporary"):
        there = Output.at(f"memory://{tmp_path.name}/out")
        tally = generate(model_dir, primaries_file, there.url, seed=4, events_per_shard=EVENTS_PER_BLOCK)
        assert there.names() == [path.name for path in sorted((tmp_path / "here").iterdir())]
        files.get_tree(there.url, tmp_path / "copy")
        assert read(tmp_path / "copy").equals(read(tmp_path / "here"))
        (tmp_path / "half").write_bytes(there.read("events-00001.parquet")[:5000])
        files.put(tmp_path / "half", there.of("events-00001.parquet"))
        assert generate(model_dir, primaries_file, there.url, seed=4) == tally
        assert not list((tmp_path / "temporary").iterdir())
    files.get_tree(there.url, tmp_path / "again")
    assert read(tmp_path / "again").equals(read(tmp_path / "here"))
    with pytest.raises(ValueError, match=r"memory://.*belongs to another request \(seed was 4, is 5\)"):
        generate(model_dir, primaries_file, there.url, seed=5)


@contextmanager
def tempfile_in(folder):
    before, tempfile.tempdir = tempfile.tempdir, str(folder)
    yield
    tempfile.tempdir = before


def test_a_place_that_cannot_be_written_is_refused_before_the_primaries_are_read(model_dir, tmp_path):
    class Untouched:
        def __iter__(self):
            pytest.fail("read before the place was checked")

    (tmp_path / "file").write_text("")
    with pytest.raises(NotADirectoryError, match=r"cannot be written: .*file is a file; choose another name"):
        writer.plan_generation(
            Output.at(tmp_path / "file" / "out"), load_generator(model_dir), Untouched(), GenerationOptions()
        )


def test_threads_make_the_shards_that_one_makes(model_dir, primaries_file, tmp_path, monkeypatch):
    for cpus in (1, 3):
        monkeypatch.setattr(writer, "CPUS", cpus)
        generate(model_dir, primaries_file, tmp_path / str(cpus), seed=4, events_per_shard=EVENTS_PER_BLOCK)
    assert read(tmp_path / "1").equals(read(tmp_path / "3"))
