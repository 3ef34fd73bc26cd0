"""Copy a model out of MLflow: `models:/NAME@ALIAS`, `models:/NAME/VERSION` or `models:/ID`."""

import errno
import hashlib
import logging
import os
import resource
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from crmuons.models.saved_model import SETTINGS_FILE
from crmuons.progress import spoken_wait
from crmuons.runs.location import caches
from crmuons.storage.reach import unreachable_reason
from crmuons.tracking.uri import database, resolve_uri

SCHEME = "models:/"
MAX_FILE_BYTES = 2**30  # The largest networks that fit a GPU have 200 MB of weights.
TOO_LARGE = os.strerror(errno.EFBIG)


def is_logged(place: str | Path) -> bool:
    """Return whether a place of a model is in MLflow."""
    return str(place).startswith(SCHEME)


def local_place(place: str) -> str | Path:
    """Return a place that `load_generator` takes: a model in MLflow is copied to this machine, others stay as they are.

    The store is MLFLOW_TRACKING_URI, or the database in the working directory, beside `runs`.

    Raises:
        FileNotFoundError, ValueError: see `local_copy_of`.
    """
    return local_copy_of(place, resolve_uri(Path.cwd())) if is_logged(place) else place


@contextmanager
def _files_of_at_most(num_bytes: int) -> Iterator[None]:
    """Let this process write no larger file for the duration of the block: MLflow writes whatever a server sends."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    least = num_bytes if soft == resource.RLIM_INFINITY else min(soft, num_bytes)
    resource.setrlimit(resource.RLIMIT_FSIZE, (least, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def local_copy_of(place: str, tracking_uri: str) -> Path:
    """Copy a logged model of crmuons to this machine, and return its model directory.

    Args:
        place: its URI in MLflow.
        tracking_uri: the server or store, from `resolve_uri`.

    Raises:
        FileNotFoundError: if there is no such store or model, or it holds none of crmuons.
        ValueError, ConnectionError: if the store cannot be read, or sends a file that is too large for a model.
    """
    if tracking_uri.startswith("sqlite:") and not database(tracking_uri).is_file():
        msg = f"{place} is looked up in MLflow, and there is no {tracking_uri}; set MLFLOW_TRACKING_URI to the server or store"
        raise FileNotFoundError(msg)
    if (reason := unreachable_reason(tracking_uri)) is not None:
        msg = f"{place} cannot be read from {tracking_uri}: {reason}; check MLFLOW_TRACKING_URI, and that the server is up"
        raise ConnectionError(msg)
    import mlflow  # noqa: PLC0415  # 1.6 CPU-seconds.
    from mlflow.exceptions import MlflowException  # noqa: PLC0415

    copy = caches() / "models" / hashlib.sha256(f"{tracking_uri} {place}".encode()).hexdigest()[:16]
    shutil.rmtree(copy, ignore_errors=True)  # A name in the registry may mean another version than last time.
    copy.parent.mkdir(parents=True, exist_ok=True)
    mlflow.set_tracking_uri(tracking_uri)
    logging.getLogger("alembic").setLevel(logging.WARNING)
    try:
        waiting = spoken_wait(lambda: f"{place} from {tracking_uri}, until it is here or the server gives no answer")
        with _files_of_at_most(MAX_FILE_BYTES), waiting:
            mlflow.artifacts.download_artifacts(artifact_uri=place, dst_path=str(copy), tracking_uri=tracking_uri)
    except (MlflowException, OSError) as error:
        if TOO_LARGE in str(error):
            shutil.rmtree(copy, ignore_errors=True)
            msg = f"{place} in {tracking_uri} is no model of crmuons: it has a file of more than {MAX_FILE_BYTES >> 20} MiB"
            raise ValueError(msg) from error
        if isinstance(error, OSError):
            raise
        msg = f"{place} cannot be read from {tracking_uri}: {str(error).splitlines()[0]}"
        raise (FileNotFoundError if "not found" in str(error) else ValueError)(msg) from error
    found = sorted(copy.glob(f"data/*/{SETTINGS_FILE}"))
    if not found:
        msg = f"{place} in {tracking_uri} is no model of crmuons: it holds no {SETTINGS_FILE}"
        raise FileNotFoundError(msg)
    return found[0].parent
