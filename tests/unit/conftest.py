"""A private home for every test, shapes checked while the tests run, and toy events that obey the data contract."""

import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import Phase, settings
from jaxtyping import install_import_hook

# The shapes and dtypes in the annotations of these modules are checked at every call of the tests.
CHECKED = (
    "data.arrow", "data.batcher", "data.events", "data.geometry", "data.loader", "data.manifest", "data.parquet", "data.reader",
    "data.sampler", "data.schema", "data.selection", "data.shards", "generation.generator", "models.bundle_model", "models.features",
    "models.multiplicity", "models.networks", "models.ragged", "models.saved_model", "runs.checkpoint", "runs.directory",
    "training.batch", "training.losses", "training.optimizers", "training.trainer",
)  # fmt: skip
install_import_hook([f"crmuons.{name}" for name in CHECKED], "beartype.beartype")

# The same examples in every run, and no minutes of shrinking where one fails.
settings.register_profile("unit", deadline=None, derandomize=True, database=None, phases=[Phase.generate])
settings.load_profile("unit")


@pytest.fixture(autouse=True)
def private_home(tmp_path_factory, monkeypatch):
    """No test sees or leaves anything in the user's home, or speaks to the user's tracking server."""
    home = tmp_path_factory.getbasetemp() / "home"
    home.mkdir(exist_ok=True)
    for name in [name for name in os.environ if name.startswith(("XDG_", "MLFLOW_TRACKING_", "RAY_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(home))


@pytest.fixture(scope="session")
def toy_events():
    """Makes toy events; see `make_events`."""
    return make_events


@pytest.fixture(scope="session")
def write_toy():
    """Makes a file of toy events: path, events -> files.File."""
    return write_file


def make_events(showers=200, *, seed=0, depths=(1500.0, 1950.0, 2450.0), mean=6.0, shape=3.0):
    """Showers seen at several depths, neighbours that share their ids; N is a negative binomial, wider than Poisson.

    Energies, masses and radii are of the order of the field's; N falls with depth, so that some events are empty.
    """
    from crmuons.data.events import EventArrays

    rng = np.random.default_rng(seed)
    depth = np.tile(np.asarray(depths), showers)
    shower = np.repeat(np.arange(showers), len(depths))
    zenith = rng.uniform(0, 1.2, showers)[shower]
    energy = (10 ** rng.uniform(5, 8, showers))[shower]
    mass = rng.choice([0.938, 3.727, 52.1], showers)[shower]
    factor = rng.gamma(shape, 1 / shape, showers)[shower]  # Shared by the depths of a shower.
    counts = rng.poisson(mean * factor * (energy / 1e6) ** 0.3 * np.exp(-(depth - 1500) / 700))
    muons = int(counts.sum())
    radius, azimuth = 10 ** rng.normal(1.0, 0.4, muons), rng.uniform(0, 2 * np.pi, muons)
    columns = (10 ** rng.normal(2.5, 0.5, muons), radius * np.cos(azimuth), radius * np.sin(azimuth))
    return EventArrays(
        ids=np.stack([1 + shower // 100, shower], axis=1).astype(np.uint64),
        primaries=np.stack([energy, zenith, mass, depth], axis=1).astype(np.float32),
        counts=counts.astype(np.int64),
        muons=np.stack(columns, axis=1).astype(np.float32),
    )


def write_file(path, events):
    """Write events as one Parquet file."""
    from crmuons.data import arrow
    from crmuons.storage.files import File

    Path(path).parent.mkdir(parents=True, exist_ok=True)
    arrow.write_events(Path(path), [arrow.to_table(events)])
    return File(str(path), Path(path).stat().st_size)
