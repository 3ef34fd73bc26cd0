"""Event headers: ids, primary and N of each event, without the muons. The driver of an evaluation holds only these."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
from jaxtyping import Float32, Int64, UInt64

from crmuons.data.events import EventArrays
from crmuons.evaluation.metrics.quantities import Counted, primary_features


@dataclass(frozen=True)
class EventHeaders:
    """Ids, primary and N of each event. They take 40 bytes per event; the muons take hundreds."""

    ids: UInt64[np.ndarray, "events 2"]
    primaries: Float32[np.ndarray, "events 4"]
    counts: Int64[np.ndarray, " events"]

    def __len__(self) -> int:
        return len(self.counts)

    @classmethod
    def of(cls, events: EventArrays) -> Self:
        """Return the headers of events."""
        return cls(events.ids, events.primaries, events.counts)

    @classmethod
    def concat(cls, parts: Sequence["EventHeaders"]) -> Self:
        """Join the headers of several sets of events, in order."""
        return cls(
            np.concatenate([part.ids for part in parts]),
            np.concatenate([part.primaries for part in parts]),
            np.concatenate([part.counts for part in parts]),
        )

    def take(self, rows: Int64[np.ndarray, " rows"]) -> "EventHeaders":
        """Return the headers of some of the events."""
        return EventHeaders(self.ids[rows], self.primaries[rows], self.counts[rows])

    def counted(self, showers: Int64[np.ndarray, " events"]) -> Counted:
        """Return the features of the primaries with N, and with the shower number of each event."""
        return Counted(primary_features(self.primaries), self.counts, showers)
