"""Sending runs to MLflow: journaled first, sent by a background thread, and never in the way of the training.

The only package that imports mlflow, and only in modules of its own: the import takes 1.6 CPU-seconds. See docs/tracking.md.
"""

import logging
import os

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

# It shows a traceback for each entry that a database does not take, which the sender tells of in a sentence.
logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)
