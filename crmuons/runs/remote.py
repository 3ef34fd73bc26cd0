"""Runs that are stored at a URL: each works in a local directory, and its results are copied to the URL as it runs.

The run's URL holds artifacts (storage/artifacts.py). They are immutable, and incomplete ones are ignored:

    start-DIGEST/              config.json, files.json, features.pt, validation.parquet, the parent's weights
    step-XXXXXXXX-DIGEST/      a checkpoint, with the metrics and the tracking journal up to it
    model-XXXXXXXX-DIGEST/     the selected model, metrics and done.json; it marks the end of the run
    quarantine/, outliers/     Parquet files of rejected rows and of events above the muon cap

Any machine can continue from there. Only rank 0 writes.
"""

import logging
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from crmuons.runs import checkpoint
from crmuons.runs.directory import START, START_FILES, Run
from crmuons.storage import artifacts, ownership

logger = logging.getLogger(__name__)

# sent.json is copied before the journal, because it must not claim more entries than the journal holds.
KEPT_WITH_STEPS = ("metrics.jsonl", "tracking/sent.json", "tracking/journal.jsonl")
# The label is the checkpoint's name; the digest is added by artifacts.py.
STEPS = r"step-\d{8}"
FETCH_PATIENCE_S = 600.0  # The other processes of a node wait for the process that fetches, or compares, the start.


def start(run: Run) -> None:
    """Copy the files from which a run starts to its URL. Before training, this also shows that the URL can be written.

    Raises:
        OSError: if the URL cannot be written.
    """
    if run.url is None:
        return
    with _start_folder(run) as folder:
        # Its name depends on its content: a run that continues finds it there, and sends nothing.
        artifacts.upload(run.url, folder, START, {})


def fetch_start(run: Run) -> None:
    """Copy the files from which a run starts to this machine, once for all processes. Do nothing for a new run.

    Raises:
        DamagedArtifactError: if the remote files do not match their manifest.
        ValueError: if this machine's copy belongs to another run of the same name.
    """
    if run.url is None:
        return
    with ownership.hold(run.directory.with_name(f".{run.directory.name}.fetch"), patience_s=FETCH_PATIENCE_S):
        names = _remote_names(run, START, optional=run.has_started())
        # A killed upload leaves a folder without its manifest.
        complete = [name for name in names if artifacts.is_whole(run.url, name)]  # Without it training never began.
        if run.has_started():
            # The same name does not mean the same run: another machine may have begun a run of this name.
            _check_same(run, complete)
        elif complete:
            # Downloaded into another folder, and then moved: config.json comes last, which makes the directory a run.
            folder = run.directory / ".start"
            artifacts.download(run.url, complete[0], folder)
            for name in START_FILES:
                if (folder / name).is_file():  # Most runs have no parent.
                    (folder / name).replace(run.directory / name)
            folder.rmdir()


def fetch_newest(run: Run) -> None:
    """Copy the newest complete checkpoint and the best checkpoint to this machine, unless it has a newer checkpoint.

    Raises:
        OSError: if the storage cannot be read, and this machine has no checkpoint either.
    """
    if run.url is None:
        return
    # This machine may have trained on since its last upload.
    local_step = max(checkpoint.steps(run.checkpoints), default=-1)
    # From the newest backwards: a damaged checkpoint costs only the steps since the checkpoint before it.
    for name in reversed(_remote_names(run, STEPS, optional=local_step >= 0)):
        # This machine's own checkpoint is at least as new.
        if checkpoint.step(name) <= local_step:
            return
        try:
            best = _fetch_checkpoint(run, name).about["best"]
        except artifacts.DamagedArtifactError as error:
            logger.warning("%s; continuing from the checkpoint before it", error)
            continue
        if best is not None:
            _fetch_best(run, best)
        _unpack(run, checkpoint.path(run.checkpoints, checkpoint.step(name)))
        return


def _remote_names(run: Run, label: str, *, optional: bool) -> list[str]:
    """Return the names of artifacts at a run's URL; none if it cannot be reached and they are optional."""
    assert run.url is not None
    try:
        return artifacts.find_artifacts(run.url, label)
    except ConnectionError as error:
        if not optional:
            raise
        # A URL that cannot be reached for an hour must not stop a run that has all its files here.
        logger.warning("%s; continuing from this machine's copy of the run", error)
        return []


def _fetch_checkpoint(run: Run, name: str) -> artifacts.ArtifactManifest:
    assert run.url is not None
    return artifacts.download(run.url, name, checkpoint.path(run.checkpoints, checkpoint.step(name)))


def _fetch_best(run: Run, step: int) -> None:
    target = checkpoint.path(run.checkpoints, step)
    # Optional: without the best checkpoint the run continues, and selects again.
    for name in _remote_names(run, target.name, optional=True):
        if not target.is_dir():
            _fetch_checkpoint(run, name)
    if target.is_dir():
        checkpoint.mark_best(run.checkpoints, target)


def _unpack(run: Run, saved: Path) -> None:
    """Move the metrics and the journal that came with a checkpoint to the run's directory."""
    for name in KEPT_WITH_STEPS:
        if (saved / name).is_file():
            (run.directory / name).parent.mkdir(exist_ok=True)
            (saved / name).replace(run.directory / name)


def _check_same(run: Run, remote_names: list[str]) -> None:
    with _start_folder(run) as folder:
        local_name = artifacts.ArtifactManifest.of(START, folder, {}).name
    if remote_names and local_name not in remote_names:
        msg = (
            f"{run.directory} is this machine's copy of another run than the run at {run.url}; move it away, or choose "
            "another run.name"
        )
        raise ValueError(msg)


@contextmanager
def _start_folder(run: Run) -> Iterator[Path]:
    """Yield a temporary folder with the files from which a run starts."""
    with tempfile.TemporaryDirectory(prefix=".start-", dir=run.directory) as folder:
        for name in START_FILES:
            if (run.directory / name).is_file():
                link(str(run.directory / name), str(Path(folder) / name))
        yield Path(folder)


def link(source: str, target: str) -> None:
    """Make a hard link, or a copy on a file system without links."""
    try:
        # A second name for the same bytes needs no copy, and the first name may be removed meanwhile.
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
