"""Remote data cost a run no request for digests, and are refused if they are replaced all the same."""

import json
import re
from pathlib import Path

import fsspec
import pytest

from crmuons import config
from crmuons.cli import main
from crmuons.runs import checkpoint
from crmuons.storage import files, identity
from crmuons.training import setup
from tests.integration.training.conftest import SMALL

pytestmark = pytest.mark.usefixtures("no_figures")

NUM_FILES = 40


@pytest.fixture(scope="module")
def contents(tmp_path_factory, toy_events, write_toy):
    """Small files, all of them of other content."""
    root = tmp_path_factory.mktemp("contents")
    return {
        f"/lake/{number:02d}.parquet": Path(
            write_toy(root / f"{number}.parquet", toy_events(60, seed=number)).url
        ).read_bytes()
        for number in range(NUM_FILES)
    }


@pytest.fixture
def memory(contents):
    """A store that holds them."""
    store = fsspec.filesystem("memory")
    for name, content in contents.items():
        store.pipe(name, content)
    yield store
    store.rm("/lake", recursive=True)


@pytest.fixture
def opened(monkeypatch):
    """The URLs that were opened, in order."""
    urls = []

    def noting(url, size=None, *, inner=files.open_file):
        urls.append(url)
        return inner(url, size)

    monkeypatch.setattr(identity, "open_file", noting)
    return urls


def train(tmp_path, *words):
    return main(["train", *SMALL, "data.train=memory://lake", f"run.storage_path={tmp_path / 'runs'}", *words])


def damage(store, name):
    """Change the end of a file and keep its size."""
    content = store.cat(name)
    store.pipe(name, content[:-40] + bytes(reversed(content[-40:])))


def test_a_start_opens_no_more_files_than_it_takes_events_from(memory, opened, monkeypatch):
    monkeypatch.setattr(setup, "FEATURE_EVENTS", 100)
    settings = config.load(
        None, ["data.train=memory://lake", "train.validation_events=100", "train.steps=1", "data.validation_share=0.3"]
    )
    listed, _, _ = setup.set_up_run(settings)
    assert len(listed) == NUM_FILES
    # Some are opened ahead of what is taken; one is opened again, to look for ids.
    assert len(opened) < NUM_FILES - 5
    known = [file for file in listed if file.digest is not None]
    assert 2 <= len(known) <= 15  # Those that gave events, and not those that were read ahead.
    assert [file.digest for file in known] == [file.digest for file in setup.set_up_run(settings)[0] if file.digest]


def test_a_file_that_a_run_has_read_may_be_moved_and_written_again_but_not_replaced(
    memory, tmp_path, opened, capsys, monkeypatch
):
    monkeypatch.setattr(setup, "FEATURE_EVENTS", 100)
    assert train(tmp_path, "train.steps=30") == 0  # About an epoch, so that every file was opened.
    digests = checkpoint.load_training(checkpoint.latest(tmp_path / "runs" / "r" / "checkpoints"))["stream"]["digests"]
    assert len(set(opened)) == len(digests) == NUM_FILES
    assert all(len(digest) == 16 for digest in digests.values())
    names = memory.glob("/lake/*")
    for name in names:
        memory.pipe(name, memory.cat(name))
    memory.mv("/lake", "/pond", recursive=True)
    assert train(tmp_path, "train.steps=32", "data.train=memory://pond") == 0
    assert len(json.loads((tmp_path / "runs" / "r" / "moved.json").read_text())) == NUM_FILES
    memory.mv("/pond", "/lake", recursive=True)
    damage(memory, names[7])
    capsys.readouterr()
    assert train(tmp_path, "train.steps=34") == 1
    said = capsys.readouterr().err
    assert "1 of the 40 files that the run began with cannot be used" in said
    assert "07.parquet has changed" in said


def test_a_file_that_is_replaced_between_two_epochs_stops_the_run(memory, tmp_path, capsys, monkeypatch):
    from crmuons.training.trainer import Trainer

    step = Trainer.step

    def replacing(self, batches):
        if self.num_steps == 6:
            for name in memory.glob("/lake/*"):
                damage(memory, name)
        return step(self, batches)

    monkeypatch.setattr(Trainer, "step", replacing)
    monkeypatch.setattr(setup, "FEATURE_EVENTS", 100)  # The others are opened by the training.
    assert train(tmp_path, "train.steps=200") == 1
    said = capsys.readouterr().err
    assert re.search(r"parquet has changed: (end|\d+ bytes, end) [0-9a-f]{16} when it was", said), said
