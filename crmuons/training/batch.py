"""Sets: a batch of events as the training step takes it, with every size known before it reaches a device."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float32, Int64
from torch import Tensor

from crmuons import config
from crmuons.batch import EventBatch
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
    def of(cls, batch: EventBatch, train: config.Train) -> "Sets":
        """The sets of a batch on the host, in the batch's order."""
        events = batch.with_muons()
        if train.muons_per_event is not None:
            events = events.at_most(train.muons_per_event)
        ragged = Ragged.from_counts(events.counts)
        chosen = _num_penalised(train.penalty, len(events))
        part = ragged if chosen == len(events) else Ragged.from_counts(events.counts[:chosen])
        filled, weights = batch.counts.nonzero()[:, 0], events.counts.float() ** train.weight_power
        return cls(batch.primaries, batch.counts, filled, events.muons, weights, ragged, part)

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
