"""Batches of fixed sizes, so that a GPU can repeat a step as a CUDA graph.

A graph replays kernels with the shapes and addresses of its capture. The numbers of events and muons differ from batch
to batch, so they are rounded up to a Bucket, and dummy events of weight 0 fill the rest:

1. `PackedBatch.from_events`, in the thread that reads: copy a batch, without the muons above the cap, into one block of
   page-locked memory.
2. `PackedBatch.to`: send the block to the device on a separate stream, while the step before computes.
3. `lay_out`, on the device and in the graph: make the TrainingBatch. Every operation has the bucket's shapes.

The random numbers that a GPU draws depend on how many it draws. A bucket is therefore a function of the step's batches
alone, and a resumed run draws the same noise as an uninterrupted run.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor

from crmuons import config
from crmuons.data.events import EventArrays
from crmuons.data.runs import chain
from crmuons.models.ragged import Ragged
from crmuons.training.batch import Real, RealEvents, TrainingBatch, num_penalised

HEADER_BYTES = 64  # Room for eight integers; Sizes has six.
LEGAL_PRIMARY = (1e6, 0.0, 1.0, 1000.0)  # Primary of dummy events. It must be legal, because features take logarithms.
LEGAL_MUON = 1.0
# torch's segment sum on a GPU adds an event's muons in one thread, so a dummy event must have few muons.
MUONS_OF_A_DUMMY = 16
# Sizes are rounded up to multiples of at least these numbers: small batches differ more, each bucket needs a graph, and
# a GPU takes as long for 1,000 muons as for none.
LEAST_EVENTS, LEAST_MUONS = 256, 1024


class Sizes(NamedTuple):
    """Sizes of a batch: all events, events with muons, muons after the cap, penalised events and their muons, and the
    numbers of a muon."""

    events: int
    nonempty: int
    muons: int
    penalised: int
    penalised_muons: int
    width: int = 3


@dataclass(frozen=True)
class Bucket:
    """Sizes of the tensors of a step, dummy events and their muons included; `penalised` is 0 if all events are."""

    events: int
    nonempty: int
    muons: int
    penalised: int
    penalised_muons: int
    width: int = 3

    @classmethod
    def of(cls, batches: Sequence[Sizes], capacity: int, *, all_penalised: bool) -> "Bucket":
        """Return the bucket for all batches of a step.

        Args:
            batches: sizes of the step's batches.
            capacity: number of events in the packed memory.
            all_penalised: whether the penalty is computed on all events, by the settings.
        """
        width = batches[0].width
        # At least one more muon, because the dummy events must have one (see Ragged.max).
        # All batches of a step share one bucket: a graph has one set of shapes, and the largest batch decides.
        muons = _rounded_up(1 + max(sizes.muons for sizes in batches), LEAST_MUONS)
        nonempty = max(_with_room(sizes.nonempty, muons - sizes.muons) for sizes in batches)
        if all_penalised:
            # 0 and not the number of nonempty events: the penalty then takes the layout of the whole batch, in the same
            # pass.
            return cls(capacity, nonempty, muons, 0, 0, width)
        part_muons = min(_rounded_up(1 + max(sizes.penalised_muons for sizes in batches), LEAST_MUONS), muons)
        part = max(_with_room(sizes.penalised, part_muons - sizes.penalised_muons) for sizes in batches)
        # The penalised events are the first of the batch, so they cannot be more than its slots.
        return cls(capacity, nonempty, muons, min(part, nonempty), part_muons, width)

    @property
    def bytes(self) -> int:
        """Bytes of a packed batch of these sizes."""
        return _bytes(self.events, self.muons, self.width)


def _rounded_up(number: int, least: int) -> int:
    """Round up to one of 16 steps between powers of two: 2 % more on average, and few different sizes."""
    # The highest bit and the four below it are kept: 16 sizes between two powers of two.
    step = max(least, 1 << max(0, number.bit_length() - 5))
    return -(-number // step) * step


def _with_room(events: int, missing_muons: int) -> int:
    """Return the size for events and for the dummy events that hold the missing muons, at least one dummy event."""
    return _rounded_up(events + 1 + -(-missing_muons // MUONS_OF_A_DUMMY), LEAST_EVENTS)


def _bytes(events: int, muons: int, width: int) -> int:
    # An event is four float32 of its primary and N as int64; a muon is three float32, or more.
    return HEADER_BYTES + 24 * events + 4 * width * muons


@dataclass(frozen=True)
class PackedBatch:
    """A batch in one block of memory: sizes, primaries, counts, and muons as capped, in this order.

    Attributes:
        sizes: what the batch holds.
        capacity: events that the block has room for.
        content: the bytes.
        copied: event that a GPU records when the copy has ended; None before a copy to a GPU.
    """

    sizes: Sizes
    capacity: int
    content: Tensor
    copied: "torch.cuda.Event | None" = None

    @classmethod
    def from_events(cls, events: EventArrays, train: config.Train, *, pin_memory: bool) -> "PackedBatch":
        """Copy a batch into one block of memory, page-locked if asked for.

        Args:
            events: a batch.
            train: the largest number of muons of an event, and the share of events for the penalty.
            pin_memory: whether a GPU will copy the block. Torch reuses it when no copy needs it any more.
        """
        counts, number = events.counts, len(events.counts)
        runs = chain([events])
        views = runs.views_of_muons(train.muons_per_event)
        num_nonempty, num_muons = int(np.count_nonzero(counts)), sum(map(len, views))
        chosen, chosen_muons = num_penalised(train.penalty, num_nonempty), num_muons
        if chosen < num_nonempty:
            first_counts = counts[np.flatnonzero(counts)[:chosen]]
            chosen_muons = int(np.minimum(first_counts, train.muons_per_event or num_muons).sum())
        width = views[0].shape[1]
        sizes = Sizes(number, num_nonempty, num_muons, chosen, chosen_muons, width)
        # A batch may end early (data.max_muons_per_batch); with the full capacity it needs no other graph.
        capacity = max(number, train.events_per_worker)
        content = torch.empty(_bytes(capacity, sizes.muons, width), dtype=torch.uint8, pin_memory=pin_memory)
        # Views of one block, so that one copy takes it to the GPU instead of four.
        header, primaries, room, muons = _views(content.numpy(), capacity, width)
        header[: len(sizes)] = sizes
        # The rows after the batch go to the device too. They must hold a legal primary and N = 0, not old content of
        # the memory.
        primaries[number:], room[number:] = LEGAL_PRIMARY, 0
        room[:number] = counts
        # Each number is read once, mostly from a mapped file, and written once.
        np.concatenate([run.primaries for run in runs.runs], out=primaries[:number])
        np.concatenate(views, out=muons)
        return cls(sizes, capacity, content)

    def to(self, device: torch.device, *, non_blocking: bool = False) -> "PackedBatch":
        """Return the batch on a device. A GPU copies it on a separate stream."""
        if device.type != "cuda" or self.copied is not None:
            return self
        stream = _copy_stream(device)
        with torch.cuda.stream(stream):
            content = self.content.to(device, non_blocking=non_blocking)
            return replace(self, content=content, copied=stream.record_event())

    def values(self) -> tuple[Tensor, Tensor]:
        """Return the primaries, [events, 4], and the muons, [muons, numbers], on the CPU."""
        _, primaries, _, muons = _views(self.content.cpu().numpy(), self.capacity, self.sizes.width)
        return torch.from_numpy(primaries[: self.sizes.events]), torch.from_numpy(muons)

    def copy_into(self, memory: Tensor) -> None:
        """Copy the batch to the start of a graph's input memory, on the current stream.

        Keep the batch until the device has copied it, because its memory belongs to the stream that copied it.
        """
        if self.copied is not None:
            # The device waits, not the host.
            torch.cuda.current_stream(memory.device).wait_event(self.copied)
        memory[: len(self.content)].copy_(self.content, non_blocking=True)


@cache
def _copy_stream(device: torch.device) -> "torch.cuda.Stream":
    return torch.cuda.Stream(device)


def _views(content: np.ndarray, capacity: int, width: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return a block's sizes, primaries [capacity, 4], counts [capacity] and muons [muons, width] as views."""
    primaries, counts, muons = HEADER_BYTES, HEADER_BYTES + 16 * capacity, HEADER_BYTES + 24 * capacity
    return (
        content[:primaries].view(np.int64),
        content[primaries:counts].view(np.float32).reshape(-1, 4),
        content[counts:muons].view(np.int64),
        content[muons:].view(np.float32).reshape(-1, width),
    )


