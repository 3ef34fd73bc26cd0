"""Send files of a journal to the artifact store of a tracking server: only the run's own files, and only to safe places."""

import logging
import os
import stat
import uuid
from contextlib import suppress
from pathlib import Path
from urllib.parse import unquote, urlsplit

import mlflow
from mlflow.entities import LoggedModelOutput, Run
from mlflow.models import Model
from mlflow.utils.credentials import get_default_host_creds
from mlflow.utils.rest_utils import http_request

from crmuons.storage.inside import OutsideError, inside, relative_name
from crmuons.storage.redact import without_credentials
from crmuons.tracking.journal import Entry, Journal
from crmuons.tracking.uri import database, is_server

logger = logging.getLogger(__name__)

_MODEL_FILE_TAG = "crmuons.journal.file"
_REMEDY = "start it with --artifacts-destination instead of --default-artifact-root, and use a new tracking.experiment"


class UnusableFileError(ValueError):
    """Raised if the file that an entry names is gone, or is not the run's own."""


class ArtifactStoreError(OSError):
    """Raised if artifacts of a run must not or cannot go where the server keeps them; the message has the remedy."""


def kept_file(journal: Journal, name: str) -> Path:
    """Return the path of a file or directory that a journal names.

    A journal may come from a stranger: everything must be in the journal's own folder, and must be a file, not a link.

    Raises:
        UnusableFileError: if it is not in the folder, is no file, or is gone.
    """
    try:
        relative_name(name, "the journal")
        path = inside(
            journal.directory, f"{journal.files.relative_to(journal.directory).as_posix()}/{name}", "the journal"
        )
    except OutsideError as error:
        msg = f"{name} is not a file of {journal.directory}: a journal may name only files of its own run ({error})"
        raise UnusableFileError(msg) from error
    if not os.path.lexists(path):
        msg = f"{path} is gone: it was removed from the journal before it was sent"
        raise UnusableFileError(msg)
    # lstat does not follow links: a link in a stranger's journal could name any file of this user.
    for each in (path, *path.rglob("*")):
        kind = each.lstat().st_mode
        if not (stat.S_ISREG(kind) or stat.S_ISDIR(kind)):
            msg = f"{each} is not sent: it is not a file of the run but a link, a pipe or a device"
            raise UnusableFileError(msg)
    return path


def check_root(run: Run, tracking_uri: str, *, named: bool) -> None:
    """Check that artifacts of a run go to the server, or to a store that the server shares with this machine.

    A server determines where a client puts artifacts: `mlflow-artifacts:` means the server itself, a bucket's URL means
    the bucket. A plain path is a path of the client's own file system; the server must use the same file system.

    Args:
        run: the run, as the server returned it.
        tracking_uri: the server, without credentials.
        named: whether the user named this server. A server that only a run's directory names may be a stranger's, and
            must not choose a path or an account of the user.

    Raises:
        ArtifactStoreError: if artifacts would go elsewhere, or the path cannot be written.
    """
    root = run.info.artifact_uri
    parts = urlsplit(root)
    # With a SQLite store, this process itself writes the artifacts.
    if not is_server(tracking_uri):
        if not named and not Path(unquote(parts.path)).resolve().is_relative_to(
            database(tracking_uri).parent.resolve()
        ):
            msg = f"the store keeps artifacts at {root}, not next to it; if that is right, set MLFLOW_TRACKING_URI={tracking_uri}"
            raise ArtifactStoreError(msg)
        return
    if parts.scheme in ("mlflow-artifacts", "http", "https"):
        if parts.netloc not in ("", urlsplit(tracking_uri).netloc):
            # MLflow would send this user's password there.
            msg = f"the server keeps artifacts at another server, {without_credentials(root)}; use another tracking.experiment"
            raise ArtifactStoreError(msg)
    # A bucket or a path of a stranger's choice would be written with this user's rights.
    elif not named:
        msg = (
            f"only the run's directory names {tracking_uri}, which keeps artifacts at {without_credentials(root)}; "
            f"if you trust it, use `crmuons sync --to {tracking_uri}`"
        )
        raise ArtifactStoreError(msg)
    elif parts.scheme in ("", "file"):
        _check_shared_path(run, tracking_uri, Path(unquote(parts.path)))


