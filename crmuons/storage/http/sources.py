"""Failover, backoff and time limits: choose the next server and the waiting time. This module has no network code."""

import asyncio
import logging
import random
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

from crmuons.progress import SAY_AFTER_S

logger = logging.getLogger(__name__)

# The wait doubles at each failure: 0.25 s, 0.5 s ... up to the longest.
FIRST_WAIT_S = 0.25
LONGEST_WAIT_S = 10.0  # A longer wait would leave a recovered server unused for longer than most outages last.
SECONDS_BETWEEN_WARNINGS = 30.0


@dataclass
class Source:
    """A server: its address, its number of failures in a row, and the time from which it may be asked again."""

    url: str
    failures: int = 0
    ready_at: float = 0.0


class FinalError(OSError):
    """Raised if repeating a request is useless."""


class Fault(Exception):  # noqa: N818  not an error of the program, but of one server on one request
    """One request to one server failed.

    Attributes:
        source: the server.
        status: the HTTP status; None if no answer came.
        retry_after_s: seconds after which the server asked to be called again; None if it did not ask.
        doubtful: the answer is about the file (missing, another size), and only the origin can confirm it.
        credential: the token that was sent.
        lasting: asking this server again is useless, for example after a redirect loop; another server may work.
    """

    def __init__(
        self,
        source: Source,
        reason: str,
        *,
        status: int | None = None,
        retry_after_s: float | None = None,
        doubtful: bool = False,
        credential: object = None,
        lasting: bool = False,
    ) -> None:
        super().__init__(f"{source.url}: {reason}")
        self.source, self.status, self.retry_after_s = source, status, retry_after_s
        self.doubtful, self.credential, self.lasting = doubtful, credential, lasting


@dataclass
class Sources:
    """Servers that offer the same files, in order of preference."""

    sources: list[Source]
    clock: Callable[[], float] = field(default=time.monotonic, repr=False)

    @classmethod
    def of(cls, urls: Iterable[str], known: "Sources | None" = None) -> "Sources":
        """Return the servers of these addresses without duplicates. Known servers keep their record of failures."""
        # A new listing must not make a server that has just failed ready again.
        records = {} if known is None else {source.url: source for source in known.sources}
        return cls([records.get(url, Source(url)) for url in dict.fromkeys(urls)])

    def best(self) -> Source:
        """Return the ready server with the fewest failures, otherwise the server that is ready first."""
        now = self.clock()
        # min returns the first of equals, so the order of preference decides among working servers.
        ready = [source for source in self.sources if source.ready_at <= now]
        return min(ready, key=lambda source: source.failures) if ready else min(self.sources, key=_ready_at)

    def failed(self, fault: Fault) -> None:
        """Avoid a server for a while: longer after each failure, and at least as long as it requested."""
        source = fault.source
        # With a random factor, so that hundreds of readers do not come back at the same moment.
        wait_s = min(LONGEST_WAIT_S, FIRST_WAIT_S * 2 ** min(source.failures, 10)) * random.uniform(0.5, 1.5)  # noqa: S311
        source.failures += 1
        source.ready_at = self.clock() + max(wait_s, fault.retry_after_s or 0.0)

    def worked(self, source: Source) -> None:
        """Clear the failures of a server that answered correctly."""
        source.failures, source.ready_at = 0, 0.0

    def all_failing(self) -> bool:
        """Return whether every server failed on its last request."""
        return all(source.failures for source in self.sources)


class Patience:
    """The time limit of one operation without progress.

    Args:
        seconds: the time from the last progress until giving up.
        what: the operation, for errors and warnings; it begins with the URL.
        variable: the environment variable that sets `seconds`.
        clock: returns the time in seconds.
    """

    def __init__(
        self,
        seconds: float,
        what: str,
        variable: str = "CRMUONS_PELICAN_PATIENCE_S",
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.seconds, self.what, self.variable, self.clock = seconds, what, variable, clock
        self.last_fault: Fault | None = None
        self.useless: set[str] = set()  # URLs of servers with a lasting fault.
        self.refused: set[tuple[str, object]] = set()  # Servers, and the credentials that they refused.
        self.next_warning = clock() + SAY_AFTER_S  # Shorter faults are usual and need no warning.
        self.progress()

    def progress(self) -> None:
        """Note that data arrived, and restart the time limit."""
        # The limit counts from the last data, because a slow transfer is no failure.
        self.began = self.clock()
        self.deadline = self.began + self.seconds
        self.firsts: dict[str, float] = {}

    def since_first(self, event: str) -> float:
        """Return the seconds since this event first happened after the last progress."""
        now = self.clock()
        return now - self.firsts.setdefault(event, now)

    def record(self, sources: Sources, fault: Fault) -> None:
        """Note a fault, and avoid its server for a while.

        Raises:
            FinalError: if all servers have lasting faults.
        """
        sources.failed(fault)
        self.last_fault = fault
        logger.debug("%s: %s", self.what, fault)
        if fault.lasting:
            self.useless.add(fault.source.url)
            if all(source.url in self.useless for source in sources.sources):
                msg = f"{self.what}: {fault}"
                raise FinalError(msg)

    async def next(self, sources: Sources) -> Source:
        """Wait until a server may be asked, and return it.

        Raises:
            ConnectionError: if the wait would end after the time limit.
        """
        source = sources.best()
        wait_s = max(0.0, source.ready_at - self.clock())
        # Checked before the wait, so that no useless wait begins.
        if self.last_fault is not None and self.clock() + wait_s > self.deadline:
            msg = (
                f"{self.what}: nothing came for {self.clock() - self.began:.0f} s; the last fault was {self.last_fault}."
                f" Check the host's name and that the servers are up, or wait longer with {self.variable}"
            )
            raise ConnectionError(msg)
        if wait_s and self.clock() + wait_s > self.next_warning:
            self.next_warning = self.clock() + SECONDS_BETWEEN_WARNINGS
            left_s = self.deadline - self.clock()
            logger.warning("%s: waiting for at most %.0f s more: %s", self.what, left_s, self.last_fault)
        await asyncio.sleep(wait_s)
        return source


def retry_after_s(value: str | None) -> float | None:
    """Return the seconds of a Retry-After header (a number or a date, RFC 9110, 10.2.3); None if it is neither."""
    if value is None:
        return None
    if value.strip().isdigit():
        return float(value)
    try:
        date = parsedate_to_datetime(value)
    except ValueError:
        return None
    return max(0.0, (date - datetime.now(UTC)).total_seconds())


def _ready_at(source: Source) -> float:
    return source.ready_at
