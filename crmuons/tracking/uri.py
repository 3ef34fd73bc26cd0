"""Where runs are sent. Credentials come from the environment and are never part of a URI that is kept or shown."""

import os
from pathlib import Path
from urllib.parse import unquote, urlsplit

from crmuons.storage.redact import without_credentials


def default_uri(base: Path) -> str:
    """The SQLite file that a plain `mlflow ui`, typed in the directory, reads."""
    return f"sqlite:///{base.resolve() / 'mlflow.db'}"


def resolve_uri(base: Path) -> str:
    """Where runs are sent: MLFLOW_TRACKING_URI, or else the SQLite file in a directory.

    The process that a user starts asks once, and passes the answer on: a worker has another working directory. A user and
    password in the URI go to MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, from where MLflow takes them.

    Raises:
        ValueError: if the URI is a directory, in which MLflow no longer keeps runs.
    """
    return bare_uri(os.environ.get("MLFLOW_TRACKING_URI") or default_uri(base))


def bare_uri(uri: str) -> str:
    """The URI without credentials, and without regard to the working directory."""
    parts = urlsplit(uri)
    if parts.scheme in ("", "file"):
        msg = (
            f"tracking URI '{without_credentials(uri)}' is a directory, and MLflow no longer keeps runs in plain files; "
            "give sqlite:///PATH/mlflow.db or the http(s) address of a server"
        )
        raise ValueError(msg)
    if parts.scheme == "sqlite":
        return f"sqlite:///{database(uri).absolute()}"
    if parts.scheme in ("http", "https") and parts.username is not None:
        os.environ.setdefault("MLFLOW_TRACKING_USERNAME", unquote(parts.username))
        os.environ.setdefault("MLFLOW_TRACKING_PASSWORD", unquote(parts.password or ""))
        return without_credentials(uri)
    return uri


def database(uri: str) -> Path:
    return Path(uri.removeprefix("sqlite:///"))
