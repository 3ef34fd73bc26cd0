"""A generated data set: the same events however it is cut, whole shards alone, one request per directory."""

import json
import tempfile
from contextlib import contextmanager

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from crmuons import config
from crmuons.cli import main
from crmuons.data import reader, schema, selection
from crmuons.data.sampler import FileSlice
from crmuons.generation import writer
from crmuons.generation.load import load_generator
from crmuons.generation.primaries import PrimaryFiles
from crmuons.generation.request import GenerationOptions
from crmuons.models import blocks, saved_model
from crmuons.models.bundle_model import BundleModel
from crmuons.models.features import Features
from crmuons.storage import files
from crmuons.storage.files import File
from crmuons.storage.output import Output
from crmuons.storage.ownership import hold

EVENTS_PER_BLOCK = blocks.EVENTS_PER_BLOCK["cpu"]
NUM_EVENTS = 3000  # Three blocks, the last one not full.


@pytest.fixture(scope="module")
def events(toy_events):
    return toy_events(NUM_EVENTS // 3)


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory, events):
    torch.manual_seed(3)
    settings = config.Model(width=16, multiplicity_width=8)
    model = BundleModel(settings, Features().fit(events))
    return saved_model.save_model(tmp_path_factory.mktemp("run") / "model", model, {"model": settings.model_dump()})


@pytest.fixture(scope="module")
def primaries_file(tmp_path_factory, events, write_toy):
    return write_toy(tmp_path_factory.mktemp("primaries") / "p.parquet", events).url


def generate(model_dir, primaries_file, out, **options):
    generator = load_generator(model_dir)
    source = PrimaryFiles([str(primaries_file)], with_counts=options.get("counts") == "column")
    with hold(out):
        work = writer.plan_generation(Output.at(out), generator, source, GenerationOptions(**options))
        return writer.generate(generator, source, work)


def read(out):
    return pa.concat_tables([pq.read_table(path) for path in sorted(out.glob("*.parquet"))]).combine_chunks()


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


def test_a_shard_of_another_request_is_not_taken_for_this_ones(model_dir, primaries_file, tmp_path):
    generate(model_dir, primaries_file, tmp_path / "a", seed=4)
    generate(model_dir, primaries_file, tmp_path / "b", seed=5)
    expected = read(tmp_path / "a")
    (tmp_path / "b" / "events-00000.parquet").replace(tmp_path / "a" / "events-00000.parquet")
    generate(model_dir, primaries_file, tmp_path / "a", seed=4)
    assert read(tmp_path / "a").equals(expected)


def test_a_directory_with_the_record_of_an_earlier_version_continues(model_dir, primaries_file, tmp_path):
    generate(model_dir, primaries_file, tmp_path / "new")
    generate(model_dir, primaries_file, tmp_path / "old")
    expected = read(tmp_path / "new")
    (tmp_path / "old" / "_request.json").rename(tmp_path / "old" / "request.json")
    (tmp_path / "old" / "events-00000.parquet").unlink()
    generate(model_dir, primaries_file, tmp_path / "old")
    assert read(tmp_path / "old").equals(expected)
    assert not (tmp_path / "old" / "_request.json").exists()
    with pytest.raises(ValueError, match="belongs to another request"):
        generate(model_dir, primaries_file, tmp_path / "old", seed=9)


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


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"seed": 5}, "seed was 4, is 5"),
        ({"counts": 7}, "counts was predict, is 7"),
        ({"max_muons_per_event": 9}, "max_muons_per_event was None, is 9"),
        ({"events_per_shard": EVENTS_PER_BLOCK}, "events_per_shard was"),
    ],
)
def test_another_request_into_the_same_directory_is_refused(model_dir, primaries_file, tmp_path, change, says):
    generate(model_dir, primaries_file, tmp_path, seed=4)
    with pytest.raises(ValueError, match="belongs to another request") as error:
        generate(model_dir, primaries_file, tmp_path, **{"seed": 4} | change)
    assert says in str(error.value)
    assert "--out" in str(error.value)


def test_other_primaries_another_model_and_a_foreign_directory_are_refused(
    model_dir, primaries_file, tmp_path, events, write_toy
):
    generate(model_dir, primaries_file, tmp_path / "out")
    events.primaries[17, 0] *= 1.01
    other = write_toy(tmp_path / "p.parquet", events).url
    events.primaries[17, 0] /= 1.01
    with pytest.raises(ValueError, match="primaries was"):
        generate(model_dir, other, tmp_path / "out")
    model, about = saved_model.load_model(model_dir)
    model.generator.out.bias += 0.1
    with pytest.raises(ValueError, match="model was"):
        generate(saved_model.save_model(tmp_path / "model", model, about), primaries_file, tmp_path / "out")
    with pytest.raises(ValueError, match=r"holds other files and no _request\.json"):
        generate(model_dir, primaries_file, tmp_path)
    (tmp_path / "out" / "_request.json").write_text("{")
    with pytest.raises(ValueError, match="is damaged"):
        generate(model_dir, primaries_file, tmp_path / "out")


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


