"""Send the journal: in background threads during the run, or at once later."""

import logging
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from mlflow.exceptions import MlflowException

from crmuons.progress import clock_time, progress, spoken_wait
from crmuons.storage.reach import unreachable_reason
from crmuons.tracking.artifacts import ArtifactStoreError, first_cause
from crmuons.tracking.file_delivery import FileDelivery
from crmuons.tracking.health import check_store
from crmuons.tracking.interface import Status
from crmuons.tracking.journal import Journal, check_journal
from crmuons.tracking.server import Server
from crmuons.tracking.uri import bare_uri, has_credentials, is_database, is_server

logger = logging.getLogger(__name__)


# One request has all metrics of these seconds.
SECONDS_BETWEEN_BATCHES = 2.0
SECONDS_BEFORE_LAST_ATTEMPT = 0.5
LONGEST_PAUSE = 60.0  # Seconds between attempts while a server does not answer.
LAST_ATTEMPTS = 2  # At the end of a run: failures in a row after which `crmuons sync` must send the rest.


def pause_s(failures: int) -> float:
    """Return the seconds to wait after a number of failures in a row."""
    # The exponent is limited, because 2**1024 is no float: the thread would die after 17 hours without a server.
    return min(SECONDS_BETWEEN_BATCHES * 2 ** min(failures, 10), LONGEST_PAUSE)


def sync(directory: Path, to: str | None = None) -> tuple[int, str]:
    """Send the journal entries of a run that the server does not have.

    A run whose process died ends as KILLED.

    Args:
        directory: the run's directory.
        to: the server; None for MLFLOW_TRACKING_URI, or if that is not set, for the server of the run.

    Returns:
        The number of entries sent, and the ID of the MLflow run.

    Raises:
        FileNotFoundError: if the directory has no journal.
        BlockingIOError: if the process of the run is alive.
        ConnectionError: if the server does not take the entries, or if only the directory names the server and this
            user has credentials. Entries that it took are not sent again.
    """
    check_journal(directory)
    with _locked(directory) as journal:
        server, files = _server(journal, to)
        if journal.status == "RUNNING":
            # This process has the lock, so the run's process has died without logging an end.
            journal.append("status", status="KILLED")
        num_sent = 0
        with progress(server.pending, unit="entries", what="sync") as bar:
            for number in _send(journal, server, files):
                num_sent += number
                bar.update(number)
        return num_sent, server.run_id


def named_server() -> str | None:
    """Return the server that the user named for this process, in MLFLOW_TRACKING_URI; None for none."""
    return os.environ.get("MLFLOW_TRACKING_URI") or None


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
        for _ in _send(journal, *_server(journal)):
            pass


@contextmanager
def _locked(directory: Path) -> Iterator[Journal]:
    journal = Journal(directory)
    try:
        journal.lock()
        yield journal
    finally:
        journal.unlock()
        journal.close()


def _server(journal: Journal, to: str | None = None) -> tuple[Server, FileDelivery]:
    if not journal.uri:
        msg = f"the journal in {journal.directory} does not name its run and server: its first entry is missing"
        raise ValueError(msg)
    named = to or named_server()
    # libpq and similar drivers take a password from the environment and from their own files.
    if named is None and (is_database(journal.uri) or (is_server(journal.uri) and has_credentials())):
        # The directory may come from a stranger, who would get this user's password.
        msg = (
            f"only the directory {journal.directory} names the server {journal.uri}, and MLflow would send it your "
            f"credentials; if you trust it: crmuons sync {journal.directory} --to {journal.uri}"
        )
        raise ConnectionError(msg)
    # Credentials of the URI go to the environment, where MLflow looks for them; files never hold them.
    uri = bare_uri(named or journal.uri)
    check_store(uri)
    server = Server(journal, uri)
    return server, FileDelivery(journal, server, named=named is not None)


def _send(journal: Journal, server: Server, files: FileDelivery) -> Iterator[int]:
    if (reason := unreachable_reason(server.sent.uri)) is not None:
        msg = f"{server.sent.uri} takes no results of {journal.directory}: {reason}"
        raise ConnectionError(msg)
    try:
        yield from server.send_entries()
    except (MlflowException, ConnectionError) as error:
        msg = f"{server.sent.uri} takes no results of {journal.directory}: {first_cause(error)}"
        raise ConnectionError(msg) from error
    try:
        yield from files.send()
    except Exception as error:  # Artifact stores are plug-ins (S3, GCS, SFTP) with their own errors.
        msg = (
            f"{server.sent.uri} has the metrics and the state of {journal.directory}, but does not take "
            f"{len(server.sent.waiting)} of its artifacts: {first_cause(error)}"
        )
        raise ConnectionError(msg) from error


