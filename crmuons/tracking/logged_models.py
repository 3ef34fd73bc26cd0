"""Copy a model out of MLflow: `models:/NAME@ALIAS`, `models:/NAME/VERSION` or `models:/ID`."""

import errno
import hashlib
import logging
import os
import resource
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from crmuons.models.saved_model import SETTINGS_FILE
from crmuons.progress import spoken_wait
from crmuons.runs.location import caches
from crmuons.storage.bounds import check_copy, check_number
from crmuons.storage.inside import relative_name
from crmuons.storage.reach import unreachable_reason
from crmuons.tracking.uri import database, is_sqlite, resolve_uri

SCHEME = "models:/"
MAX_FILES = 1000  # A logged model has ten.
MAX_FILE_BYTES = 2**30  # The largest networks that fit a GPU have 200 MB of weights.
TOO_LARGE = os.strerror(errno.EFBIG)


def is_logged(place: str | Path) -> bool:
    """Return whether a place of a model is in MLflow."""
    return str(place).startswith(SCHEME)


def local_place(place: str) -> str | Path:
    """Return a place that `load_generator` accepts. A model in MLflow is copied to this machine; other places are unchanged.

    The store is MLFLOW_TRACKING_URI, or the database in the working directory, next to `runs`.

    Raises:
        FileNotFoundError, ValueError: see `local_copy_of`.
    """
    return local_copy_of(place, resolve_uri(Path.cwd())) if is_logged(place) else place


@contextmanager
def _store_of_mlflow(tracking_uri: str) -> Iterator[None]:
    """Let MLflow use a store in the block, and the store of the user's program afterwards."""
    import mlflow  # noqa: PLC0415

    before = os.environ.get("MLFLOW_TRACKING_URI")  # `set_tracking_uri` sets it too, so this is the user's choice.
    mlflow.set_tracking_uri(tracking_uri)
    try:
        yield
    finally:
        mlflow.set_tracking_uri(before)  # type: ignore[arg-type]  # None unsets it.


@contextmanager
def _files_of_at_most(num_bytes: int) -> Iterator[None]:
    """Limit the size of files that this process writes in the block, because MLflow writes everything that a server sends."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    least = num_bytes if soft == resource.RLIM_INFINITY else min(soft, num_bytes)
    resource.setrlimit(resource.RLIMIT_FSIZE, (least, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def _download(place: str, tracking_uri: str, copy: Path) -> None:
    """List all files of a logged model, check their names, number and sizes, and copy them."""
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository  # noqa: PLC0415

    store: Any = get_artifact_repository(place, tracking_uri=tracking_uri)
    inner: Any = getattr(store, "repo", store)  # The store of `models:/` wraps the store that holds the files.
    ask, source = inner.list_artifacts, f"{place} in {tracking_uri}"
    sizes = dict(_listed(ask, source))
    check_copy(sizes, source, copy)
    if max(sizes.values(), default=0) > MAX_FILE_BYTES:
        raise OSError(errno.EFBIG, TOO_LARGE)  # The kernel raises the same error if the listing had no size.
    # MLflow lists again while it copies files, and the server may then answer differently.
    inner.list_artifacts = _limited(ask, source)
    copy.mkdir()
    store.download_artifacts("", str(copy))


def _listed(ask: Callable[[str | None], list[Any]], source: str) -> Iterator[tuple[str, int]]:
    """Yield the path and the size in bytes of each file of a store."""
    ask, folders = _limited(ask, source), [None]
    while folders:
        folder = folders.pop()
        for entry in ask(folder):
            relative_name(entry.path, source)
            if entry.path == folder:  # Some stores list a folder in itself.
                continue
            if entry.is_dir:
                folders.append(entry.path)
            else:
                yield entry.path, entry.file_size or 0


def _limited(ask: Callable[[str | None], list[Any]], source: str) -> Callable[[str | None], list[Any]]:
    """Return a function that lists a folder, and raises once it has listed more than MAX_FILES files and folders."""
    number = 0

    def limited(folder: str | None = None) -> list[Any]:
        nonlocal number
        found = ask(folder)
        number += 1 + len(found)
        check_number(number, source, MAX_FILES)
        return found

    return limited


def local_copy_of(place: str, tracking_uri: str) -> Path:
    """Copy a logged model of crmuons to this machine, and return its model directory.

    Args:
        place: its URI in MLflow.
        tracking_uri: the server or store, from `resolve_uri`.

    Raises:
        FileNotFoundError: if there is no such store or model, or if it is no model of crmuons.
        ValueError, ConnectionError: if the store cannot be read, or has more or larger files than a model can have.
    """
    if is_sqlite(tracking_uri) and not database(tracking_uri).is_file():
        msg = f"{place} is looked up in MLflow, and there is no {tracking_uri}; set MLFLOW_TRACKING_URI to the server or store"
        raise FileNotFoundError(msg)
    if (reason := unreachable_reason(tracking_uri)) is not None:
        msg = f"{place} cannot be read from {tracking_uri}: {reason}; check MLFLOW_TRACKING_URI, and that the server is up"
        raise ConnectionError(msg)
    from mlflow.exceptions import MlflowException  # noqa: PLC0415  # The import takes 1.6 CPU-seconds.

    copy = caches() / "models" / hashlib.sha256(f"{tracking_uri} {place}".encode()).hexdigest()[:16]
    shutil.rmtree(copy, ignore_errors=True)  # A name in the registry may point to another version than last time.
    copy.parent.mkdir(parents=True, exist_ok=True)
    logging.getLogger("alembic").setLevel(logging.WARNING)
    try:
        waiting = spoken_wait(lambda: f"{place} from {tracking_uri}, until it is here or the server gives no answer")
        with _store_of_mlflow(tracking_uri), _files_of_at_most(MAX_FILE_BYTES), waiting:
            _download(place, tracking_uri, copy)
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
