"""EventBatch: whole events as flat tensors. Muons cannot part from their primary here."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Float32, Int64
from torch import Tensor

from crmuons.data.events import EventArrays


@dataclass(frozen=True)
class EventBatch:
    """Some events. The muons of event i are the rows offsets[i] .. offsets[i + 1] of `muons`.

    Attributes:
        ids: shower ids (major, minor); the 64 bits of the contract's uint64, which torch keeps as int64.
        primaries: energy_gev, zenith_rad, mass_gev, depth_m (slant).
        counts: muons of each event; their sum is the number of muons.
        muons: energy_gev, x_m, y_m across the shower axis.
    """

    ids: Int64[Tensor, "events 2"]
    primaries: Float32[Tensor, "events 4"]
    counts: Int64[Tensor, " events"]
    muons: Float32[Tensor, "muons 3"]

    def __len__(self) -> int:
        return self.counts.shape[0]

    @property
    def num_muons(self) -> int:
        return self.muons.shape[0]

    @cached_property
    def offsets(self) -> Int64[Tensor, " bounds"]:
        """Where each event's muons start; the last entry is the number of muons."""
        return torch.nn.functional.pad(self.counts.cumsum(0), (1, 0))

    @cached_property
    def event_of_muon(self) -> Int64[Tensor, " muons"]:
        """The event each muon belongs to, in ascending order."""
        events = torch.arange(len(self), device=self.counts.device)
        return torch.repeat_interleave(events, self.counts, output_size=self.num_muons)

    @classmethod
    def from_arrays(cls, arrays: EventArrays, *, copy: bool = True) -> "EventBatch":
        """Flat arrays as tensors.

        Args:
            arrays: events.
            copy: False: tensors share the arrays' memory where it can be written (Arrow's cannot).
        """
        ids, primaries, counts, muons = (
            np.array(array) if copy else np.require(array, requirements=("C", "W"))
            for array in (arrays.ids, arrays.primaries, arrays.counts, arrays.muons)
        )
        return cls(
            ids=torch.from_numpy(ids.view(np.int64)),
            primaries=torch.from_numpy(primaries),
            counts=torch.from_numpy(counts),
            muons=torch.from_numpy(muons),
        )

    def to_arrays(self) -> EventArrays:
        """The same events as numpy arrays on the host."""
        return EventArrays(
            ids=self.ids.cpu().numpy().view(np.uint64),
            primaries=self.primaries.cpu().numpy(),
            counts=self.counts.cpu().numpy(),
            muons=self.muons.cpu().numpy(),
        )

    @classmethod
    def concat(cls, batches: Sequence["EventBatch"]) -> "EventBatch":
        """The events of several batches, in order."""
        return cls(
            ids=torch.cat([batch.ids for batch in batches]),
            primaries=torch.cat([batch.primaries for batch in batches]),
            counts=torch.cat([batch.counts for batch in batches]),
            muons=torch.cat([batch.muons for batch in batches]),
        )

    def take(self, events: Int64[Tensor, " chosen"]) -> "EventBatch":
        """The chosen events, in the order given, each with its muons."""
        counts = self.counts[events]
        starts = self.offsets[:-1][events]
        ends = counts.cumsum(0)
        num_muons = int(counts.sum())  # device sync
        shift = torch.repeat_interleave(starts - (ends - counts), counts, output_size=num_muons)
        muons = self.muons[torch.arange(num_muons, device=counts.device) + shift]
        return EventBatch(self.ids[events], self.primaries[events], counts, muons)

    def slice(self, start: int, stop: int) -> "EventBatch":
        """Events start .. stop - 1, as views."""
        first, last = int(self.offsets[start]), int(self.offsets[stop])  # device sync
        return EventBatch(
            self.ids[start:stop], self.primaries[start:stop], self.counts[start:stop], self.muons[first:last]
        )

    def with_muons(self) -> "EventBatch":
        """The events that have muons; empty ones carry no kinematics."""
        kept = self.counts > 0
        return EventBatch(self.ids[kept], self.primaries[kept], self.counts[kept], self.muons)

    def at_most(self, muons: int) -> "EventBatch":
        """The first muons of each event, no more than so many."""
        place = torch.arange(self.num_muons, device=self.counts.device) - self.offsets[:-1][self.event_of_muon]
        return EventBatch(self.ids, self.primaries, self.counts.clamp(max=muons), self.muons[place < muons])

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> "EventBatch":
        """The same events on a device."""
        return EventBatch(
            *(
                tensor.to(device, non_blocking=non_blocking)
                for tensor in (self.ids, self.primaries, self.counts, self.muons)
            )
        )
