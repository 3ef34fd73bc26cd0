"""Send journal entries to a tracking server, in requests that can be repeated without harm."""

import logging
import os
import re
import threading
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import mlflow
from mlflow.entities import Param, RunTag
from mlflow.exceptions import MlflowException
from sqlalchemy import create_engine

from crmuons.progress import spoken_wait
from crmuons.storage import atomic, ownership
from crmuons.storage.reach import unreachable_reason
from crmuons.tracking.artifacts import first_cause
from crmuons.tracking.batches import batches, metrics_of, parts
from crmuons.tracking.charts import keep_view
from crmuons.tracking.health import check_store
from crmuons.tracking.journal import DeliveryState, Entry, Journal
from crmuons.tracking.uri import database, is_database, is_sqlite

logger = logging.getLogger(__name__)

TABLES_PATIENCE_S = 120.0  # MLflow makes its tables in seconds.
WITH_FILES = ("artifact", "figure", "model", "registration")  # A registration waits for the model of its run.

# This tag finds a run again if the answer to its creation was lost.
_IDENTITY_TAG = "crmuons.journal"


class Server:
    """Delivers entries to the run of a journal on a tracking server, and records what was delivered.

    Entries with files are left to `FileDelivery`, in another thread.

    Args:
        journal: the run's journal.
        uri: the server, without credentials.

    Attributes:
        uri: the server.
        sent: how much of the journal the server has.
        guard: a lock that must be held while `sent` is changed.
        known: set once the server has created the run.
    """

    def __init__(self, journal: Journal, uri: str) -> None:
        self._journal = journal
        self.uri = uri
        self._client: mlflow.MlflowClient | None = None
        self.guard = threading.RLock()
        # The record is for one server: for another URI nothing is sent yet.
        self.sent = journal.load_sent(uri)
        self.known = threading.Event()
        if self.sent.run_id is not None:
            self.known.set()

    @property
    def run_id(self) -> str:
        """ID of the MLflow run. The first entry of a journal creates the run."""
        assert self.sent.run_id is not None, "the first entry of a journal opens the run"
        return self.sent.run_id

    @property
    def pending(self) -> int:
        """Number of entries that are not sent yet."""
        return self._journal.num_entries - self.sent.entries + len(self.sent.waiting)

    def send_entries(self) -> Iterator[int]:
        """Send the entries that the server does not have; yield the number of entries of each request.

        Entries with files join those that wait for `FileDelivery`.
        """
        self.connect()
        # Begin at the byte where the last process stopped, so that a journal of weeks is not read again.
        begin = self.sent.offset
        for batch in batches(self._journal.entries(begin)):
            # An entry with files is not skipped: `offset` moves past it, and `waiting` keeps its first byte.
            if batch[0][1]["kind"] in WITH_FILES:
                self._note_sent(batch, [begin])
            else:
                self._send(batch)
                yield len(batch)
            begin = batch[-1][0]

    def _send(self, batch: Sequence[tuple[int, Entry]]) -> None:
        try:
            self._deliver([entry for _, entry in batch])
        except MlflowException as error:
            # If a server is down or a database is locked, the same request is sent later.
            if not self.is_refusal(error):
                raise
            if len(batch) > 1:  # Send one by one, so that one bad entry does not block the good ones.
                for one in batch:
                    self._send([one])
                return
            self.note_refused(batch[0][1], error)
        self._note_sent(batch, [])

    def _note_sent(self, batch: Sequence[tuple[int, Entry]], waiting: list[int]) -> None:
        with self.guard:
            self.sent.offset = batch[-1][0]
            self.sent.entries += len(batch)
            self.sent.waiting += waiting
            self._journal.save_sent(self.sent)

    def note_refused(self, entry: Entry, error: Exception) -> None:
        """Log and count an entry that the server does not take."""
        logger.warning("MLflow refused an entry (%s) for good: %s", entry["kind"], first_cause(error))
        with self.guard:
            self.sent.refused += 1

    def _deliver(self, entries: Sequence[Entry]) -> None:
        """Send entries of one kind. Requests may be repeated without harm, because an answer can get lost."""
        entry = entries[0]
        client = self.client
        if entry["kind"] == "open":
            self._open_run(client, entry)
            return
        run_id = self.run_id
        match entry["kind"]:
            case "metrics":
                # A metric sent twice is stored once: its key has time, step and value.
                client.log_batch(run_id, metrics=[metric for one in entries for metric in metrics_of(one)])
            case "params":
                for part in parts(entry["values"]):
                    client.log_batch(run_id, params=[Param(*pair) for pair in part])
            case "tags":
                for part in parts(entry["values"]):
                    client.log_batch(run_id, tags=[RunTag(*pair) for pair in part])
            # With the entry's own time, so that the run ends when it ended, not when this is sent.
            case "status":
                client.set_terminated(run_id, entry["status"], entry["time_ms"])

    def connect(self) -> None:
        """Connect to the server, once, and check whether it still has the run."""
        with self.guard:
            if self._client is not None:
                return
            if is_sqlite(self.uri):
                check_store(self.uri)
                _make_database(database(self.uri))
            # A driver would try a database for minutes, and MLflow a server that drops packets for 20 s.
            elif (reason := _no_connection(self.uri)) is not None:
                raise ConnectionError(reason)
            # The client is made at the first use, in the thread that sends, because it may wait for the server.
            client = mlflow.MlflowClient(self.uri)
            if self.sent.run_id is not None and not _has_run(client, self.sent.run_id):
                logger.warning(
                    "MLflow at %s has lost run %s: all entries are sent again", self.sent.uri, self.sent.run_id
                )
                self.sent = DeliveryState(uri=self.sent.uri)
            self._client = client

    @property
    def client(self) -> mlflow.MlflowClient:
        """The client of the server."""
        assert self._client is not None, "connect was called"
        return self._client

    def is_refusal(self, error: Exception) -> bool:
        """Return whether sending again cannot help: MLflow calls the entry invalid."""
        if getattr(error, "error_code", "") != "INVALID_PARAMETER_VALUE" or self.sent.run_id is None:
            return False
        # A run that was deleted in the UI refuses all entries, but it may be restored.
        return bool(self.client.get_run(self.sent.run_id).info.lifecycle_stage == "active")

    def _open_run(self, client: mlflow.MlflowClient, entry: Entry) -> None:
        if self.sent.run_id is not None:
            # The run had ended as failed or killed, and continues now.
            client.update_run(self.sent.run_id, status="RUNNING")
            return
        experiment = self._experiment(client, entry["experiment"])
        # An earlier request may have created the run although its answer was lost.
        runs = _search(client, [experiment], entry["identity"])
        tags = {_IDENTITY_TAG: entry["identity"]}
        if entry.get("parent"):
            tags["mlflow.parentRunId"] = mlflow_run_of(client, entry["parent"]).info.run_id
        # With the time of the entry, so that a run that is sent later shows its real begin.
        run = runs[0] if runs else client.create_run(experiment, entry["time_ms"], tags, entry["run_name"])
        self.sent.run_id, self.sent.experiment_id = run.info.run_id, experiment
        self.known.set()
        try:
            keep_view(client, experiment)
        except MlflowException as error:  # An account may have the right to write runs, but not tags of the experiment.
            logger.info("the experiment has no view of its settings: %s", first_cause(error))

    def _experiment(self, client: mlflow.MlflowClient, name: str) -> str:
        experiment = client.get_experiment_by_name(name)
        if experiment is not None:
            return str(experiment.experiment_id)
        location = None
        if is_sqlite(self.uri):
            # MLflow's default is in the working directory, which differs between workers.
            folder = database(self.uri).parent / "mlruns" / re.sub(r"[^\w.-]", "_", name)
            with suppress(OSError):  # Metrics need no artifact store; sending an artifact there reports the error.
                atomic.make_directory(folder, private=folder)
            location = folder.as_uri()
        return str(client.create_experiment(name, artifact_location=location))


