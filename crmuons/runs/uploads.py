"""Upload checkpoints to a run's URL, in a thread, while the run continues."""

import json
import logging
import shutil
import socket
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from crmuons.runs import checkpoint
from crmuons.runs.directory import Run
from crmuons.runs.remote import KEPT_WITH_STEPS, STEPS, link
from crmuons.storage import artifacts, atomic, files, records
from crmuons.storage.records import damage_named

logger = logging.getLogger(__name__)

KEYS_OF_0_1 = {"trouble": "upload_error", "kept": "removal_error"}  # Keys that crmuons 0.1 wrote in upload.json.
# Waits between attempts. The longest is much shorter than run.upload_seconds, so a storage that comes back is used.
FIRST_WAIT_S, LONGEST_WAIT_S = 2.0, 30.0
FAILURE_WAIT_S = 60.0  # A failed run waits this long for the upload of its last checkpoint.


class NotStoredError(OSError):
    """Raised if some results could not be copied to the run's URL; the message says where they are."""


@dataclass(frozen=True)
class UploadStatus:
    """Which results of a run are at its URL, as recorded in `upload.json` in its directory.

    Attributes:
        step: the step of the newest checkpoint at the URL; -1 if there is none.
        model: the name of the model's artifact; None before the end of the run.
        upload_error: why the last upload failed; None if it succeeded.
        removal_error: why checkpoints that are no longer needed could not be removed; None if they were.
    """

    step: int = -1
    model: str | None = None
    upload_error: str | None = None
    removal_error: str | None = None

    @classmethod
    def of(cls, run: Run) -> "UploadStatus":
        """Return the status that this machine recorded."""
        path = _record(run)
        if not path.is_file():
            return cls()
        with damage_named(path, "remove it: the next upload writes it again"):
            record = json.loads(path.read_bytes())
            return cls(**{KEYS_OF_0_1.get(key, key): value for key, value in record.items()})