class Sender:
    """Two threads that send the journal during the run: one its entries, the other the files of its entries."""

    def __init__(self, journal: Journal, server: Server) -> None:
        self.server = server
        self._entries = _Delivery("results", journal, server, server.send_entries)
        # A second thread, because an upload of minutes must not delay a metric of 8 bytes.
        self._files = _Delivery("artifacts", journal, server, FileDelivery(journal, server).send, after=self._entries)

    @property
    def pending(self) -> int:
        """Number of entries that are not sent yet."""
        return self.server.pending

    @property
    def last_error(self) -> str:
        """The reason of the last failure; "" after a success."""
        return self._entries.last_error or self._files.last_error

    def start(self) -> None:
        """Start the threads."""
        self._entries.start()
        self._files.start()

    def close(self, seconds: float) -> None:
        """Send what remains within `seconds`, and end the threads."""
        deadline, until = time.monotonic() + seconds, clock_time(time.time() + seconds)
        with spoken_wait(
            lambda: f"MLflow at {self.server.sent.uri} to take {self.pending} entries, until {until} at the latest"
        ):
            # One deadline for both, so that the end of a run waits no longer than announced.
            for delivery in (self._entries, self._files):  # Entries first, because they name the files to send.
                delivery.close(deadline)


class _Delivery(threading.Thread):
    """A thread that repeats an attempt. The pauses grow while the server does not answer.

    Args:
        what: what it sends.
        journal: is locked while the thread runs.
        server: the server, for messages.
        send: makes requests; it yields after each.
        after: a delivery that ends before this one. The last one unlocks the journal.
    """

    def __init__(
        self,
        what: str,
        journal: Journal,
        server: Server,
        send: Callable[[], Iterator[int]],
        *,
        after: "_Delivery | None" = None,
    ) -> None:
        super().__init__(name=f"tracking-{what}", daemon=True)
        self._what, self._journal, self._server, self._send, self._after = what, journal, server, send, after
        self.last_error = ""
        self._closing = threading.Event()
        # No deadline until the run ends; then both threads share the rest of flush_seconds.
        self._deadline = float("inf")

    def close(self, deadline: float) -> None:
        """Send what remains until a time of the monotonic clock, and end."""
        self._deadline = deadline
        self._closing.set()
        # With a limit: a thread whose request hangs is abandoned; it is a daemon.
        self.join(max(0.0, deadline - time.monotonic()))

    def run(self) -> None:
        """Send until `close` is called and all entries are sent, or its time is over."""
        failures = 0
        while time.monotonic() < self._deadline:
            last = self._closing.is_set()  # Read before sending, so that all entries before `close` are sent.
            # Each attempt sends the entries that have come since the last attempt.
            if self._attempt():
                failures = 0
                if last:
                    break
            else:
                failures += 1
                if last and failures >= LAST_ATTEMPTS:
                    break
            self._pause(failures)
        # The lock is kept until the other thread has ended, which may still be sending.
        if self._after is not None:
            self._after.join()
            self._journal.unlock()

    def _attempt(self) -> bool:
        try:
            self._journal.lock()
            # Entries are on the disk before they are on the server: after a power cut the server must not have more.
            self._journal.flush()
            # Checked after each request: a long journal must stop at the end of the time.
            for _ in self._send():
                if time.monotonic() > self._deadline:
                    return False
        except Exception as error:  # noqa: BLE001 - artifact stores are plug-ins (S3, GCS, SFTP) with their own errors.
            # None of these may end the thread. The error is logged here and by `Tracker.finish`.
            reason = first_cause(error)
            if not self.last_error:
                # A wrong artifact root is a warning at once: it stays wrong, and a run may take weeks.
                level = logging.WARNING if isinstance(error, ArtifactStoreError) else logging.INFO
                logger.log(
                    level,
                    "MLflow at %s takes no %s now, they stay in the journal: %s",
                    self._server.sent.uri,
                    self._what,
                    reason,
                )
            self.last_error = reason
            return False
        if self.last_error:
            logger.info("MLflow at %s takes %s again", self._server.sent.uri, self._what)
        self.last_error = ""
        return True

    def _pause(self, failures: int) -> None:
        if not self._closing.is_set():
            self._closing.wait(pause_s(failures))
        elif failures:
            time.sleep(SECONDS_BEFORE_LAST_ATTEMPT)
