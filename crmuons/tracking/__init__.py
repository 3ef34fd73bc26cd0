"""Sending runs to MLflow: journaled first, sent by a background thread, and never in the way of the training.

The only package that imports mlflow. See docs/tracking.md.
"""

import logging
import os
import warnings

# MLflow reads the first when it is imported, the others with every request. What the user has set stays.
ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    # The defaults, 7 retries of 120 s each, hold a dead server's caller for minutes; the journal is our retry.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",  # Standard output belongs to the command.
    "MLFLOW_UV_AUTO_DETECT": "false",  # A model's requirements are given, not guessed from the working directory.
}
for _name, _value in ENVIRONMENT.items():
    os.environ.setdefault(_name, _value)

# ruff: noqa: E402 - the environment comes before MLflow
with warnings.catch_warnings():
    # Of a type hint in MLflow itself, in colour, once for every process that saves or loads a model.
    warnings.filterwarnings("ignore", message=".*Any type hint is inferred as AnyType", category=UserWarning)
    import mlflow.pyfunc  # noqa: F401

# It shows a traceback for each entry that a database does not take, which the sender tells of in a sentence.
logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)

from crmuons.tracking.results import add_results
from crmuons.tracking.sender import Status, settle, sync
from crmuons.tracking.tracker import AnyTracker, NullTracker, Tracker
from crmuons.tracking.uri import default_uri, resolve_uri

__all__ = [
    "ENVIRONMENT",
    "AnyTracker",
    "NullTracker",
    "Status",
    "Tracker",
    "add_results",
    "default_uri",
    "resolve_uri",
    "settle",
    "sync",
]
