"""Toy events that obey the data contract, as fixtures of the unit tests and the integration tests."""

from pathlib import Path

import numpy as np
import pytest


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
