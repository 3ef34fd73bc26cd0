"""Files and imports of crmuons 0.1 work with today's code; legacy/README.md lists the files."""

import json
import runpy
import tarfile
from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
import pytest

from crmuons import config
from crmuons.cli import main
from crmuons.data.manifest import Manifest, event_files
from crmuons.data.reader import read_slice
from crmuons.data.sampler import FileSlice
from crmuons.data.selection import Selection
from crmuons.generation.load import load_generator
from crmuons.runs.directory import Run
from crmuons.runs.location import RunStorage

HERE = Path(__file__).parent / "legacy"
SMALL = (
    "run.seed=7", "scaling.num_workers=0", "scaling.threads_per_worker=1", "train.log_every=1", "train.validate_every=3",
    "train.events_per_worker=32", "train.validation_events=100", "data.validation_share=0.2", "run.checkpoint_every=3",
    "model.width=8", "model.multiplicity_width=8", "model.multiplicity_components=2", "run.keep_checkpoints=1",
    "tracking.enabled=false", "run.resume=auto", "train.steps=9",
)  # fmt: skip


@pytest.fixture
def legacy(tmp_path):
    """The files, in a folder of the test's own; the paths in them point there."""
    with tarfile.open(HERE / "legacy.tar.gz") as archive:
        archive.extractall(tmp_path, filter="data")
    root = tmp_path / "legacy"
    for pattern in ("*.json", "*.jsonl"):
        for path in root.rglob(pattern):
            if "remote" not in path.parts:  # A bundle's name is a digest of its content.
                path.write_text(path.read_text().replace("/legacy/", f"{root}/"))
    return root


@pytest.fixture
def drawn(legacy):
    """What 0.1 drew from the models with seed 5: primaries, counts, muons of each model."""
    return np.load(legacy / "generated.npz")


def preset(folder, *sections):
    path = folder / "small.toml"
    path.write_text("\n".join(sections))
    return str(path)


def metrics(path):
    """The metric lines, without those that depend on the machine."""
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return [
        {k: v for k, v in line.items() if not k.startswith(("speed", "system", "progress", "storage"))}
        for line in lines
    ]


@pytest.mark.parametrize(
    ("name", "data", "words"), [("set", "data", ()), ("prepared", "prepared", ("train.optimizer.kind=sgd",))]
)
def test_a_run_continues_as_the_code_that_started_it_would(legacy, name, data, words):
    words = [*SMALL, f"data.train={legacy / data}", f"run.storage_path={legacy / 'runs'}", f"run.name={name}", *words]
    assert main(["train", preset(legacy), *words]) == 0
    continued, expected = (
        metrics(legacy / "runs" / name / "metrics.jsonl"),
        metrics(legacy / "continued" / f"{name}.jsonl"),
    )
    assert [line["step"] for line in continued] == [line["step"] for line in expected] == list(range(10))
    for line, other in zip(continued, expected, strict=True):
        if "validation/score" not in line:  # Early versions made a score of the quantities that there were.
            other.pop("validation/score", None)
        assert line == pytest.approx(other, rel=1e-3, abs=1e-4)


def test_a_run_of_the_predecessors_networks_is_known_by_its_old_name(legacy):
    run = Run(legacy / "runs" / "predecessor")
    assert json.loads((run.directory / "config.json").read_text())["model"]["kind"] == "baseline"
    words = [
        "model.kind=predecessor", "model.multiplicity=regressor", "train.penalty.kind=one_centred", "train.loss=wasserstein",
        f"data.train={legacy / 'data'}", f"run.storage_path={legacy / 'runs'}", "run.name=predecessor",
    ]  # fmt: skip
    run.check_unchanged(config.load(Path(preset(legacy)), [*SMALL, *words]))


def test_a_users_old_names_get_a_sentence_with_the_new_ones(tmp_path):
    with pytest.raises(ValueError, match=r"model\.kind = 'baseline' is 'predecessor' now"):
        config.load(Path(preset(tmp_path, "[model]", 'kind = "baseline"')), ["train.steps=1"])
    with pytest.raises(FileNotFoundError, match=r"no preset at jobs/configs/baseline\.toml; it is 'default' now"):
        config.load(Path("jobs/configs/baseline.toml"), ["train.steps=1"])


def test_the_old_path_of_a_preset_finds_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert config.load("jobs/configs/default.toml").train.max_seconds == 900
    assert config.load(Path("/opt/crmuons/jobs/configs/demo.toml")) == config.load("demo")


@pytest.mark.parametrize("name", ["set", "predecessor"])
def test_a_model_draws_the_same_muons(legacy, drawn, name):
    generator = load_generator(legacy / "runs" / name / "model")
    events = generator.generate(drawn["primaries"], seed=5, counts=drawn["counts"])
    np.testing.assert_allclose(events.muons, drawn[name], rtol=1e-4)


def test_a_run_kept_at_a_url_gives_its_model(legacy, drawn):
    generator = load_generator(f"local://{legacy / 'remote' / 'remote'}")
    events = generator.generate(drawn["primaries"], seed=5, counts=drawn["counts"])
    np.testing.assert_allclose(events.muons, drawn["set"], rtol=1e-4)  # The same settings and seed.


@pytest.mark.filterwarnings("ignore:.*Any type hint is inferred:UserWarning")  # Of MLflow, when it is imported.
def test_an_mlflow_model_loads(legacy, drawn):
    model = mlflow.pyfunc.load_model(str(legacy / "mlflow_model"))
    columns = ["energy_gev", "zenith_rad", "mass_gev", "depth_m"]
    bundles = model.predict(pd.DataFrame(drawn["primaries"].astype(np.float64), columns=columns))
    assert len(bundles) == len(drawn["primaries"])


def test_an_exported_directory_draws_the_same_muons(legacy, drawn):
    bundles = runpy.run_path(str(legacy / "exported" / "bundles.py"))["Bundles"]()
    _, muons = bundles.generate(drawn["primaries"], seed=5, counts=drawn["counts"])
    np.testing.assert_allclose(muons, drawn["exported"], rtol=1e-4)


def test_prepared_shards_are_read(legacy):
    manifest = Manifest.read(str(legacy / "prepared"))
    events = [read_slice(FileSlice(file, 0, 1), Selection())[0] for file in event_files([str(legacy / "prepared")])]
    assert sum(len(part.counts) for part in events) == sum(shard.events for shard in manifest.shards) == 600
    assert sum(len(part.muons) for part in events) == sum(shard.muons for shard in manifest.shards)


def test_users_imports_work():
    from crmuons.spectrum import simweights_tables

    assert callable(simweights_tables)


def test_a_storage_is_found_where_it_was(legacy):
    settings = config.load(None, ["train.steps=1", f"run.storage_path=local://{legacy / 'remote'}"])
    assert RunStorage.of(settings).url == f"local://{legacy / 'remote'}"
