"""The batch of the training step: events laid out so that every size is known before they reach a device."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from crmuons import config
from crmuons.data.events import EventArrays
from crmuons.data.runs import chain
from crmuons.models.ragged import Ragged


class RealEvents(NamedTuple):
    """Which events of a padded batch (packed.py) are real.

    Attributes:
        is_real: 1 for each real event and 0 for each dummy event.
        number: number of the real events.
    """

    is_real: Float[Tensor, " events"]
    number: Float[Tensor, ""]


@dataclass(frozen=True)
class Real:
    """The real events of a padded batch, in three sets of events."""

    all: RealEvents
    nonempty: RealEvents
    penalised: RealEvents


@dataclass(frozen=True)
class TrainingBatch:
    """One rank's batch of a training step.

    The thread that reads data builds it on the host, so that the step never waits for a size from the device.

    Attributes:
        primaries: primaries of all events. The multiplicity model learns from these, also from events without muons.
        counts: numbers of muons of all events.
        nonempty: indices of the events with muons. Generator and critic learn from these only.
        muons: muons of the nonempty events, at most `train.muons_per_event` of each; energy_gev, x_m, y_m come first.
        weights: weights of the nonempty events in the losses of generator and critic: their number of muons in `muons`
            to the power `train.weight_power`.
        ragged: layout of the muons of the nonempty events.
        penalty_layout: layout of the first nonempty events, on which the gradient penalty is computed.
        real: which events of a padded batch are real; None without dummy events.
    """

    primaries: Float[Tensor, "all 4"]
    counts: Int64[Tensor, " all"]
    nonempty: Int64[Tensor, " events"]
    muons: Float[Tensor, "muons numbers"]
    weights: Float[Tensor, " events"]
    ragged: Ragged
    penalty_layout: Ragged
    real: Real | None = None

    @classmethod
    def from_events(cls, events: EventArrays, train: config.Train) -> "TrainingBatch":
        """Lay out events on the host, in their order.

        Args:
            events: a batch. The tensors share its memory if it is writable.
            train: the largest number of muons of an event, the weights, and the share of events for the penalty.
        """
        nonempty = np.flatnonzero(events.counts)
        kept = events.counts[nonempty]
        # Keep the first muons of each event: the reader has already put a random choice of muons first.
        muons = chain([events]).first_muons(train.muons_per_event)
        if train.muons_per_event is not None:
            kept = np.minimum(kept, train.muons_per_event)
        counts = torch.from_numpy(kept)
        ragged = Ragged.from_counts(counts)
        chosen = num_penalised(train.penalty, len(counts))
        # If all events are penalised, both layouts are one object: Objective then takes scores and penalty from one
        # pass.
        part = ragged if chosen == len(counts) else Ragged.from_counts(counts[:chosen])
        # The weight depends on the kept muons and not on N, because the event's loss depends only on the kept muons.
        weights = counts.float() ** train.weight_power
        primaries, all_counts, kept_muons = (_tensor(array) for array in (events.primaries, events.counts, muons))
        return cls(primaries, all_counts, torch.from_numpy(nonempty), kept_muons, weights, ragged, part)

    def real_events_of(self, name: str) -> RealEvents | None:
        """Return which of a term's events are real; None if all are real."""
        if self.real is None:
            return None
        # Each term has one value for each event of its own set, and the sets have different lengths.
        sets = {"multiplicity_loss": self.real.all, "gradient_penalty": self.real.penalised}
        return sets.get(name, self.real.nonempty)

    def to(self, device: torch.device, *, non_blocking: bool = False) -> "TrainingBatch":
        """Return the batch on a device."""
        return self._each(lambda part: part.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> "TrainingBatch":
        """Return the batch in page-locked memory, from which a GPU copies asynchronously."""
        return self._each(lambda part: part.pin_memory())

    def _each(self, change: Callable[[Any], Any]) -> "TrainingBatch":
        # Objective asks whether the two layouts are the same object, so that must be kept.
        ragged = change(self.ragged)
        penalty_layout = ragged if self.penalty_layout is self.ragged else change(self.penalty_layout)
        tensors = (self.primaries, self.counts, self.nonempty, self.muons, self.weights)
        primaries, counts, nonempty, muons, weights = (change(tensor) for tensor in tensors)
        return TrainingBatch(primaries, counts, nonempty, muons, weights, ragged, penalty_layout)


def num_penalised(penalty: config.Penalty, events: int) -> int:
    """Return on how many of a batch's nonempty events the gradient penalty is computed."""
    return min(math.ceil(events * penalty.sample_fraction), penalty.max_pairs or events)


def _tensor(array: np.ndarray) -> Tensor:
    """Return an array as a tensor. It is copied if it is read-only, as Arrow's memory is."""
    # torch warns about read-only memory, and a write to a mapped file's pages would end the process.
    return torch.from_numpy(np.require(array, requirements=("C", "W")))
