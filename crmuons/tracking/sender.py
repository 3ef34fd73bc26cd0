"""Send the journal: in a background thread during the run, or at once later."""

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
LONGEST_PAUSE = 60.0  # Seconds between attempts while a server does not answer.
LAST_ATTEMPTS = 2  # At the end of a run: failures in a row after which `crmuons sync` must send the rest.


def sync(directory: Path) -> tuple[int, str]:
    """Send the journal entries of a run that the server does not have.

    The server is MLFLOW_TRACKING_URI, or if that is not set, the one of the run. A run whose process died ends as
    KILLED.

    Returns:
        The number of entries sent, and the ID of the MLflow run.

    Raises:
        FileNotFoundError: if the directory has no journal.
        BlockingIOError: if the process of the run is alive.
        ConnectionError: if the server does not take the entries. Entries that it took are not sent again.
    """
    if not Journal.exists(directory):
        msg = f"no journal of a tracked run in {directory}; give the directory of a run"
        raise FileNotFoundError(msg)
    with _locked(directory) as journal:
        if journal.status == "RUNNING":
            journal.append("status", status="KILLED")
        server = _server(journal)
        already_sent = server.sent.entries
        with progress(journal.num_entries - already_sent, unit="entries", what="sync") as bar:
            _send(journal, server, bar.update)
        return server.sent.entries - already_sent, server.run_id


def finalize_run(directory: Path, status: Status, tags: Mapping[str, str]) -> None:
    """End the MLflow run of processes that are gone, and send the rest of its journal.

    Args:
        directory: the run's directory.
        status: status of the run if it died before it logged one.
        tags: tags to add to the run.

    Raises:
        BlockingIOError: if the process of the run is alive.
        ConnectionError: if the server does not take the entries. They stay in the journal.
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
        msg = f"the journal in {journal.directory} does not name its run and server: its first entry is missing"
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
    """Thread that sends the journal during the run. The pauses grow while the server does not answer.

    Attributes:
        server: the server and its run.
        last_error: the reason of the last failure; "" after a success.
    """

    def __init__(self, journal: Journal, server: Server) -> None:
        super().__init__(name="tracking", daemon=True)
        self._journal = journal
        self.server = server
        self.last_error = ""
        self._closing = threading.Event()
        self._deadline = float("inf")

    @property
    def pending(self) -> int:
        """Number of entries that are not sent yet."""
        return self._journal.num_entries - self.server.sent.entries

    def close(self, seconds: float) -> None:
        """Send the remaining entries within `seconds`, and end the thread."""
        self._deadline = time.monotonic() + seconds
        self._closing.set()
        self.join(seconds)

    def run(self) -> None:
        """Send until `close` is called and all is sent, or its time is over."""
        failures = 0
        while time.monotonic() < self._deadline:
            last = self._closing.is_set()  # Read before sending, so that all entries before `close` are sent.
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
        except Exception as error:  # noqa: BLE001 - artifact stores are plug-ins (S3, GCS, SFTP) with their own errors.
            # None of these may end the thread. The error is logged here and by `Tracker.finish`.
            if not self.last_error:
                logger.info(
                    "MLflow at %s takes no results now, they stay in the journal: %s",
                    self.server.sent.uri,
                    describe(error),
                )
            self.last_error = describe(error)
            return False
        if self.last_error:
            logger.info("MLflow at %s takes results again", self.server.sent.uri)
        self.last_error = ""
        return True

    def _pause(self, failures: int) -> None:
        if not self._closing.is_set():
            self._closing.wait(min(SECONDS_BETWEEN_BATCHES * 2**failures, LONGEST_PAUSE))
        elif failures:
            time.sleep(SECONDS_BEFORE_LAST_ATTEMPT)
