"""Check, before a command works, that its results can be tracked. Every command that tracks begins here.

A URI that can never work is refused. A server that does not answer gives only a warning, because the journal keeps all
entries.
"""

import logging
import os
import threading
from pathlib import Path

from crmuons.config.options import shown
from crmuons.storage.redact import without_credentials
from crmuons.tracking.uri import database, is_sqlite, resolve_uri

logger = logging.getLogger(__name__)

ANSWER_S = 8.0  # A server that accepts the connection and stays silent would hold MLflow for 20 s.
SQLITE_BEGIN = b"SQLite format 3\0"


def usable_uri(base: Path) -> str:
    """Check and return `resolve_uri(base)`; log a warning if its server does not answer this process.

    Raises:
        ValueError: if nothing can be tracked there.
    """
    uri = resolve_uri(base)
    # The directory of the default database may be made later, with the first run in it.
    if os.environ.get("MLFLOW_TRACKING_URI"):
        check_store(uri)
    if (reason := unreachable_reason(uri)) is not None:
        warn(uri, f"from this machine: {reason}")
    return uri


def check_store(uri: str) -> None:
    """Check a URI without a request to a server: the file of a SQLite URI, or the driver of another database.

    Raises:
        ValueError: with the URI and the remedy.
    """
    if is_sqlite(uri):
        fault = _file_fault(database(uri))
    elif "://" in uri and not uri.startswith("http"):
        fault = _driver_fault(uri)
    else:
        return
    if fault is not None:
        msg = f"tracking URI {shown(without_credentials(uri))} cannot be used: {fault}"
        raise ValueError(msg)


def _file_fault(path: Path) -> str | None:
    folder = path.parent
    try:
        if not folder.is_dir():
            return f"{folder} is not a directory; make it, or give sqlite:///PATH/mlflow.db in one that exists"
        if not os.access(folder, os.W_OK | os.X_OK):  # SQLite keeps a second file next to the database.
            return f"{folder} cannot be written by this user; give sqlite:///PATH/mlflow.db in one that can"
        if not path.exists():
            return None
        if not path.is_file() or not os.access(path, os.R_OK | os.W_OK):
            return f"{path} is not a file that this user can read and write; give sqlite:///PATH/mlflow.db"
        with path.open("rb") as file:
            begin = file.read(len(SQLITE_BEGIN))
    except OSError as error:  # For example a name that is too long.
        return f"{error.strerror}; give another name"
    return None if begin in (b"", SQLITE_BEGIN) else f"{path} is not a SQLite database; give another name"


def _driver_fault(uri: str) -> str | None:
    from sqlalchemy import create_engine  # noqa: PLC0415  # The import takes 0.3 CPU-seconds; only databases need it.
    from sqlalchemy.exc import ArgumentError  # noqa: PLC0415

    try:
        create_engine(uri)
    except ImportError as error:
        return f"its database driver is not installed ({error}); install it, or use an MLflow server"
    except (ArgumentError, ValueError) as error:
        return f"it is no address of a database ({str(error)[:80]}); give SCHEME://USER:PASSWORD@HOST:PORT/DATABASE"
    return None


def warn(uri: str, sentence: str) -> None:
    """Log that a tracking server cannot be used, from where and why. It is no error: the journal keeps unsent entries."""
    logger.warning(
        "the tracking server %s cannot be used %s; check MLFLOW_TRACKING_URI; the run keeps its entries, and "
        "`crmuons sync` sends them later",
        without_credentials(uri),
        sentence,
    )


def unreachable_reason(uri: str) -> str | None:
    """Return why this process cannot send to a tracking server, after one small request with its credentials.

    Args:
        uri: the result of `resolve_uri`. A SQLite file gets no request, because a request would create it.

    Returns:
        The reason in one line; None if the server answers or the URI names a SQLite file.
    """
    if is_sqlite(uri):
        return None
    from crmuons.tracking.server import connection_error  # noqa: PLC0415  # Importing MLflow takes 1.6 CPU-seconds.

    found: list[str | None] = []
    # In a thread, because a silent server would take longer than a user waits at the start of a run.
    thread = threading.Thread(target=lambda: found.append(connection_error(uri)), name="tracking-check", daemon=True)
    thread.start()
    thread.join(ANSWER_S)
    return found[0] if found else f"no answer in {ANSWER_S:.0f} s"
