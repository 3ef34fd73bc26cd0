"""Draw nested subsets of whole showers: the first 200 of a seed are among its first 600."""

import hashlib
import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int64, UInt64

from crmuons.data import manifest
from crmuons.data.events import EventArrays, take
from crmuons.data.sample import sample_events
from crmuons.data.selection import Selection
from crmuons.evaluation.headers import EventHeaders
from crmuons.evaluation.metrics.quantities import shower_numbers

logger = logging.getLogger(__name__)

MAX_EVENTS = 5_000_000  # Largest pool. It is held in memory: about 1 GB of simulated bundles.


@dataclass(frozen=True)
class Pool:
    """Events of many showers, from which subsets are drawn.

    Attributes:
        events: the events.
        showers: the number of the shower of each event, from 0 in the order of the ids.
    """

    events: EventArrays
    showers: Int64[np.ndarray, " events"]

    @property
    def num_showers(self) -> int:
        """Return the number of showers."""
        return int(self.showers.max()) + 1 if len(self.showers) else 0

    def first(self, number: int, seed: int) -> EventArrays:
        """Return all events of the first showers, in an order that depends on the seed and on the ids alone."""
        rank = np.argsort(np.random.default_rng(seed).permutation(self.num_showers))
        return take(self.events, np.flatnonzero(rank[self.showers] < number))


def digest_of(events: EventArrays | EventHeaders) -> str:
    """Return a digest of the events' ids, primaries and N that does not depend on the order of the events."""
    digest = hashlib.sha256()
    order = np.lexsort((*events.primaries.T, *events.ids.T))
    for part in (events.ids, events.primaries, events.counts):
        digest.update(np.ascontiguousarray(part[order]).tobytes())
    return digest.hexdigest()[:16]


def read_pool(
    urls: Sequence[str], truth: UInt64[np.ndarray, "events 2"], *, vertical: bool, max_quarantined_share: float
) -> Pool:
    """Read the showers to train on, and leave out showers that are in the truth.

    Args:
        urls: paths, directories, globs or URLs.
        truth: ids of the true events.
        vertical: whether depth_m in the files is vertical.
        max_quarantined_share: largest share of rows that cannot be used.

    Raises:
        FileNotFoundError, ValueError: if the data cannot be used.
    """
    requests = [(Selection(vertical_depth=vertical), MAX_EVENTS)]
    (events,), _ = sample_events(manifest.event_files(urls), requests, max_quarantined_share=max_quarantined_share)
    if len(events.counts) == MAX_EVENTS:
        logger.warning("only %d events of --data are read, chosen at random", MAX_EVENTS)
    of_pool, of_truth = shower_numbers(events.ids, truth)
    held_out = np.isin(of_pool, of_truth)
    if held_out.any():
        logger.warning(
            "%d of %d showers of --data are in the truth, and are not trained on",
            len(np.unique(of_pool[held_out])),
            len(np.unique(of_pool)),
        )
        events = take(events, np.flatnonzero(~held_out))
    return Pool(events, shower_numbers(events.ids)[0])


def copied_sizes(trained: Sequence[int], available: int) -> list[int]:
    """Return the numbers of showers to copy: the trained numbers, then half decades up to all available showers."""
    sizes, size = {*trained, available}, max(trained) * math.sqrt(10)
    while size < available / 1.5:
        sizes.add(round(size))
        size *= math.sqrt(10)
    return sorted(sizes)
