"""A private home for every test, shapes checked while the tests run, and toy events that obey the data contract."""

import gc
import logging
import os

import pytest

from tests.shapes import check_shapes
from tests.toy import toy_events, write_toy  # noqa: F401 - fixtures

# What torch, MLflow and Ray load is never garbage. Looking through their 600,000 objects again and again took 4 of the 20
# CPU-seconds of collecting the tests, in each of xdist's processes.
gc.disable()


def pytest_collection_finish():
    """Leave everything loaded so far out of all later garbage collections."""
    gc.freeze()
    gc.set_threshold(20_000)  # Of 700 new objects, as Python has it, hardly one is garbage: 4 % of the tests' time.
    gc.enable()
    # pytest attaches a handler to each logger whose records do not reach the root, six times a test: 4 % of the tests' time for
    # the 40 of torch. Those that the root gets are captured without.
    for logger in logging.root.manager.loggerDict.values():
        logger.propagate = True


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish():
    """Look for what nobody closed once: pytest does so ten times, which takes half a second of each process."""
    gc.collect()
    gc.freeze()


# The shapes and dtypes in the annotations of these modules are checked at every call of the tests.
CHECKED = (
    "data.arrow", "data.batcher", "data.events", "data.geometry", "data.loader", "data.manifest", "data.parquet", "data.reader",
    "data.sampler", "data.schema", "data.selection", "data.shards", "generation.generator", "generation.host_copies", "models.bundle_model", "models.features",
    "models.multiplicity", "models.networks", "models.ragged", "models.saved_model", "runs.checkpoint", "runs.directory",
    "training.batch", "training.losses", "training.optimizers", "training.trainer",
)  # fmt: skip
check_shapes([f"crmuons.{name}" for name in CHECKED])


@pytest.fixture(scope="session", autouse=True)
def no_flushes():
    """No power cut happens in a test, and a flush of a file to the disk takes 10 ms; the tests would wait for a thousand."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", os.fstat)  # It takes the same descriptors, and refuses a closed one.
        yield


@pytest.fixture(autouse=True)
def private_home(tmp_path_factory, monkeypatch):
    """No test sees or leaves anything in the user's home, or speaks to the user's tracking server."""
    home = tmp_path_factory.getbasetemp() / "home"
    home.mkdir(exist_ok=True)
    for name in [name for name in os.environ if name.startswith(("XDG_", "MLFLOW_TRACKING_", "RAY_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(home))
