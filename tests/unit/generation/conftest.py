"""A small model, its events and a file of primaries."""

import pytest
import torch

from crmuons import config
from crmuons.models import saved_model
from crmuons.models.bundle_model import BundleModel
from crmuons.models.features import Features
from tests.unit.generation.generated import NUM_EVENTS


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