def _check_shared_path(run: Run, tracking_uri: str, root: Path) -> None:
    """Write a probe below a path, and ask the server whether it sees the probe."""
    # A unique name: if the server sees it, it sees this directory and not another directory of the same path.
    probe, seen = root / f".probe-{uuid.uuid4().hex}", False
    made: list[Path] = []
    try:
        made = [folder for folder in (root, *root.parents) if not folder.exists()]
        root.mkdir(parents=True, exist_ok=True)
        probe.touch()
        seen = probe.name in _listed(tracking_uri, run.info.run_id)
        probe.unlink()
        reason = (
            "which is another directory on this machine: artifacts would stay here, where the server does not see them"
        )
    except PermissionError as error:
        reason = f"but {error.filename} cannot be written by this user here"
    except OSError as error:
        reason = f"but {error.filename} cannot be written here ({error.strerror})"
    if seen:
        return
    with suppress(OSError):  # Another run may use a folder by now.
        for folder in made:  # Leave nothing behind on the wrong machine.
            folder.rmdir()
    msg = f"the MLflow server keeps artifacts at its path {run.info.artifact_uri}, {reason}; {_REMEDY}"
    raise ArtifactStoreError(msg)


def _listed(tracking_uri: str, run_id: str) -> set[str]:
    """Return the paths that the server itself, not this client, sees in the artifact root of a run."""
    credentials = get_default_host_creds(tracking_uri)  # type: ignore[no-untyped-call]
    place = "/api/2.0/mlflow/artifacts/list"
    answer = http_request(credentials, place, "GET", params={"run_id": run_id})  # type: ignore[no-untyped-call]
    # By HTTP, because MLflow's client would look at this machine's path.
    return {file["path"] for file in answer.json().get("files", ())} if answer.ok else set()


def log_files(client: mlflow.MlflowClient, run_id: str, path: Path, entry: Entry) -> None:
    """Send the file or directory of an entry of kind artifact or figure."""
    if path.is_dir() and entry["kind"] == "figure":
        client.log_artifacts(run_id, str(path), entry["folder"])
    else:
        client.log_artifact(run_id, str(path), entry["folder"] or None)


def log_model(client: mlflow.MlflowClient, run_id: str, experiment_id: str, path: Path, name: str) -> None:
    """Send a model directory, once: a model that was begun by an earlier request is completed.

    Args:
        client: client of the server.
        run_id: the run that trained the model.
        experiment_id: the experiment of the run.
        path: the model, as `mlflow.pyfunc.save_model` wrote it.
        name: identifies the model within its run.
    """
    known = f"tags.`{_MODEL_FILE_TAG}` = '{name}' AND source_run_id = '{run_id}'"
    # Search by the tag, because an answer may have been lost after the server had created the model.
    models = client.search_logged_models([experiment_id], known)
    tags = {_MODEL_FILE_TAG: name}
    model = models[0] if models else client.create_logged_model(experiment_id, "model", run_id, tags=tags)
    # MLflow's own `log_model` writes these two into the directory. Here the directory was written before the run had an ID.
    description = Model.load(str(path))
    description.run_id, description.model_id = run_id, model.model_id
    description.save(str(path / "MLmodel"))
    client.log_model_artifacts(model.model_id, str(path))
    client.finalize_logged_model(model.model_id, "READY")
    outputs = client.get_run(run_id).outputs
    if outputs is None or model.model_id not in {output.model_id for output in outputs.model_outputs}:
        client.log_outputs(run_id, [LoggedModelOutput(model.model_id, step=0)])  # A second call is a database error.


def first_cause(error: BaseException) -> str:
    """Return the first cause of an error in one line, for example "connection refused" or "database is locked"."""
    if isinstance(error, ArtifactStoreError | UnusableFileError):
        return str(error)
    # MLflow's message only says that a request failed; the reason is at the end of the chain of errors.
    while (earlier := error.__cause__ or error.__context__) is not None:
        error = earlier
    first_line = (str(error).splitlines() or [""])[0]
    return without_credentials(f"{type(error).__name__}: {first_line}")[:300]
