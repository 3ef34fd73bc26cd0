"""The journal of a tracked run: every entry is on disk before it is sent to a tracking server.

`tracking/` in the run's directory holds `journal.jsonl` (one entry a line, append-only), `files/` (the figures,
artifacts and models of the entries) and `sent.json` (how much of the journal a server has).
"""

import json
import logging
import os
import shutil
import threading
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from crmuons.storage.atomic import atomic_file
from crmuons.storage.records import damage_named
from crmuons.storage.redact import without_credentials
from crmuons.storage.staging.locks import FileLock, NoLocksError

logger = logging.getLogger(__name__)

FOLDER = "tracking"
Entry = dict[str, Any]


def check_journal(directory: Path) -> None:
    """Raise a FileNotFoundError unless a directory belongs to a tracked run."""
    if not Journal.exists(directory):
        msg = f"no journal of a tracked run in {directory}; give the directory of a run"
        raise FileNotFoundError(msg)


def num_unsent(directory: Path) -> int:
    """Return the number of journal entries that are on no server, including refused ones; 0 without a journal."""
    if not Journal.exists(directory):
        return 0
    journal = Journal(directory)
    sent = journal.last_sent()
    journal.close()
    return journal.num_entries - (0 if sent is None else sent.num_sent)


@dataclass
class DeliveryState:
    """How much of the journal one server has.

    Attributes:
        uri: the server, without credentials.
        run_id: the MLflow run; None until the server has created it.
        experiment_id: the experiment of the run.
        offset: byte of the journal up to which all entries are sent, except those of `waiting`.
        entries: number of entries before `offset`.
        refused: number of these entries that the server refused.
        waiting: the first bytes of the entries before `offset` whose files the server does not have yet.
    """

    uri: str
    run_id: str | None = None
    experiment_id: str | None = None
    offset: int = 0
    entries: int = 0
    refused: int = 0
    waiting: list[int] = field(default_factory=list)

    @property
    def num_sent(self) -> int:
        """Number of entries that the server has."""
        return self.entries - len(self.waiting) - self.refused


