"""A request for events: what it refuses, what it records, and that a directory belongs to one of them."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from crmuons.cli import main
from crmuons.data import reader, schema
from crmuons.generation.request import GenerationOptions
from crmuons.models import saved_model
from tests.unit.generation.generated import EVENTS_PER_BLOCK, NUM_EVENTS, generate, read


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


@pytest.fixture(scope="module")
def of_seed_4(model_dir, primaries_file, tmp_path_factory):
    out = tmp_path_factory.mktemp("of_seed_4")
    generate(model_dir, primaries_file, out, seed=4)
    return out


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"seed": 5}, "seed was 4, is 5"),
        ({"counts": 7}, "counts was predict, is 7"),
        ({"max_muons_per_event": 9}, "max_muons_per_event was None, is 9"),
        ({"events_per_shard": EVENTS_PER_BLOCK}, "events_per_shard was"),
    ],
)
def test_another_request_into_the_same_directory_is_refused(model_dir, primaries_file, of_seed_4, change, says):
    before = {path.name: path.read_bytes() for path in of_seed_4.iterdir() if path.is_file()}
    with pytest.raises(ValueError, match="belongs to another request") as error:
        generate(model_dir, primaries_file, of_seed_4, **{"seed": 4} | change)
    assert {path.name: path.read_bytes() for path in of_seed_4.iterdir() if path.is_file()} == before
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


def test_no_primaries_at_all_are_refused(model_dir, tmp_path):
    pq.write_table(schema.EVENT_SCHEMA.empty_table(), tmp_path / "p.parquet")
    with pytest.raises(ValueError, match="the primaries have no rows"):
        generate(model_dir, tmp_path / "p.parquet", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_what_a_kill_left_of_the_request_does_not_make_the_place_a_foreign_one(model_dir, primaries_file, tmp_path):
    (tmp_path / "._request.json.0123abcd.partial").write_text("{")
    assert generate(model_dir, primaries_file, tmp_path, counts=1).events == NUM_EVENTS
    assert not list(tmp_path.glob(".*"))


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
