"""Runs that are kept at a URL: each works in a directory of its own machine, and its results are copied out on the way.

Below the run's URL lie bundles (bundles.py), which are immutable and whole or not there:

    start-DIGEST/              config.json, files.json, features.pt, validation.parquet
    step-XXXXXXXX-DIGEST/      a checkpoint, with the metrics and the tracking journal up to it
    model-XXXXXXXX-DIGEST/     the selected model, metrics and done.json: the run is at its end
    quarantine/, outliers/     Parquet files, as they are found

Any machine goes on from there. Rank 0 alone writes.
"""

import fcntl
import json
import logging
import os
import shutil
import socket
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from crmuons.runs import checkpoint
from crmuons.runs.directory import START, Run
from crmuons.storage import artifacts, atomic, files

logger = logging.getLogger(__name__)

START_FILES = ("features.pt", "validation.parquet", "files.json", "config.json")  # The last makes it a started run.
KEPT_WITH_STEPS = (
    "metrics.jsonl",
    "tracking/sent.json",
    "tracking/journal.jsonl",
)  # `sent` first: it must not be ahead.
STEPS = r"step-\d{8}"
FIRST_WAIT_S, LONGEST_WAIT_S = 2.0, 30.0
FAILURE_WAIT_S = 60.0  # How long a run that failed stays to copy out its last checkpoint.


class NotStoredError(OSError):
    """A run's results are not all where they are kept; the message says where they are."""


@dataclass(frozen=True)
class UploadStatus:
    """How far a run's results are where it is kept, as `upload.json` in its directory tells.

    Attributes:
        step: of the newest checkpoint there, -1 without one.
        model: the name of the model's bundle, None before the end.
        trouble: why the last attempt to write failed, None after one that did not.
        kept: why checkpoints that are no longer needed stay there, None where they are removed.
    """

    step: int = -1
    model: str | None = None
    trouble: str | None = None
    kept: str | None = None

    @classmethod
    def of(cls, run: Run) -> "UploadStatus":
        """What is known on this machine."""
        path = _record(run)
        return cls(**json.loads(path.read_text())) if path.is_file() else cls()


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
            _link(str(run.directory / name), str(Path(folder) / name))
        yield Path(folder)


