"""Resolve the URI of the tracking store. A URI that is stored or shown never has credentials."""

import os
import re
from importlib.metadata import entry_points
from pathlib import Path
from urllib.parse import unquote, urlsplit

from crmuons.config.options import shown
from crmuons.storage.redact import without_credentials

CREDENTIALS = Path("~/.mlflow/credentials")  # MLflow's own file
DATABASES = ("postgresql", "mysql", "mssql")  # MLflow's databases except SQLite. A driver may follow: mysql+pymysql.


def default_uri(base: Path) -> str:
    """Return the URI of the SQLite file that a plain `mlflow ui` in the directory reads."""
    return f"sqlite:///{base.resolve() / 'mlflow.db'}"


def resolve_uri(base: Path) -> str:
    """Return MLFLOW_TRACKING_URI if it is set, otherwise the URI of the SQLite file in a directory.

    The process that the user starts calls this once and passes the URI on, because workers have another working
    directory.

    Raises:
        ValueError: see `bare_uri`.
    """
    return bare_uri(os.environ.get("MLFLOW_TRACKING_URI") or default_uri(base))


def bare_uri(uri: str) -> str:
    """Return a URI without credentials and relative paths.

    A user and a password in the URI are moved to MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, where MLflow
    reads them.

    Raises:
        ValueError: if the URI is a directory, cannot be read, or has a scheme that MLflow does not know.
    """
    try:
        parts = urlsplit(uri)
        is_address = not is_server(uri) or (bool(parts.hostname) and parts.port != 0)
    except ValueError:  # A bracket without its end, or a port of 99999.
        is_address = False
    if not is_address:
        msg = f"tracking URI {shown(without_credentials(uri))} is no address; give http://HOST:PORT, or sqlite:///PATH/mlflow.db"
        raise ValueError(msg)
    if parts.scheme in ("", "file"):
        msg = (
            f"tracking URI {shown(without_credentials(uri))} is a directory, and MLflow no longer stores runs in plain "
            "files; give sqlite:///PATH/mlflow.db or the http(s) address of a server"
        )
        raise ValueError(msg)
    if is_sqlite(uri):
        return f"sqlite:///{database(uri).absolute()}"
    if parts.scheme in ("http", "https") and parts.username is not None:
        os.environ.setdefault("MLFLOW_TRACKING_USERNAME", unquote(parts.username))
        os.environ.setdefault("MLFLOW_TRACKING_PASSWORD", unquote(parts.password or ""))
        return without_credentials(uri)
    if not is_server(uri) and not is_database(uri) and parts.scheme not in _other_stores():
        msg = (
            f"tracking URI {shown(without_credentials(uri))} is of no kind that MLflow knows; give http(s)://HOST:PORT, "
            "sqlite:///PATH/mlflow.db or postgresql://HOST/DATABASE"
        )
        raise ValueError(msg)
    return uri


def _other_stores() -> set[str]:
    """Return the schemes of stores that are neither web servers nor databases: MLflow's own, and those of plugins."""
    plugins = {plugin.name for plugin in entry_points(group="mlflow.tracking_store")}
    return {"databricks", "databricks-uc", "uc", *plugins}


def is_sqlite(uri: str) -> bool:
    """Return whether a URI names a SQLite file."""
    return uri.startswith("sqlite:///")


def is_database(uri: str) -> bool:
    """Return whether a URI names a database that other machines can reach."""
    return re.split(r"[+:]", uri, maxsplit=1)[0] in DATABASES and "://" in uri


def is_server(uri: str) -> bool:
    """Return whether a URI names a web server and not a database."""
    return uri.startswith(("http://", "https://"))


def has_credentials() -> bool:
    """Return whether MLflow would send credentials of this user to any server."""
    names = ("USERNAME", "PASSWORD", "TOKEN", "AUTH", "AWS_SIGV4", "CLIENT_CERT_PATH")
    return any(os.environ.get(f"MLFLOW_TRACKING_{name}") for name in names) or CREDENTIALS.expanduser().exists()


def database(uri: str) -> Path:
    """Return the path of a `sqlite:` URI."""
    return Path(uri.removeprefix("sqlite:///"))
