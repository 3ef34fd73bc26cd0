"""The journal of a tracked run: all it has to say lies on disk before anything is sent to a tracking server.

`tracking/` below the run's directory holds `journal.jsonl` (one entry a line, only ever appended to), `files/` (figures,
artifacts and models that the entries name) and `sent.json` (how far a server knows the journal).
"""

import fcntl
import json
import logging
import os
import shutil
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

from crmuons.storage.atomic import atomic_file
from crmuons.storage.redact import without_credentials

logger = logging.getLogger(__name__)

FOLDER = "tracking"
Entry = dict[str, Any]


def num_unsent(directory: Path) -> int:
    """How many entries of a run's journal no server has taken, those included that one refused; 0 without a journal."""
    if not Journal.exists(directory):
        return 0
    journal = Journal(directory)
    sent = journal.last_sent()
    journal.close()
    return journal.num_entries - (0 if sent is None else sent.entries - sent.refused)


@dataclass
class DeliveryState:
    """How far one server knows the journal.

    Attributes:
        uri: the server, without credentials.
        run_id: the MLflow run, None until the server made it.
        experiment_id: the experiment of the run.
        offset: byte of the journal up to which all is sent.
        entries: how many entries that is.
        refused: how many of them the server refused for good.
    """

    uri: str
    run_id: str | None = None
    experiment_id: str | None = None
    offset: int = 0
    entries: int = 0
    refused: int = 0


class Journal:
    """An append-only file of entries; threads of one process may append at once.

    Attributes:
        num_entries: entries written, those of earlier processes included.
        last_steps: the highest step of each metric and figure.
        params: the parameters, as first written.
        status: what the last entry about it says of the run; "" before the first.
        uri: the server that the run was last meant for.
        identity: names this journal towards servers, so that a run is not made twice.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.files = directory / FOLDER / "files"
        self.files.mkdir(parents=True, exist_ok=True)
        self._path = directory / FOLDER / "journal.jsonl"
        self._guard = threading.Lock()
        self._lock: IO[bytes] | None = None
        self.num_entries = 0
        self.last_steps: dict[str, int] = {}
        self.params: dict[str, str] = {}
        self.status, self.uri = "", ""
        self.identity = uuid.uuid4().hex
        self._file = self._path.open("ab", buffering=0)
        self._end_torn_line()
        for _, entry in self.entries():
            self._remember(entry)

    @classmethod
    def exists(cls, directory: Path) -> bool:
        """Whether a run was journaled in the directory."""
        return (directory / FOLDER / "journal.jsonl").is_file()

    def append(self, kind: str, **content: Any) -> None:
        """Write one entry, free of credentials in URLs. It outlives the process; the machine, after `flush`.

        Raises:
            OSError: if it cannot be written, on a full disk say: a result would be lost otherwise.
        """
        with self._guard:
            self._write({"kind": kind, "time_ms": time.time_ns() // 1_000_000, **content})

    def append_metrics(self, values: Mapping[str, float], step: int) -> None:
        """Write metrics of a step, without those that were written for this step, or a later one, before."""
        with self._guard:
            if new := {key: value for key, value in values.items() if self.is_new(key, step)}:
                self._write({"kind": "metrics", "time_ms": time.time_ns() // 1_000_000, "step": step, "values": new})

    def is_new(self, key: str, step: int) -> bool:
        """Whether nothing was written under the key for this step or a later one."""
        return step > self.last_steps.get(key, step - 1)

    def entries(self, offset: int = 0) -> Iterator[tuple[int, Entry]]:
        """The entries from a byte on, each with the byte after it; a line still being written is left for later."""
        with self._path.open("rb") as file:
            file.seek(offset)
            for line in file:
                if not line.endswith(b"\n"):
                    return
                offset += len(line)
                try:
                    entry = json.loads(line)
                except ValueError:  # The line that a killed process left unfinished; said when it was found.
                    continue
                yield offset, entry

    def keep_file(self, path: Path) -> str:
        """Copy a file or a directory into the journal; returns its name below `files`."""
        kept = self.new_folder() / path.name
        if path.is_dir():
            shutil.copytree(path, kept)
        else:
            shutil.copy2(path, kept)
        return kept.relative_to(self.files).as_posix()

    def new_folder(self) -> Path:
        """An empty folder below `files`, for files that an entry will name."""
        return Path(tempfile.mkdtemp(prefix=f"{self.num_entries:06d}-", dir=self.files))

    def load_sent(self, uri: str) -> DeliveryState:
        """How far a server knows the journal; a server never met before knows nothing, and gets all of it."""
        record = self.last_sent()
        clean = without_credentials(uri)
        return record if record is not None and record.uri == clean else DeliveryState(uri=clean)

    def last_sent(self) -> DeliveryState | None:
        """How far the server that was last sent to knows the journal."""
        path = self._path.with_name("sent.json")
        return DeliveryState(**json.loads(path.read_text())) if path.is_file() else None

    def save_sent(self, sent: DeliveryState) -> None:
        """Keep how far the server knows the journal."""
        with atomic_file(self._path.with_name("sent.json"), fsync=True) as partial:
            partial.write_text(json.dumps(asdict(sent)))

    def lock(self) -> None:
        """Become the one process that sends this journal.

        Raises:
            BlockingIOError: if another process is that.
        """
        if self._lock is not None:
            return
        lock = self._path.with_name("lock").open("wb")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            lock.close()
            msg = f"{self.directory} is being tracked by a process that is alive, which sends what there is by itself"
            raise BlockingIOError(msg) from error
        self._lock = lock

    def unlock(self) -> None:
        """Let other processes send this journal."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def flush(self) -> None:
        """Have the disk keep what was written."""
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Write no more."""
        self.flush()
        self._file.close()

    def _write(self, entry: Entry) -> None:
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
                self.params = entry["values"] | self.params
            case "open":
                self.identity, self.uri, self.status = entry["identity"], entry["uri"], "RUNNING"
            case "status":
                self.status = entry["status"]

    def _end_torn_line(self) -> None:
        """Close the line that a killed process left unfinished, lest the next entry be lost with it."""
        with self._path.open("rb") as file:
            if file.seek(0, os.SEEK_END) == 0:
                return
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":
                logger.warning("%s: the last entry was cut short when its process died; it is left out", self._path)
                self._file.write(b"\n")
