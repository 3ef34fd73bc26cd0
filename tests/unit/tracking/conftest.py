"""One MLflow store, trackers on it, and an untrained model."""

import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path

import mlflow
import numpy as np
import pytest
from sqlalchemy import Engine, event

from crmuons import config
from crmuons.data.events import EventArrays
from crmuons.models import saved_model
from crmuons.models.bundle_model import BundleModel
from crmuons.models.features import Features
from crmuons.tracking import sender
from crmuons.tracking.tracker import Tracker
from crmuons.tracking.uri import default_uri


@event.listens_for(Engine, "connect")
def leave_out_flushes(connection: object, _: object) -> None:
    """No power cut happens in a test, and a flush of SQLite's files to the disk takes 10 ms."""
    if isinstance(connection, sqlite3.Connection):
        connection.execute("PRAGMA synchronous=OFF")


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A sender whose last attempt follows the one before at once."""
    monkeypatch.setattr(sender, "SECONDS_BEFORE_LAST_ATTEMPT", 0.01)


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with one MLflow store for all tests: making its tables takes seconds."""
    return tmp_path_factory.mktemp("store")


@pytest.fixture
def client(base: Path, monkeypatch: pytest.MonkeyPatch) -> mlflow.MlflowClient:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return mlflow.MlflowClient(default_uri(base))


@pytest.fixture
def start(base: Path, tmp_path: Path) -> Iterator[Callable[..., Tracker]]:
    """Open trackers on the store; those a test leaves open end with it."""
    opened = []

    def open_one(directory: Path = tmp_path, **changes: object) -> Tracker:
        settings = {"uri": default_uri(base), "experiment": "tests", "run_name": "bundle", "params": {}, "tags": {}}
        opened.append(Tracker.open(directory, **(settings | changes)))
        return opened[-1]

    yield open_one
    for tracker in opened:
        tracker.finish("KILLED")


@pytest.fixture
def model_dir(tmp_path: Path) -> Path:
    """An untrained model whose features know a toy sample."""
    random, settings = np.random.default_rng(0), config.Model()
    events, muons = 200, 10
    primaries = random.uniform([1e5, 0.0, 0.9, 1500], [1e7, 1.0, 52, 2500], (events, 4)).astype(np.float32)
    sample = EventArrays(
        ids=np.zeros((events, 2), np.uint64),
        primaries=primaries,
        counts=np.full(events, muons),
        muons=random.lognormal(2.0, 1.0, (events * muons, 3)).astype(np.float32),
    )
    model = BundleModel(settings, Features().fit(sample))
    return saved_model.save_model(tmp_path / "model", model, {"format": 1, "model": settings.model_dump(mode="json")})
