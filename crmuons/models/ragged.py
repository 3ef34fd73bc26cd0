"""Sums over the muons of each event, and copies of each event's row for its muons. Both can be differentiated twice.

Torch's own segment sums either scatter row by row, which is slow, or lack the second derivative of a gradient penalty.
"""

from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from crmuons.models import segments

MAX = 2  # The number of the mode "max" in torch._embedding_bag.


class Ragged:
    """The layout of a batch: which muons belong to which event. The muons of each event are consecutive rows.

    Args:
        counts: number of muons of each event.
        num_muons: sum of the counts. It is an argument, so that the host need not wait for the device.
    """

    def __init__(self, counts: Int64[Tensor, " events"], num_muons: int) -> None:
        self.counts, self.num_muons = counts, num_muons
        # With output_size the host need not ask the device for the number of rows.
        self.event_of_muon = torch.repeat_interleave(counts, output_size=num_muons)
        # An event without muons starts where the next event starts: it is a bag of no rows, and its sum is 0.
        self.starts = counts.cumsum(0) - counts

    @cached_property
    def muons(self) -> Int64[Tensor, " muons"]:
        """Return the numbers 0, 1, ... of the muons, which torch's segment sums need."""
        return torch.arange(self.num_muons, device=self.counts.device)

    @classmethod
    def from_counts(cls, counts: Int64[Tensor, " events"]) -> "Ragged":
        """Return the layout of events with these counts."""
        return cls(counts, int(counts.sum()))  # device sync

    @cached_property
    def twice(self) -> "Ragged":
        """Return the layout of the events followed by the same number of events with the same counts."""
        # Real and fake events go through the critic together: half as many operations, each on twice the rows.
        return Ragged(torch.cat([self.counts] * 2), 2 * self.num_muons)

    @cached_property
    def divisors(self) -> Float[Tensor, "events 1"]:
        """Return the divisors of a mean: the counts, and 1 for an event without muons."""
        return self.counts.clamp(min=1)[:, None].to(torch.float32)

    @cached_property
    def root_divisors(self) -> Float[Tensor, "events 1"]:
        """Return the square roots of the divisors, by which the critic multiplies."""
        return self.divisors.sqrt()

    def to(self, device: torch.device, *, non_blocking: bool = False) -> "Ragged":
        """Return the same layout on a device. Only the counts are copied; the rest is computed there."""
        # This copies 8 bytes for each event, instead of 16 bytes for each muon.
        counts = self.counts.to(device, non_blocking=non_blocking)
        return self if counts is self.counts else Ragged(counts, self.num_muons)

    def pin_memory(self) -> "Ragged":
        """Return the same layout with the counts in page-locked memory."""
        return Ragged(self.counts.pin_memory(), self.num_muons)

    def sum(self, values: Float[Tensor, "muons features"]) -> Float[Tensor, "events features"]:
        """Return the sum over the muons of each event, 0 for an event without muons."""
        result: Tensor = _Sum.apply(values, self)  # type: ignore[no-untyped-call]
        return result

    def mean(self, values: Float[Tensor, "muons features"]) -> Float[Tensor, "events features"]:
        """Return the mean over the muons of each event, 0 for an event without muons."""
        return self.sum(values) / self.divisors.to(values.dtype)

    def broadcast(self, values: Float[Tensor, "events features"]) -> Float[Tensor, "muons features"]:
        """Return for each muon the row of its event."""
        result: Tensor = _Broadcast.apply(values, self)  # type: ignore[no-untyped-call]
        return result

    def max(self, values: Float[Tensor, "muons features"]) -> Float[Tensor, "events features"]:
        """Return the maximum over the muons of each event, which must have one. If muons are equal, one gets the gradient."""
        # Only the row numbers of the maxima are needed here; the gradient goes through `gather` below.
        precise = values.detach().to(torch.promote_types(values.dtype, torch.float32))
        rows = torch._embedding_bag(precise, self.muons, self.starts, mode=MAX)[3]
        # An event without muons takes the last row. Only padded batches (training/packed.py) have such events, and their
        # last row belongs to a dummy event. A row of a real event would get the gradients of these events.
        return values.gather(0, rows.masked_fill_((self.counts == 0)[:, None], self.num_muons - 1))


class _Sum(torch.autograd.Function):
    """The adjoint of _Broadcast."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, ragged: Ragged) -> Tensor:
        ctx.ragged = ragged
        return segments.segment_sum(values, ragged.muons, ragged.starts, ragged.counts)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return _Broadcast.apply(grad, ctx.ragged), None  # type: ignore[no-untyped-call]


class _Broadcast(torch.autograd.Function):
    """The adjoint of _Sum."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, ragged: Ragged) -> Tensor:
        ctx.ragged = ragged
        return segments.spread(values, ragged.event_of_muon)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        # The gradient of a plain sum is one number expanded to all rows, but the kernels need real rows in memory.
        return _Sum.apply(grad.contiguous(), ctx.ragged), None  # type: ignore[no-untyped-call]
