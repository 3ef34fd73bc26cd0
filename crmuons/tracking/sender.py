"""Sending the journal: in the background while a run goes on, or all at once later."""

import logging
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from mlflow.exceptions import MlflowException

from crmuons.progress import progress
from crmuons.tracking.interface import Status
from crmuons.tracking.journal import Journal
from crmuons.tracking.server import Server, describe
from crmuons.tracking.uri import bare_uri

logger = logging.getLogger(__name__)


SECONDS_BETWEEN_BATCHES = 2.0
SECONDS_BEFORE_LAST_ATTEMPT = 0.5
LONGEST_PAUSE = 60.0  # between attempts to reach a server that does not answer
LAST_ATTEMPTS = 2  # failures in a row after which a run that ends leaves the rest to `crmuons sync`


def sync(directory: Path) -> tuple[int, str]:
    """Send what a run's journal holds and the server does not have.

    The server is MLFLOW_TRACKING_URI, or else the one the run was meant for. A run whose process died is ended as KILLED.

    Returns:
        How many entries were sent, and the MLflow run.

    Raises:
        FileNotFoundError: if no run was journaled in the directory.
        BlockingIOError: if the process of the run is alive.
        ConnectionError: if the server does not take the entries; those it took are not sent again.
    """
    if not Journal.exists(directory):
        msg = f"no journal of a tracked run in {directory}; give the directory of a run"
        raise FileNotFoundError(msg)
    with _locked(directory) as journal:
        if journal.status == "RUNNING":
            journal.append("status", status="KILLED")
        server = _server(journal)
        before = server.sent.entries
        with progress(journal.num_entries - before, unit="entries", what="sync") as bar:
            _send(journal, server, bar.update)
        return server.sent.entries - before, server.run_id


def finalize_run(directory: Path, status: Status, tags: Mapping[str, str]) -> None:
    """Have MLflow know how a run ended whose processes are gone, and all else that its journal holds.

    Args:
        directory: the run's.
        status: its state, where it died before it could say one.
        tags: added to the run.

    Raises:
        BlockingIOError: if the process of the run is alive.
        ConnectionError: if the server does not take the entries; they are kept.
    """
    with _locked(directory) as journal:
        if journal.status == "RUNNING":
            journal.append("status", status=status)
        journal.append("tags", values=dict(tags))
        _send(journal, _server(journal), lambda _: None)


@contextmanager
def _locked(directory: Path) -> Iterator[Journal]:
    journal = Journal(directory)
    try:
        journal.lock()
        yield journal
    finally:
        journal.unlock()
        journal.close()


def _server(journal: Journal) -> Server:
    if not journal.uri:
        msg = f"the journal in {journal.directory} does not say what run it is of: its first entry is missing"
        raise ValueError(msg)
    return Server(journal, bare_uri(os.environ.get("MLFLOW_TRACKING_URI") or journal.uri))


def _send(journal: Journal, server: Server, tell: Callable[[int], object]) -> None:
    try:
        for done in server.send_all():
            tell(done)
    except MlflowException as error:
        msg = f"{server.sent.uri} takes no results of {journal.directory}: {describe(error)}"
        raise ConnectionError(msg) from error


class Sender(threading.Thread):
    """Sends the journal while the run goes on; a server that does not answer is asked ever more rarely."""

    def __init__(self, journal: Journal, server: Server) -> None:
        super().__init__(name="tracking", daemon=True)
        self._journal = journal
        self.server = server
        self.trouble = ""
        self._closing = threading.Event()
        self._deadline = float("inf")

    @property
    def pending(self) -> int:
        """Entries that are still to be sent."""
        return self._journal.num_entries - self.server.sent.entries

    def close(self, seconds: float) -> None:
        """Send what is left and end, within the given time."""
        self._deadline = time.monotonic() + seconds
        self._closing.set()
        self.join(seconds)

    def run(self) -> None:
        failures = 0
        while time.monotonic() < self._deadline:
            last = self._closing.is_set()  # Read before sending: what was journaled until then is sent.
            if self._attempt():
                failures = 0
                if last:
                    break
            else:
                failures += 1
                if last and failures >= LAST_ATTEMPTS:
                    break
            self._pause(failures)
        self._journal.unlock()

    def _attempt(self) -> bool:
        try:
            self._journal.lock()
            self._journal.flush()
            for _ in self.server.send_all():
                if time.monotonic() > self._deadline:
                    return False
        except Exception as error:  # noqa: BLE001 - an artifact store is a plug-in (S3, GCS, SFTP) with errors of its own;
            # none of them may end the sending, and each is said here and by `finish`.
            if not self.trouble:
                logger.info(
                    "MLflow at %s takes no results now, they are kept: %s", self.server.sent.uri, describe(error)
                )
            self.trouble = describe(error)
            return False
        if self.trouble:
            logger.info("MLflow at %s takes results again", self.server.sent.uri)
        self.trouble = ""
        return True

    def _pause(self, failures: int) -> None:
        if not self._closing.is_set():
            self._closing.wait(min(SECONDS_BETWEEN_BATCHES * 2**failures, LONGEST_PAUSE))
        elif failures:
            time.sleep(SECONDS_BEFORE_LAST_ATTEMPT)