def mlflow_run_of(client: mlflow.MlflowClient, identity: str) -> mlflow.entities.Run:
    """Return the run of another journal.

    Raises:
        MlflowException: if the server does not have it yet; the entry is sent again later.
    """
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    runs = _search(client, experiments, identity)
    if not runs:
        msg = (
            f"the server does not have the run of journal {identity}, "
            "which this entry refers to; send that journal first"
        )
        raise MlflowException(msg)
    return runs[0]


def _search(client: mlflow.MlflowClient, experiments: list[str], identity: str) -> list[mlflow.entities.Run]:
    return list(client.search_runs(experiments, f"tags.`{_IDENTITY_TAG}` = '{identity}'", max_results=1))


def _make_database(path: Path) -> None:
    """Create a SQLite file with MLflow's tables. The file gets its name once it is complete.

    When three processes let MLflow create the tables in place at the same time, the file was unusable afterwards.
    """
    folder = path.with_name(f".{path.name}.new")
    with ownership.hold(folder, patience_s=TABLES_PATIENCE_S):
        if path.exists():
            return
        (folder / path.name).unlink(missing_ok=True)  # A killed process may have left it.
        mlflow.MlflowClient(f"sqlite:///{folder / path.name}")
        made = folder / path.name
        made.chmod(made.stat().st_mode & 0o770)  # Runs are closed to others too (docs/security.md).
        made.replace(path)


def _has_run(client: mlflow.MlflowClient, run_id: str) -> bool:
    try:
        client.get_run(run_id)
    except MlflowException as error:
        # Only this error means that the run is gone; a server that fails gives another error.
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return False
        raise
    return True


def _no_connection(uri: str) -> str | None:
    return connection_error(uri) if is_database(uri) else unreachable_reason(uri)


def connection_error(uri: str) -> str | None:
    """Return why a server does not answer this process, in one line; None if it answers."""
    if (reason := unreachable_reason(uri)) is not None:  # MLflow would wait for 20 s and more.
        return reason
    try:
        with spoken_wait(
            lambda: f"the tracking server {uri}, for at most {os.environ['MLFLOW_HTTP_REQUEST_TIMEOUT']} s"
        ):
            if is_database(uri):
                # MLflow is not used, because it would make tables, and try ten times with pauses of up to 51 s.
                create_engine(uri).connect().close()
            else:
                mlflow.MlflowClient(uri).search_experiments(max_results=1)
    except Exception as error:  # noqa: BLE001 - databases, certificates and plug-ins have their own errors.
        return first_cause(error)
    return None
