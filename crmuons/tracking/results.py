"""Results that come after a run has ended, such as its evaluation: into the journal first, then to the server."""

from collections.abc import Mapping
from pathlib import Path

from crmuons.tracking.journal import Journal
from crmuons.tracking.sender import sync


def add_results(directory: Path, values: Mapping[str, float], step: int, artifacts: Path) -> str:
    """Add metrics of a step, and a directory of artifacts, to the run journaled in a directory.

    Returns:
        The MLflow run.

    Raises:
        FileNotFoundError: if no run was journaled there.
        BlockingIOError: if the run is still going on.
        ConnectionError: if the server does not take them; they are kept, and `crmuons sync` sends them later.
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
    return sync(directory)[1]
