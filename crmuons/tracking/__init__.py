"""Send runs to MLflow without delaying the training: entries go to a journal, and a thread sends the journal.

Only this package imports mlflow. Other packages import its modules late, because the import takes 1.6 CPU-seconds. See
docs/tracking.md.
"""

import logging
import os

# MLflow reads the first variable when it is imported, the others at every request. Values set by the user stay.
ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    # With the defaults (7 retries of 120 s each) a dead server blocks for minutes. The journal retries instead.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",  # Standard output belongs to the command.
    "MLFLOW_LOGGING_LEVEL": "WARNING",  # Its messages about each saved model would break a progress bar.
    "MLFLOW_UV_AUTO_DETECT": "false",  # Requirements of models are given explicitly.
}
for _name, _value in ENVIRONMENT.items():
    os.environ.setdefault(_name, _value)

# This logger prints a traceback for each entry that a database refuses; the sender logs one sentence instead.
logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)