class Uploads:
    """Uploads checkpoints to the run's URL in a thread, so that training never waits.

    The newest and the best checkpoint are uploaded. A checkpoint that is overtaken while it waits is skipped, so that
    a slow storage is one checkpoint behind instead of having a growing queue. A failed upload is repeated after
    FIRST_WAIT_S, and then after growing waits up to LONGEST_WAIT_S.

    Args:
        run: a run with a URL.
        keep: number of the newest checkpoints to keep at the URL, in addition to the best checkpoint.
    """

    def __init__(self, run: Run, keep: int) -> None:
        assert run.url is not None
        self.run, self.url, self.keep = run, run.url, keep
        self.stored = replace(UploadStatus.of(run), upload_error=None, removal_error=None)
        self._guard = threading.Condition()
        self._waiting: dict[str, dict[str, int | None]] = {}  # The further numbers of each manifest, by label.
        self._sending: str | None = None
        self._sent: list[str] = []
        self._closing = self._given_up = False
        # The outbox of an earlier attempt: its last checkpoint is queued again below.
        shutil.rmtree(self._outbox, ignore_errors=True)
        last = checkpoint.latest(run.checkpoints)
        if last is not None:  # An earlier attempt may not have finished its upload.
            self.add(last)
        # This checkpoint may be at the URL already, so `_send` looks for it first.
        self._resumed = None if last is None else last.name
        self._thread = threading.Thread(target=self._send_all, name="uploads", daemon=True)
        self._thread.start()

    @property
    def _outbox(self) -> Path:
        return self.run.directory / "outbox"

    def add(self, saved: Path) -> None:
        """Queue a saved checkpoint, with the metrics up to it."""
        best = checkpoint.selected(self.run.checkpoints)
        with self._guard:
            self._snapshot(saved, saved.name, (*KEPT_WITH_STEPS, self.run.moved.name))
            # The manifest names the best step, so that every continuation knows which checkpoint validation selected.
            self._waiting[saved.name] = {"best": None if best is None else checkpoint.step(best.name)}
            # The upload in progress is finished, because half of it is at the URL.
            needed = {saved.name, self._sending, None if best is None else best.name}
            for overtaken in self._waiting.keys() - needed:
                self._drop(overtaken)
            self._guard.notify()

    def add_model(self, step: int) -> None:
        """Queue the final model, and the mark that the run is done."""
        label = f"model-{step:08d}"
        with self._guard:
            self._snapshot(self.run.model, label, (self.run.metrics.name,))
            done = records.read(self.run.done) | {"model": "."}
            atomic.write_json(self._outbox / label / self.run.done.name, done)
            self._waiting[label] = {"step": step}
            self._guard.notify()

    def finish(self, seconds: float) -> None:
        """Wait until everything is uploaded.

        Raises:
            NotStoredError: if something is not uploaded after `seconds`; with the place of the files and the remedy.
        """
        if self.wait(seconds):
            return
        self._given_up = True
        msg = (
            f"{' and '.join(self._waiting)} could not be copied to {self.url} within run.upload_seconds = {seconds:g} "
            f"({self.stored.upload_error or 'it takes longer than that'}); all of it is in {self.run.directory} on "
            f"{socket.gethostname()}, where the same command with run.resume=auto copies it once the storage works again"
        )
        raise NotStoredError(msg)

    def wait(self, seconds: float) -> bool:
        """Accept no more uploads, wait up to `seconds` at the first call, and return whether everything is uploaded."""
        with self._guard:
            # A second call, after a failure, does not wait.
            seconds, self._closing = 0.0 if self._closing else seconds, True
            self._guard.notify()
        # With a limit, because Ray or Slurm would kill a process that hangs at its end.
        self._thread.join(seconds)
        return not self._waiting

    def _snapshot(self, source: Path, label: str, beside: Sequence[str]) -> None:
        """Link a directory's files into the outbox, where pruning cannot remove them, and copy growing files."""
        target = self._outbox / label
        # The same label may be queued again, after a resume from an earlier step.
        shutil.rmtree(target, ignore_errors=True)
        # Links cost no space, and a checkpoint's files never change.
        shutil.copytree(source, target, copy_function=link)
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
            except Exception as error:  # noqa: BLE001 - each storage has its own errors; `finish` reports it
                logger.warning("copying %s to %s failed and will be repeated: %s", label, self.url, error)
                self._note(upload_error=str(error) or type(error).__name__)
                time.sleep(wait_s)
                # The upload is repeated for ever; only `finish` has a limit.
                wait_s = min(2 * wait_s, LONGEST_WAIT_S)

    def _next(self) -> str | None:
        """Wait for the next label to upload, and return it; None at the end."""
        with self._guard:
            self._guard.wait_for(lambda: self._waiting or self._closing)
            self._sending = None if self._given_up else next(iter(self._waiting), None)
            return self._sending

    def _send(self, label: str) -> None:
        # Only the first checkpoint can exist at the URL; for later ones the listing would be a useless request.
        name = self._find_whole(label) if label == self._resumed else None
        if name is None:
            name = artifacts.upload(self.url, self._outbox / label, label, self._waiting[label])
        # Read before it is dropped; `add` may change the queue meanwhile.
        about = self._waiting[label]
        with self._guard:
            self._drop(label)
        # The model is the end of the run; nothing is pruned after it.
        if label.startswith("model"):
            self._note(model=name, upload_error=None)
            return
        self._note(step=checkpoint.step(label), upload_error=None)
        self._sent.append(name)
        # The new checkpoint is complete before others are removed, so the URL always has at least one.
        self._prune(about["best"])

    def _find_whole(self, label: str) -> str | None:
        return next(
            (name for name in artifacts.find_artifacts(self.url, label) if artifacts.is_whole(self.url, name)), None
        )

    def _prune(self, best: int | None) -> None:
        """Remove the checkpoints at the URL that are older than the newest and not needed, complete or not."""
        # Only older checkpoints: the listing may show newer ones of another attempt of the run.
        newest, kept = checkpoint.step(self._sent[-1]), self._sent[-self.keep :]
        try:
            for name in artifacts.find_artifacts(self.url, STEPS):
                if checkpoint.step(name) < newest and checkpoint.step(name) != best and name not in kept:
                    files.remove_tree(f"{self.url}/{name}")
        except Exception as error:  # noqa: BLE001 - as above; it costs space but no result
            if self.stored.removal_error is None:
                logger.warning("%s: old checkpoints cannot be removed: %s", self.url, error)
            self._note(removal_error=str(error) or type(error).__name__)

    def _note(self, **changed: Any) -> None:
        self.stored = replace(self.stored, **changed)
        atomic.write_json(_record(self.run), asdict(self.stored))


def _record(run: Run) -> Path:
    return run.directory / "upload.json"