class Uploads:
    """Copies checkpoints to where a run is kept, in a thread: training never waits for it.

    The newest and the best are copied; one that is overtaken before its turn is left out, so that a slow storage is behind by a
    checkpoint and not by a growing queue. What fails is tried again, with waits between FIRST_WAIT_S and LONGEST_WAIT_S.

    Args:
        run: one with a URL.
        keep: how many of the newest checkpoints stay there, beside the best one.
    """

    def __init__(self, run: Run, keep: int) -> None:
        assert run.url is not None
        self.run, self.url, self.keep = run, run.url, keep
        self.stored = replace(UploadStatus.of(run), trouble=None, kept=None)
        self._guard = threading.Condition()
        self._waiting: dict[str, dict[str, int | None]] = {}  # Labels, and what the manifest says of each.
        self._sending: str | None = None
        self._sent: list[str] = []
        self._closing = self._given_up = False
        shutil.rmtree(self._outbox, ignore_errors=True)
        if (
            last := checkpoint.latest(run.checkpoints)
        ) is not None:  # It may have been on its way in an attempt before.
            self.add(last)
        self._resumed = None if last is None else last.name
        self._thread = threading.Thread(target=self._send_all, name="uploads", daemon=True)
        self._thread.start()

    @property
    def _outbox(self) -> Path:
        return self.run.directory / "outbox"

    def add(self, saved: Path) -> None:
        """Take a checkpoint that was saved, with the metrics up to it."""
        best = checkpoint.selected(self.run.checkpoints)
        with self._guard:
            self._snapshot(saved, saved.name, KEPT_WITH_STEPS)
            self._waiting[saved.name] = {"best": None if best is None else checkpoint.step(best.name)}
            wanted = {saved.name, self._sending, None if best is None else best.name}
            for overtaken in self._waiting.keys() - wanted:
                self._drop(overtaken)
            self._guard.notify()

    def add_model(self, step: int) -> None:
        """Take the model that was delivered, and the mark that the run is done."""
        label = f"model-{step:08d}"
        with self._guard:
            self._snapshot(self.run.model, label, (self.run.metrics.name,))
            done = json.loads(self.run.done.read_text()) | {"model": "."}
            atomic.write_json(self._outbox / label / self.run.done.name, done)
            self._waiting[label] = {"step": step}
            self._guard.notify()

    def finish(self, seconds: float) -> None:
        """Wait until all is copied.

        Raises:
            NotStoredError: if it is not after so many seconds, with where it lies and what to do.
        """
        if self.wait(seconds):
            return
        self._given_up = True
        msg = (
            f"{' and '.join(self._waiting)} could not be copied to {self.url} within run.upload_seconds = {seconds:g} "
            f"({self.stored.trouble or 'it takes longer than that'}); all of it is in {self.run.directory} on "
            f"{socket.gethostname()}, from where the same command with run.resume=auto copies it once the storage takes it"
        )
        raise NotStoredError(msg)

    def wait(self, seconds: float) -> bool:
        """Whether all is copied after so many seconds, which are waited for once; nothing can be added any more."""
        with self._guard:
            seconds, self._closing = 0.0 if self._closing else seconds, True
            self._guard.notify()
        self._thread.join(seconds)
        return not self._waiting

    def _snapshot(self, source: Path, label: str, beside: Sequence[str]) -> None:
        """Links to a directory's files, which stay when it is pruned, and copies of what grows on."""
        target = self._outbox / label
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(source, target, copy_function=_link)
        for name in beside:
            if (kept := self.run.directory / name).is_file():
                (target / name).parent.mkdir(exist_ok=True)
                shutil.copyfile(kept, target / name)

    def _drop(self, label: str) -> None:
        del self._waiting[label]
        shutil.rmtree(self._outbox / label)

    def _send_all(self) -> None:
        wait_s = FIRST_WAIT_S
        while (label := self._next()) is not None:
            try:
                self._send(label)
                wait_s = FIRST_WAIT_S
            except Exception as error:  # noqa: BLE001 - storages have errors of their own; it is told at the end
                logger.warning("copying %s to %s failed, and is tried again: %s", label, self.url, error)
                self._note(trouble=str(error) or type(error).__name__)
                time.sleep(wait_s)
                wait_s = min(2 * wait_s, LONGEST_WAIT_S)

    def _next(self) -> str | None:
        """The first label that waits, None once there will be no more."""
        with self._guard:
            self._guard.wait_for(lambda: self._waiting or self._closing)
            self._sending = None if self._given_up else next(iter(self._waiting), None)
            return self._sending

    def _send(self, label: str) -> None:
        name = self._find_whole(label) if label == self._resumed else None
        if name is None:
            name = artifacts.upload(self.url, self._outbox / label, label, self._waiting[label])
        about = self._waiting[label]
        with self._guard:
            self._drop(label)
        if label.startswith("model"):
            self._note(model=name, trouble=None)
            return
        self._note(step=checkpoint.step(label), trouble=None)
        self._sent.append(name)
        self._prune(about["best"])

    def _find_whole(self, label: str) -> str | None:
        return next((name for name in artifacts.find(self.url, label) if artifacts.is_whole(self.url, name)), None)

    def _prune(self, best: int | None) -> None:
        """Remove what is no longer needed and older than the newest, unfinished ones too."""
        newest, kept = checkpoint.step(self._sent[-1]), self._sent[-self.keep :]
        try:
            for name in artifacts.find(self.url, STEPS):
                if checkpoint.step(name) < newest and checkpoint.step(name) != best and name not in kept:
                    files.remove_tree(f"{self.url}/{name}")
        except Exception as error:  # noqa: BLE001 - as above; it costs room, and no result
            if self.stored.kept is None:
                logger.warning("%s: old checkpoints stay there: %s", self.url, error)
            self._note(kept=str(error) or type(error).__name__)

    def _note(self, **changed: Any) -> None:
        self.stored = replace(self.stored, **changed)
        atomic.write_json(_record(self.run), asdict(self.stored))


def _record(run: Run) -> Path:
    return run.directory / "upload.json"


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # Not every file system has links.
        shutil.copyfile(source, target)