def lay_out(content: Tensor, bucket: Bucket, train: config.Train) -> TrainingBatch:
    """Return the batch in a block on its device, with the bucket's sizes. No operation's shape depends on the batch.

    Args:
        content: bytes of a packed batch, and any bytes after it, up to `bucket.bytes`.
        bucket: sizes of the tensors.
        train: the largest number of muons of an event, and the weights.
    """
    primaries_end, counts_end = HEADER_BYTES + 16 * bucket.events, HEADER_BYTES + 24 * bucket.events
    # The numbers stay tensors: reading one would end the graph, and make the host wait.
    header = content[:HEADER_BYTES].view(torch.int64)
    events, num_nonempty, num_muons, num_chosen, num_chosen_muons = header[:5].unbind()
    primaries = content[HEADER_BYTES:primaries_end].view(torch.float32).view(-1, 4)
    counts = content[primaries_end:counts_end].view(torch.int64)
    muons = content[counts_end : bucket.bytes].view(torch.float32).view(-1, bucket.width)
    # The rows after the batch's muons hold muons of earlier batches.
    muons = muons.masked_fill((_numbers(muons) >= num_muons)[:, None], LEGAL_MUON)

    rows, slots = _numbers(counts), torch.arange(bucket.nonempty, device=content.device)
    empty = counts == 0
    place = (~empty).cumsum(0).sub_(1).masked_fill_(empty, bucket.nonempty)  # The last slot takes all empty events.
    nonempty = torch.zeros(bucket.nonempty + 1, dtype=torch.int64, device=content.device)
    nonempty = nonempty.scatter_(0, place, rows)[:-1]
    # `counts` stays the true N, for the multiplicity model; the muons above the cap were left out by the host.
    kept = counts.index_select(0, nonempty)
    if train.muons_per_event is not None:
        kept = kept.clamp(max=train.muons_per_event)
    kept = _with_dummies(kept, num_nonempty, bucket.muons - num_muons)
    ragged = Ragged(kept, bucket.muons)
    # Exact up to 2^24 events or muons, above which float32 skips integers; a batch has far fewer events.
    numbers = header.float()
    real = RealEvents((slots < num_nonempty).float(), numbers[1])
    weights = kept.float() ** train.weight_power * real.is_real
    # The same object as `ragged`: Objective takes it as the sign that all events are penalised.
    part, penalised = ragged, real
    if bucket.penalised:
        missing = bucket.penalised_muons - num_chosen_muons
        part = Ragged(_with_dummies(kept[: bucket.penalised], num_chosen, missing), bucket.penalised_muons)
        penalised = RealEvents((slots[: bucket.penalised] < num_chosen).float(), numbers[3])
    everything = RealEvents((rows < events).float(), numbers[0])
    return TrainingBatch(primaries, counts, nonempty, muons, weights, ragged, part, Real(everything, real, penalised))


def _numbers(rows: Tensor) -> Int64[Tensor, " rows"]:
    return torch.arange(len(rows), device=rows.device)


def _with_dummies(counts: Tensor, num_real: Tensor, missing: Tensor) -> Int64[Tensor, " events"]:
    """Return counts in which the events after the first `num_real` share the missing muons."""
    behind = _numbers(counts) - num_real
    # At least one, see `_with_room`, so that the division below is defined.
    dummies = len(counts) - num_real
    # As evenly as possible, because the longest event determines the time of a segment sum.
    shared = missing // dummies + (behind < missing % dummies)
    return torch.where(behind < 0, counts, shared)
