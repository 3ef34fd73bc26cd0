"""A full disk ends in one sentence, whatever was being written: path, size, free space and remedy."""

import errno
import os
import re
import subprocess
from contextlib import suppress
from pathlib import Path

import fsspec
import pytest
import torch

from crmuons import config, unforeseen
from crmuons.data import arrow, quarantine
from crmuons.data.sampler import FileSlice
from crmuons.data.shards import write_shard
from crmuons.models.bundle_model import BundleModel
from crmuons.models.features import Features
from crmuons.models.saved_model import save_model, write_tensors
from crmuons.runs import checkpoint
from crmuons.runs.directory import Run
from crmuons.storage import atomic, files
from crmuons.storage.atomic import DiskFullError
from crmuons.storage.files import File
from crmuons.storage.output import Output
from crmuons.storage.staging.cache_dir import CacheDir
from crmuons.storage.staging.download import Staging

SENTENCE = r"No space left on device\)?; free space there \(0 B of 65\.5 kB are free; \d[\d.]* k?B of it were written\)"


@pytest.fixture(scope="module")
def full_disk(tmp_path_factory):
    """A disk of 64 KiB without a free byte."""
    folder = tmp_path_factory.mktemp("disk")
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", folder], check=False, capture_output=True
    )
    if mounted.returncode:
        pytest.skip(f"a tmpfs cannot be mounted here: {mounted.stderr.decode().strip()}")
    for name in ("a", "b", "run"):
        (folder / name).mkdir()
    (folder / "run" / "metrics.jsonl").touch()
    with suppress(OSError), (folder / "ballast").open("wb", buffering=0) as ballast:
        while True:
            ballast.write(bytes(1024))
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


@pytest.fixture(scope="module")
def model(toy_events):
    settings = config.from_dict(
        {"train": {"steps": 1}, "model": {"width": 8, "multiplicity_width": 8, "multiplicity_components": 2}}
    )
    return BundleModel(settings.model, Features().fit(toy_events(100))), {
        "model": settings.model.model_dump(mode="json")
    }


WRITERS = {
    "text": lambda disk, *_: atomic.write_text(disk / "a.json", "x" * 9000),
    "events": lambda disk, events, _: arrow.write_events(disk / "a.parquet", [arrow.to_table(events)]),
    "a shard": lambda disk, events, _: write_shard(disk / "a.arrow", events, (0.0, 1.0)),
    "a model": lambda disk, _, model: save_model(disk / "model", *model),
    "a copy": lambda disk, *_: files.put(Path(__file__), str(disk / "copy.py")),
    "a fetched file": lambda disk, *_: files.get(str(Path(__file__)), disk / "fetched.py"),
    "an output": lambda disk, *_: _write_output(disk),
}


def _write_output(disk):
    with Output(str(disk / "out")).writing("a") as path:
        path.write_bytes(bytes(9000))


@pytest.mark.parametrize("what", WRITERS)
def test_a_writer_names_path_size_free_space_and_remedy(what, full_disk, toy_events, model):
    before = set(full_disk.rglob("*"))
    with pytest.raises(OSError, match=SENTENCE) as raised:
        WRITERS[what](full_disk, toy_events(200), model)
    assert str(full_disk) in str(raised.value)
    assert {path for path in full_disk.rglob("*") if path.is_file()} <= before  # No part is left.


def test_a_new_run_and_a_checkpoint_say_it_with_their_own_remedy(full_disk, toy_events, model):
    settings = config.from_dict({"train": {"steps": 1}})
    with pytest.raises(
        OSError, match=r"^the run's directory .*/disk0/new cannot be written \(" + SENTENCE + ", or choose another run"
    ):
        Run(full_disk / "new").create(settings, [File("a", 1)], Features().fit(toy_events(100)), toy_events(5))
    with pytest.raises(
        OSError,
        match=r"^checkpoint of step 7 could not be written to .* \(" + SENTENCE + "; earlier checkpoints are intact",
    ):
        checkpoint.save(full_disk / "run", 7, *model, {"weights": torch.zeros(5000)})


def test_reserving_room_in_a_run_says_it(full_disk):
    with pytest.raises(OSError, match=r"^the run's directory .*/run cannot be written \(" + SENTENCE):
        Run(full_disk / "run").reserve_failure()


def test_quarantined_rows_say_it_of_the_temporary_folder(full_disk, tmp_path, toy_events, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(full_disk / "a"))
    with pytest.raises(OSError, match=r"disk0/a"):
        quarantine.keep_outliers(toy_events(200), FileSlice(File("x", 1), 0, 1), str(tmp_path))


def test_a_staging_directory_says_it_and_the_file_is_read_remotely(full_disk, caplog):
    fsspec.filesystem("memory").pipe("/full/data.bin", bytes(9000))
    staging = Staging(CacheDir(full_disk / "staged", 10**9, 10), 1)
    with staging.open(File("memory://full/data.bin", 9000), whole=True) as opened:
        assert opened.read() == bytes(9000)
    assert re.search(
        r"staged cannot be used now \(No space left on device\), 0 B of 65.5 kB are free there", caplog.text
    )


def test_torch_says_what_the_system_said():
    with pytest.raises(OSError, match="No space left on device"):
        write_tensors(Path("/dev/full"), {"weights": torch.zeros(100_000)})


def test_a_command_that_nobody_prepared_for_it_says_it_too(capsys):
    def work():
        with Path("/dev/full").open("wb") as file:
            file.write(bytes(100_000))

    assert unforeseen.guarded("crmuons x", work, []) == 1
    said = capsys.readouterr().err
    assert re.match(
        r"crmuons x: /\S* cannot be written \(No space left on device\); free space there \([\d.]+ \w+ of", said
    )


def test_a_full_quota_is_said_to_be_one(tmp_path):
    with pytest.raises(DiskFullError, match="are free and your quota is used up"), atomic.atomic_file(tmp_path / "a"):
        raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))


@pytest.mark.parametrize(
    ("size", "text"), [(0, "0 B"), (999, "999 B"), (8192, "8.2 kB"), (3.1e6, "3.1 MB"), (2e13, "20.0 TB")]
)
def test_sizes_are_for_people(size, text):
    assert atomic.size_text(size) == text


def test_all_else_keeps_its_own_error(tmp_path):
    with pytest.raises(PermissionError), atomic.atomic_file(tmp_path / "a"):
        raise PermissionError(errno.EACCES, "no")
