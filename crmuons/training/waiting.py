"""Wait for batches, and let a time limit or a request to stop end the wait while a source of data hangs."""

import logging
import time
from collections.abc import Callable, Iterator

from crmuons.data.loader import Loader
from crmuons.training.trainer import PreparedBatch

logger = logging.getLogger(__name__)

# Seconds. A person does not notice this delay of Ctrl-C, and five looks per second cost nothing.
POLL_S = 0.2
SAY_AFTER_S = 5.0
FIRST_BATCH_S = 30.0  # The first batch of a slow source may come after a short time limit; one step is then done.


class NoBatchError(Exception):
    """The run must stop, and no batch has come that could end the step."""


class PatientBatches(Iterator[PreparedBatch]):
    """The batches of a loader on the host. While a batch is late, `is_requested` and `is_over` are asked repeatedly.

    If the run must stop, a step that has begun gets the last batch again. Otherwise other ranks would wait for this one
    without end, and the step would have updated the critic but not the generator. The position in the data stays at the
    last new batch, so nothing is left out when the run continues.

    Args:
        loader: the batches.
        is_requested: whether a stop was requested, as far as this rank knows.
        is_over: whether the time of the run is over, as far as this rank knows.
        until: function that returns in words what else can end the wait.
        alone: whether this is the only rank.

    Attributes:
        last: the last batch that was returned.
        step_begun: whether the step in progress has had a batch; the loop sets it to False after a step.
    """

    def __init__(
        self,
        loader: Loader[PreparedBatch],
        is_requested: Callable[[], bool],
        is_over: Callable[[], bool],
        until: Callable[[], str],
        *,
        alone: bool,
    ) -> None:
        self.loader, self.until, self.alone = loader, until, alone
        self.is_requested, self.is_over = is_requested, is_over
        self.last: PreparedBatch | None = None
        self.step_begun = False

    def __next__(self) -> PreparedBatch:
        """Return the next batch.

        Raises:
            NoBatchError: if the run must stop before the batch comes.
        """
        begin, said = time.perf_counter(), False
        since = time.strftime("%H:%M:%S")
        while not self.loader.wait(POLL_S):
            waited = time.perf_counter() - begin
            if self._is_too_late(waited):
                return self._instead()
            if not said and waited > SAY_AFTER_S:
                said = True
                logger.warning(
                    "no data since %s, for %.0f s: waiting for the next batch until it comes, or %s",
                    since, waited, self.until(),
                )  # fmt: skip
        if said:
            logger.warning("data have come after %.0f s", time.perf_counter() - begin)
        # The only place that takes a new batch; repeating the last one leaves the position in the data where it was.
        self.last, self.step_begun = next(self.loader), True
        return self.last

    def _is_too_late(self, waited: float) -> bool:
        requested = self.is_requested()
        # With other ranks, a rank waits for its first batch even if a stop was requested: it has no batch to repeat.
        if self.last is None and not (self.alone and requested) and waited < FIRST_BATCH_S:
            return False
        return requested or self.is_over()

    def _instead(self) -> PreparedBatch:
        if self.last is None or (self.alone and not self.step_begun):
            raise NoBatchError
        self.step_begun = True
        return self.last
