"""Runs that are kept at a URL: each works in a directory of its own machine, and its results are copied out on the way.

Below the run's URL lie bundles (bundles.py), which are immutable and whole or not there:

    start-DIGEST/              config.json, files.json, features.pt, validation.parquet
    step-XXXXXXXX-DIGEST/      a checkpoint, with the metrics and the tracking journal up to it
    model-XXXXXXXX-DIGEST/     the selected model, metrics and done.json: the run is at its end
    quarantine/, outliers/     Parquet files, as they are found

Any machine goes on from there. Rank 0 alone writes.
"""

import fcntl
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from crmuons.runs import checkpoint
from crmuons.runs.directory import START, Run
from crmuons.storage import artifacts

logger = logging.getLogger(__name__)

START_FILES = ("features.pt", "validation.parquet", "files.json", "config.json")  # The last makes it a started run.
KEPT_WITH_STEPS = (
    "metrics.jsonl",
    "tracking/sent.json",
    "tracking/journal.jsonl",
)  # `sent` first: it must not be ahead.
STEPS = r"step-\d{8}"


def start(run: Run) -> None:
    """Copy out what a run starts from. It comes before the training, and shows that the place can be written.

    Raises:
        OSError: if it cannot.
    """
    if run.url is None:
        return
    with _start_folder(run) as folder:
        artifacts.upload(run.url, folder, START, {})


def fetch_start(run: Run) -> None:
    """Copy what a run starts from to this machine, once, whatever the number of processes; nothing for a new run.

    Raises:
        DamagedError: if it is not what was written.
        ValueError: if this machine's copy is of another run of the same name.
    """
    if run.url is None:
        return
    run.directory.parent.mkdir(parents=True, exist_ok=True)
    with run.directory.with_name(f".{run.directory.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        found = _there(run, START, go_on=run.has_started())
        there = [name for name in found if artifacts.is_whole(run.url, name)]  # Otherwise it never began to train.
        if run.has_started():
            _check_same(run, there)
        elif there:
            folder = run.directory / ".start"
            artifacts.download(run.url, there[0], folder)
            for name in START_FILES:
                (folder / name).replace(run.directory / name)
            folder.rmdir()


def fetch_newest(run: Run) -> None:
    """Copy the newest whole checkpoint to this machine, and the best one, where this machine has no newer one.

    Raises:
        OSError: if the storage cannot be read, and there is no checkpoint on this machine either.
    """
    if run.url is None:
        return
    here = max(checkpoint.steps(run.checkpoints), default=-1)
    for name in reversed(_there(run, STEPS, go_on=here >= 0)):
        if checkpoint.step(name) <= here:
            return
        try:
            best = _fetch_checkpoint(run, name).about["best"]
        except artifacts.DamagedError as error:
            logger.warning("%s; going on from the checkpoint before it", error)
            continue
        if best is not None:
            _fetch_best(run, best)
        _unpack(run, checkpoint.path(run.checkpoints, checkpoint.step(name)))
        return


def _there(run: Run, label: str, *, go_on: bool) -> list[str]:
    """The bundles at a run's URL; none, where it cannot be asked and the run can go on without."""
    assert run.url is not None
    try:
        return artifacts.find(run.url, label)
    except ConnectionError as error:
        if not go_on:
            raise
        logger.warning("%s; going on from this machine's copy of the run", error)
        return []


def _fetch_checkpoint(run: Run, name: str) -> artifacts.ArtifactManifest:
    assert run.url is not None
    return artifacts.download(run.url, name, checkpoint.path(run.checkpoints, checkpoint.step(name)))


def _fetch_best(run: Run, step: int) -> None:
    target = checkpoint.path(run.checkpoints, step)
    for name in _there(run, target.name, go_on=True):
        if not target.is_dir():
            _fetch_checkpoint(run, name)
    if target.is_dir():
        checkpoint.mark_best(run.checkpoints, target)


def _unpack(run: Run, saved: Path) -> None:
    """Put what came with a checkpoint where the run goes on with it."""
    for name in KEPT_WITH_STEPS:
        if (saved / name).is_file():
            (run.directory / name).parent.mkdir(exist_ok=True)
            (saved / name).replace(run.directory / name)


def _check_same(run: Run, there: list[str]) -> None:
    with _start_folder(run) as folder:
        ours = artifacts.ArtifactManifest.of(START, folder, {}).name
    if there and ours not in there:
        msg = (
            f"{run.directory} is this machine's copy of another run than the one at {run.url}; move it away, or choose "
            "another run.name"
        )
        raise ValueError(msg)


@contextmanager
def _start_folder(run: Run) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix=".start-", dir=run.directory) as folder:
        for name in START_FILES:
            link(str(run.directory / name), str(Path(folder) / name))
        yield Path(folder)


def link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # Not every file system has links.
        shutil.copyfile(source, target)
