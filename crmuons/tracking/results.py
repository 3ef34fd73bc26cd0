"""Add results to a run that has ended, such as its evaluation."""

from collections.abc import Mapping
from pathlib import Path

from crmuons.tracking.journal import Journal
from crmuons.tracking.sender import named_server, sync
from crmuons.tracking.uri import is_database, is_server


def add_results(directory: Path, values: Mapping[str, float], step: int, artifacts: Path) -> str:
    """Add metrics of a step and a directory of artifacts to the journal of a run, and send the journal.

    Nothing is sent to a server that only the directory names: it may be a stranger's.

    Returns:
        The ID of the MLflow run.

    Raises:
        FileNotFoundError: if the directory has no journal.
        BlockingIOError: if the run has not ended.
        ConnectionError: if the server does not take the entries, or is not MLFLOW_TRACKING_URI. The entries stay in the
            journal; `crmuons sync` sends them later.
    """
    if not Journal.exists(directory):
        msg = f"no journal of a tracked run in {directory}"
        raise FileNotFoundError(msg)
    journal = Journal(directory)
    try:
        journal.append_metrics(dict(values), step)
        journal.append("artifact", file=journal.keep_file(artifacts), folder="")
    finally:
        journal.close()
    if named_server() is None and (is_server(journal.uri) or is_database(journal.uri)):
        msg = (
            f"MLFLOW_TRACKING_URI is not set; the run names {journal.uri}: crmuons sync {directory} --to {journal.uri}"
        )
        raise ConnectionError(msg)
    return sync(directory)[1]
