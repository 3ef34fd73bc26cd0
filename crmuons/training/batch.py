"""Sets: a batch of events as the training step takes it, with every size known before it reaches a device."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float32, Int64
from torch import Tensor

from crmuons import config
from crmuons.data.events import EventArrays
from crmuons.models.ragged import Ragged


@dataclass(frozen=True)
class Sets:
    """Made on the host, off the training thread; a step on it never asks a device for a size.

    Attributes:
        primaries, counts: of all events, the empty ones included, which the multiplicity model learns from.
        filled: the numbers of the events that have muons; the kinematics learn from these alone.
        muons: theirs, no more than `train.muons_per_event` of each: energy_gev, x_m, y_m.
        weights: of the filled events in the losses of generator and critic: their muons to the power `train.weight_power`.
        ragged: which muon belongs to which of the filled events.
        penalised: the layout of the first filled events, those whose gradients are penalised.
    """

    primaries: Float32[Tensor, "all 4"]
    counts: Int64[Tensor, " all"]
    filled: Int64[Tensor, " events"]
    muons: Float32[Tensor, "muons 3"]
    weights: Float32[Tensor, " events"]
    ragged: Ragged
    penalised: Ragged

    @classmethod
    def of(cls, events: EventArrays, train: config.Train) -> "Sets":
        """Lay out events on the host, in their order.

        Args:
            events: a batch. Tensors share its memory where that can be written.
            train: the cap on muons of an event, the weights and the share that is penalised.
        """
        nonempty = np.flatnonzero(events.counts)
        kept, muons = events.counts[nonempty], events.muons
        if train.muons_per_event is not None:
            muon_of_event = np.arange(len(muons)) - np.repeat(np.cumsum(kept) - kept, kept)
            muons = muons[muon_of_event < train.muons_per_event]
            kept = np.minimum(kept, train.muons_per_event)
        counts = torch.from_numpy(kept)
        ragged = Ragged.from_counts(counts)
        chosen = _num_penalised(train.penalty, len(counts))
        part = ragged if chosen == len(counts) else Ragged.from_counts(counts[:chosen])
        weights = counts.float() ** train.weight_power
        primaries, all_counts, muons = (_tensor(array) for array in (events.primaries, events.counts, muons))
        return cls(primaries, all_counts, torch.from_numpy(nonempty), muons, weights, ragged, part)

    def to(self, device: torch.device, *, non_blocking: bool = False) -> "Sets":
        """The same events on a device."""
        return self._each(lambda part: part.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> "Sets":
        """The same events in page-locked memory, from which a GPU copies without waiting."""
        return self._each(lambda part: part.pin_memory())

    def _each(self, change: Callable[[Any], Any]) -> "Sets":
        ragged = change(self.ragged)
        penalised = ragged if self.penalised is self.ragged else change(self.penalised)
        tensors = (self.primaries, self.counts, self.filled, self.muons, self.weights)
        primaries, counts, filled, muons, weights = (change(tensor) for tensor in tensors)
        return Sets(primaries, counts, filled, muons, weights, ragged, penalised)


def _num_penalised(penalty: config.Penalty, events: int) -> int:
    return min(math.ceil(events * penalty.sample_fraction), penalty.max_pairs or events)


def _tensor(array: np.ndarray) -> Tensor:
    """Return an array as a tensor. It is copied if it is read-only, as Arrow's memory is."""
    return torch.from_numpy(np.require(array, requirements=("C", "W")))