@pytest.fixture
def far_file(tmp_path, events, write_toy):
    far = reader.take(events, np.arange(50))
    far.primaries[31, 0] = 1e11
    return write_toy(tmp_path / "far.parquet", far).url


def test_primaries_outside_the_trained_range_are_flagged_and_counted_or_refused(model_dir, far_file, tmp_path, caplog):
    tally = generate(model_dir, far_file, tmp_path / "out", counts=2)
    assert np.flatnonzero(read(tmp_path / "out")["outside_training"].to_numpy()).tolist() == [31]
    assert tally.outside_training == 1
    assert "1 of 50 primaries are outside the trained range: energy_gev 1e+11 (trained: " in caplog.text
    assert "mass_gev" not in caplog.text  # Only what is outside is named.
    with pytest.raises(ValueError, match=r"1 of 50 primaries are outside .* energy_gev 1e.11.*without --strict"):
        generate(model_dir, far_file, tmp_path / "strict", strict=True)
    assert not (tmp_path / "strict").exists()


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


def test_the_request_says_where_everything_comes_from(model_dir, primaries_file, tmp_path):
    generate(model_dir, primaries_file, tmp_path, seed=9)
    record = json.loads((tmp_path / "_request.json").read_text())
    assert record["request"]["seed"] == 9
    assert record["primaries"]["files"] == [primaries_file]
    assert record["model"]["model"]["width"] == 16
    assert record["code"]["torch_version"] in torch.__version__


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"seed": -1}, "--seed -1: expected a whole number from 0"),
        ({"max_muons_per_event": 0}, "--max-muons-per-event 0: expected a whole number from 1"),
        ({"events_per_shard": 1000}, "--events-per-shard 1000: expected a multiple of 1024"),
    ],
)
def test_options_out_of_range_are_refused(options, says):
    with pytest.raises(ValueError, match=says):
        GenerationOptions(**options)


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


def test_no_primaries_at_all_are_refused(model_dir, tmp_path):
    pq.write_table(schema.EVENT_SCHEMA.empty_table(), tmp_path / "p.parquet")
    with pytest.raises(ValueError, match="the primaries have no rows"):
        generate(model_dir, tmp_path / "p.parquet", tmp_path / "out")
    assert not (tmp_path / "out").exists()


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
    with pytest.raises(ValueError, match="only those of --spectrum have a known probability"):
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


def test_what_a_kill_left_of_the_request_does_not_make_the_place_a_foreign_one(model_dir, primaries_file, tmp_path):
    (tmp_path / "._request.json.0123abcd.partial").write_text("{")
    assert generate(model_dir, primaries_file, tmp_path, counts=1).events == NUM_EVENTS
    assert not list(tmp_path.glob(".*"))


def test_threads_make_the_shards_that_one_makes(model_dir, primaries_file, tmp_path, monkeypatch):
    for cpus in (1, 3):
        monkeypatch.setattr(writer, "CPUS", cpus)
        generate(model_dir, primaries_file, tmp_path / str(cpus), seed=4, events_per_shard=EVENTS_PER_BLOCK)
    assert read(tmp_path / "1").equals(read(tmp_path / "3"))


def test_numbers_of_muons_that_no_memory_holds_are_refused_with_the_remedy(model_dir, primaries_file, tmp_path):
    with pytest.raises(
        ValueError, match=r"has 3000000 muons, expected 0 to 2097152: limit them \(--max-muons-per-event\)"
    ):
        generate(model_dir, primaries_file, tmp_path / "out", counts=3_000_000)
    assert generate(model_dir, primaries_file, tmp_path / "capped", counts=3_000_000, max_muons_per_event=2).capped


def test_n_comes_from_the_column_that_is_named(tmp_path, model_dir, capsys):
    primaries = {"energy_gev": [1e6] * 3, "zenith_rad": [0.1] * 3, "mass_gev": [0.938] * 3, "depth_m": [1500.0] * 3}
    table = pa.table(
        {**primaries, "num_muons": [1, 1, 1], "n_mu": [0, 5, 2], "hits": [[1.0], [], [2.0, 3.0]], "x": [0.5] * 3}
    )
    pq.write_table(table, tmp_path / "p.parquet")

    def generate_with(column, *words):
        words = ["--primaries", str(tmp_path / "p.parquet"), "--out", str(tmp_path / f"out-{column}"), *words]
        return main(["generate", "--model", str(model_dir), "--count-column", column, *words])

    for column, counts in (("n_mu", [0, 5, 2]), ("hits", [1, 0, 2])):
        assert generate_with(column) == 0
        assert [len(muons) for muons in read(tmp_path / f"out-{column}")["muons"].to_pylist()] == counts
    assert generate_with("none") == 1
    assert "no column 'none' to read N from (found energy_gev" in capsys.readouterr().err
    assert generate_with("x") == 1
    assert "column 'x' has type double, expected an integer" in capsys.readouterr().err
    assert generate_with("n_mu", "--counts", "7") == 1
    assert "--count-column takes N from the primaries' files, and --counts 7 does not" in capsys.readouterr().err
