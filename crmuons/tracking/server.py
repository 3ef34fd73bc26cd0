"""Send journal entries to a tracking server, in requests that can be repeated without harm."""

import logging
import re
import threading
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import mlflow
from mlflow.entities import LoggedModelOutput, Metric, Param, RunTag
from mlflow.exceptions import MlflowException
from mlflow.models import Model

from crmuons.storage import ownership
from crmuons.storage.redact import without_credentials
from crmuons.tracking import registry
from crmuons.tracking.journal import DeliveryState, Entry, Journal
from crmuons.tracking.uri import database

with warnings.catch_warnings():
    # MLflow warns about a type hint of its own in every process that saves or loads a model.
    warnings.filterwarnings("ignore", message=".*Any type hint is inferred as AnyType", category=UserWarning)
    import mlflow.pyfunc

logger = logging.getLogger(__name__)

TABLES_PATIENCE_S = 120.0  # MLflow makes its tables in seconds.
MAX_METRICS, MAX_PARAMS = 1000, 100  # MLflow's limits for one request

_IDENTITY_TAG = "crmuons.journal"
_MODEL_FILE_TAG = "crmuons.journal.file"


class Server:
    """Delivers entries to the run of a journal on a tracking server, and records what was delivered.

    Attributes:
        sent: how much of the journal the server has.
        known: set once the server has created the run.
    """

    def __init__(self, journal: Journal, uri: str) -> None:
        self._journal = journal
        self._uri = uri
        self._client: mlflow.MlflowClient | None = None
        self.sent = journal.load_sent(uri)
        self.known = threading.Event()
        if self.sent.run_id is not None:
            self.known.set()

    @property
    def run_id(self) -> str:
        """ID of the MLflow run. The first entry of a journal creates the run."""
        assert self.sent.run_id is not None, "the first entry of a journal opens the run"
        return self.sent.run_id

    def send_all(self) -> Iterator[int]:
        """Send all entries that the server does not have; yield the number of entries of each request."""
        self._connect()
        for batch in _batches(self._journal.entries(self.sent.offset)):
            self._send(batch)
            yield len(batch)

    def _send(self, batch: Sequence[tuple[int, Entry]]) -> None:
        try:
            self._deliver([entry for _, entry in batch])
        except (MlflowException, FileNotFoundError) as error:
            if not self._is_refusal(error):
                raise
            if len(batch) > 1:  # Send one by one, so that one bad entry does not block the good ones.
                for one in batch:
                    self._send([one])
                return
            self._warn_refused(batch[0][1], error)
            self.sent.refused += 1
        self.sent.offset = batch[-1][0]
        self.sent.entries += len(batch)
        self._journal.save_sent(self.sent)

    def _warn_refused(self, entry: Entry, error: Exception) -> None:
        logger.warning("MLflow refused an entry (%s) for good: %s", entry["kind"], describe(error))

    def _deliver(self, entries: Sequence[Entry]) -> None:
        """Send entries of one kind. Requests may be repeated without harm, because an answer can get lost."""
        entry = entries[0]
        client = self._connected
        if entry["kind"] == "open":
            self._open_run(client, entry)
            return
        run_id = self.run_id
        match entry["kind"]:
            case "metrics":
                client.log_batch(run_id, metrics=[metric for one in entries for metric in _metrics(one)])
            case "params":
                for part in _parts(entry["values"]):
                    client.log_batch(run_id, params=[Param(*pair) for pair in part])
            case "tags":
                for part in _parts(entry["values"]):
                    client.log_batch(run_id, tags=[RunTag(*pair) for pair in part])
            case "artifact":
                self._log_files(client, run_id, entry)
            case "figure":
                self._log_files(client, run_id, entry)
                client.set_tag(run_id, "mlflow.loggedImages", "True")  # Makes the UI show its image grid.
            case "model":
                self._log_model(client, run_id, entry)
            case "registration":
                registry.register(client, _run_of(client, entry["of"]), entry)
            case "status":
                client.set_terminated(run_id, entry["status"], entry["time_ms"])

    def _connect(self) -> None:
        if self._client is not None:
            return
        if self._uri.startswith("sqlite:"):
            _make_database(database(self._uri))
        client = mlflow.MlflowClient(self._uri)
        if self.sent.run_id is not None and not _has_run(client, self.sent.run_id):
            logger.warning("MLflow at %s has lost run %s: all entries are sent again", self.sent.uri, self.sent.run_id)
            self.sent = DeliveryState(uri=self.sent.uri)
        self._client = client

    @property
    def _connected(self) -> mlflow.MlflowClient:
        assert self._client is not None, "send_all connects"
        return self._client

    def _is_refusal(self, error: Exception) -> bool:
        """Return whether sending again cannot help: MLflow calls the entry invalid, or its file is gone."""
        if isinstance(error, FileNotFoundError):
            return True
        if getattr(error, "error_code", "") != "INVALID_PARAMETER_VALUE" or self.sent.run_id is None:
            return False
        # A run that was deleted in the UI refuses all entries, but it may be restored.
        return bool(self._connected.get_run(self.sent.run_id).info.lifecycle_stage == "active")

    def _open_run(self, client: mlflow.MlflowClient, entry: Entry) -> None:
        if self.sent.run_id is not None:
            client.update_run(self.sent.run_id, status="RUNNING")
            return
        experiment = self._experiment(client, entry["experiment"])
        # An earlier request may have created the run although its answer was lost.
        runs = _search(client, [experiment], entry["identity"])
        tags = {_IDENTITY_TAG: entry["identity"]}
        if entry.get("parent"):
            tags["mlflow.parentRunId"] = _run_of(client, entry["parent"]).info.run_id
        run = runs[0] if runs else client.create_run(experiment, entry["time_ms"], tags, entry["run_name"])
        self.sent.run_id, self.sent.experiment_id = run.info.run_id, experiment
        self.known.set()

    def _experiment(self, client: mlflow.MlflowClient, name: str) -> str:
        experiment = client.get_experiment_by_name(name)
        if experiment is not None:
            return str(experiment.experiment_id)
        location = None
        if self._uri.startswith("sqlite:"):
            # MLflow's default is in the working directory, which differs between workers.
            folder = database(self._uri).parent / "mlruns" / re.sub(r"[^\w.-]", "_", name)
            location = folder.as_uri()
        return str(client.create_experiment(name, artifact_location=location))

    def _log_files(self, client: mlflow.MlflowClient, run_id: str, entry: Entry) -> None:
        path = self._journal.files / entry["file"]
        if path.is_dir() and entry["kind"] == "figure":
            client.log_artifacts(run_id, str(path), entry["folder"])
        elif path.exists():
            client.log_artifact(run_id, str(path), entry["folder"] or None)
        else:
            msg = f"{path} is gone: it was removed from the journal before it was sent"
            raise FileNotFoundError(msg)

    def _log_model(self, client: mlflow.MlflowClient, run_id: str, entry: Entry) -> None:
        assert self.sent.experiment_id is not None, "set together with run_id"
        path = self._journal.files / entry["file"]
        known = f"tags.`{_MODEL_FILE_TAG}` = '{entry['file']}' AND source_run_id = '{run_id}'"
        models = client.search_logged_models([self.sent.experiment_id], known)
        tags = {_MODEL_FILE_TAG: entry["file"]}
        model = models[0] if models else client.create_logged_model(self.sent.experiment_id, "model", run_id, tags=tags)
        description = Model.load(str(path))
        description.run_id, description.model_id = run_id, model.model_id
        description.save(str(path / "MLmodel"))
        client.log_model_artifacts(model.model_id, str(path))
        client.finalize_logged_model(model.model_id, "READY")
        outputs = client.get_run(run_id).outputs
        if outputs is None or model.model_id not in {output.model_id for output in outputs.model_outputs}:
            client.log_outputs(run_id, [LoggedModelOutput(model.model_id, step=0)])  # Twice is a database error.