class Journal:
    """An append-only file of entries. Several threads of one process may append.

    Attributes:
        num_entries: number of entries, including those of earlier processes.
        last_steps: the highest step of each metric and figure.
        params: the first value of each parameter.
        tags: the last value of each tag.
        status: the last status of the run; "" before the first.
        uri: the server for which the run was last opened.
        identity: identifies this journal on servers, so that its run is created only once.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.files = directory / FOLDER / "files"
        self.files.mkdir(parents=True, exist_ok=True)
        self._path = directory / FOLDER / "journal.jsonl"
        # Training, system metrics and validation append from different threads.
        self._guard = threading.Lock()
        self._lock = FileLock(self._path.with_name("lock"))
        self.num_entries = 0
        self.last_steps: dict[str, int] = {}
        self.params: dict[str, str] = {}
        self.tags: dict[str, str] = {}
        self.status, self.uri = "", ""
        self.identity = uuid.uuid4().hex
        # Unbuffered: the kernel has an entry when `append` returns, so a kill loses no entry.
        self._file = self._path.open("ab", buffering=0)
        self._end_torn_line()
        for _, entry in self.entries():
            self._remember(entry)

    @classmethod
    def exists(cls, directory: Path) -> bool:
        """Return whether the directory has a journal."""
        return (directory / FOLDER / "journal.jsonl").is_file()

    def append(self, kind: str, **content: Any) -> None:
        """Write one entry, without the credentials of URLs. It survives a kill, and after `flush` a power cut.

        Raises:
            OSError: if it cannot be written, for example on a full disk.
        """
        with self._guard:
            self._write({"kind": kind, "time_ms": time.time_ns() // 1_000_000, **content})

    def append_metrics(self, values: Mapping[str, float], step: int) -> None:
        """Write metrics of a step, except those already written for this step or a later one."""
        with self._guard:
            if new := {key: value for key, value in values.items() if self.is_new(key, step)}:
                self._write({"kind": "metrics", "time_ms": time.time_ns() // 1_000_000, "step": step, "values": new})

    def is_new(self, key: str, step: int) -> bool:
        """Return whether the key has no entry for this step or a later one."""
        # A run that went back to a checkpoint repeats steps; in MLflow the first value of a step stays.
        return step > self.last_steps.get(key, step - 1)

    def entries(self, offset: int = 0) -> Iterator[tuple[int, Entry]]:
        """Yield the entries from a byte on, each with the byte after it. An unfinished last line is not yielded."""
        with self._path.open("rb") as file:
            file.seek(offset)
            for line in file:
                # Another process may be writing this line.
                if not line.endswith(b"\n"):
                    return
                offset += len(line)
                try:
                    entry = json.loads(line)
                except ValueError:  # A killed process left this line unfinished; `_end_torn_line` has warned.
                    continue
                if isinstance(entry, dict) and isinstance(entry.get("kind"), str):
                    yield offset, entry

    def entry_at(self, offset: int) -> Entry:
        """Return the first entry from a byte on."""
        # Read again from the disk: entries that wait for days must not fill the memory of the training.
        return next(entry for _, entry in self.entries(offset))

    def keep_file(self, path: Path) -> str:
        """Copy a file or a directory into the journal; return its path relative to `files`."""
        # A copy: the run may overwrite or remove the file before it is sent.
        kept = self.new_folder() / path.name
        if path.is_dir():
            shutil.copytree(path, kept)
        else:
            shutil.copyfile(path, kept)
        return kept.relative_to(self.files).as_posix()

    def new_folder(self) -> Path:
        """Return a new, empty folder in `files` for the files of an entry."""
        # The number is for people; the letters make the names of two processes differ. mkdtemp would close the folder to the
        # group.
        folder = self.files / f"{self.num_entries:06d}-{uuid.uuid4().hex[:8]}"
        folder.mkdir()
        return folder

    def load_sent(self, uri: str) -> DeliveryState:
        """Return how much of the journal a server has; an empty state for a new server."""
        record = self.last_sent()
        # Another server has no entries, so the whole journal is sent there.
        clean = without_credentials(uri)
        return record if record is not None and record.uri == clean else DeliveryState(uri=clean)

    def last_sent(self) -> DeliveryState | None:
        """Return how much of the journal the last used server has; None before the first sending."""
        path = self._path.with_name("sent.json")
        if not path.is_file():
            return None
        with damage_named(path, "remove it: everything is then sent again, which changes nothing at the server"):
            state = DeliveryState(**json.loads(path.read_bytes()))
            if not isinstance(state.uri, str) or not isinstance(state.entries, int):
                msg = f"its uri is {state.uri!r} and its entries are {state.entries!r}"
                raise ValueError(msg)  # noqa: TRY004 - a fault of the file, not of the program
        return state

    def save_sent(self, sent: DeliveryState) -> None:
        """Store how much of the journal the server has."""
        # fsync, because after a power cut an older record would send entries a second time.
        with atomic_file(self._path.with_name("sent.json"), fsync=True) as partial:
            partial.write_text(json.dumps(asdict(sent)), encoding="utf-8")

    def lock(self) -> None:
        """Make this process the only one that sends the journal.

        Raises:
            BlockingIOError: if another process sends it.
        """
        # On a file system without locks, only the owner of the run sends (storage/ownership.py). Two threads of the owner
        # send; the guard and `is_open` keep one from failing at the lock of the other.
        with self._guard, suppress(NoLocksError):
            if not self._lock.is_open and not self._lock.acquire(shared=False, patient=lambda: False):
                msg = f"{self.directory} is tracked by a process that is alive; it sends the entries itself"
                raise BlockingIOError(msg)

    def unlock(self) -> None:
        """Allow other processes to send the journal."""
        self._lock.release()

    def flush(self) -> None:
        """Write all entries through to the disk."""
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Flush and close the file."""
        self.flush()
        self._file.close()

    def _write(self, entry: Entry) -> None:
        # Credentials are removed at the only place that writes, so that no kind of entry can forget it.
        line = without_credentials(json.dumps(entry)) + "\n"
        self._file.write(line.encode())
        self._remember(entry)

    def _remember(self, entry: Entry) -> None:
        self.num_entries += 1
        match entry["kind"]:
            case "metrics":
                self.last_steps |= dict.fromkeys(entry["values"], entry["step"])
            case "figure":
                self.last_steps[entry["key"]] = entry["step"]
            case "params":
                # The first value stays, since MLflow refuses to change a parameter.
                self.params = entry["values"] | self.params
            case "tags":
                self.tags |= entry["values"]
            case "open":
                self.identity, self.uri, self.status = entry["identity"], entry["uri"], "RUNNING"
            case "status":
                self.status = entry["status"]

    def _end_torn_line(self) -> None:
        """End the unfinished line of a killed process, so that the next entry starts on a new line."""
        with self._path.open("rb") as file:
            if file.seek(0, os.SEEK_END) == 0:
                return
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":
                logger.warning("%s: the last entry is incomplete because its process died; it is skipped", self._path)
                self._file.write(b"\n")