def _run_of(client: mlflow.MlflowClient, identity: str) -> mlflow.entities.Run:
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
    path.parent.mkdir(parents=True, exist_ok=True)
    folder = path.with_name(f".{path.name}.new")
    with ownership.hold(folder, patience_s=TABLES_PATIENCE_S):
        if path.exists():
            return
        (folder / path.name).unlink(missing_ok=True)  # Of a killed process.
        mlflow.MlflowClient(f"sqlite:///{folder / path.name}")
        (folder / path.name).replace(path)


def _batches(entries: Iterator[tuple[int, Entry]]) -> Iterator[list[tuple[int, Entry]]]:
    """Yield batches of entries for one request: consecutive metrics together, any other entry alone."""
    batch: list[tuple[int, Entry]] = []
    size = 0
    for offset, entry in entries:
        if entry["kind"] != "metrics":
            if batch:
                yield batch
            yield [(offset, entry)]
            batch, size = [], 0
            continue
        if batch and size + len(entry["values"]) > MAX_METRICS:
            yield batch
            batch, size = [], 0
        batch.append((offset, entry))
        size += len(entry["values"])
    if batch:
        yield batch


def _metrics(entry: Entry) -> list[Metric]:
    return [Metric(key, value, entry["time_ms"], entry["step"]) for key, value in entry["values"].items()]


def _parts(values: Mapping[str, str]) -> Iterator[list[tuple[str, str]]]:
    pairs = list(values.items())
    for start in range(0, len(pairs), MAX_PARAMS):
        yield pairs[start : start + MAX_PARAMS]


def _has_run(client: mlflow.MlflowClient, run_id: str) -> bool:
    try:
        client.get_run(run_id)
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return False
        raise
    return True


def connection_error(uri: str) -> str | None:
    """Return why a server does not answer this process, in one line; None if it answers."""
    try:
        mlflow.MlflowClient(uri).search_experiments(max_results=1)
    except MlflowException as error:
        return describe(error)
    return None


def describe(error: BaseException) -> str:
    """Return the first cause of an error in one line, for example "connection refused" or "database is locked"."""
    while (earlier := error.__cause__ or error.__context__) is not None:
        error = earlier
    first_line = (str(error).splitlines() or [""])[0]
    return without_credentials(f"{type(error).__name__}: {first_line}")[:300]
