"""Sums over the muons of each event and back: linear maps that can be differentiated any number of times.

Torch's own segment sums either scatter row by row or have no second derivative, which the gradient penalty needs.
"""

from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from crmuons.batch import EventBatch


class Ragged:
    """Which muons belong to which event.

    Args:
        counts: muons of each event.
        event_of_muon: the event of each muon, ascending.
    """

    def __init__(self, counts: Int64[Tensor, " events"], event_of_muon: Int64[Tensor, " muons"]) -> None:
        self.counts = counts
        self.event_of_muon = event_of_muon
        self.starts = counts.cumsum(0) - counts
        self.muons = torch.arange(event_of_muon.shape[0], device=counts.device)

    @classmethod
    def of(cls, batch: EventBatch) -> "Ragged":
        """The layout of a batch."""
        return cls(batch.counts, batch.event_of_muon)

    @classmethod
    def from_counts(cls, counts: Int64[Tensor, " events"]) -> "Ragged":
        """The layout of events with these counts."""
        events = torch.arange(counts.shape[0], device=counts.device)
        return cls(counts, torch.repeat_interleave(events, counts))

    def twice(self) -> "Ragged":
        """The layout of the events followed by as many events with the same counts."""
        events = self.counts.shape[0]
        return Ragged(torch.cat([self.counts] * 2), torch.cat([self.event_of_muon, self.event_of_muon + events]))

    def first(self, events: int) -> "Ragged":
        """The layout of the first events alone."""
        muons = int(self.counts[:events].sum())  # device sync
        return Ragged(self.counts[:events], self.event_of_muon[:muons])

    def sum(self, values: Float[Tensor, "muons features"]) -> Float[Tensor, "events features"]:
        """Sum over the muons of each event; 0 for an event without muons."""
        result: Tensor = _Sum.apply(values, self)  # type: ignore[no-untyped-call]
        return result

    def mean(self, values: Float[Tensor, "muons features"]) -> Float[Tensor, "events features"]:
        """Mean over the muons of each event; 0 for an event without muons."""
        return self.sum(values) / self.counts.clamp(min=1)[:, None].to(values.dtype)

    def spread(self, values: Float[Tensor, "events features"]) -> Float[Tensor, "muons features"]:
        """Give every muon its event's row."""
        result: Tensor = _Spread.apply(values, self)  # type: ignore[no-untyped-call]
        return result


class _Sum(torch.autograd.Function):
    """The adjoint of _Spread."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, ragged: Ragged) -> Tensor:
        ctx.ragged = ragged
        # Twice as fast as index_add on a CPU (27,000 muons x 64 features: 0.30 ms against 0.68 ms).
        # Sums in bfloat16 would stop growing at 256 muons, so they are taken in single precision.
        precise = values.to(torch.promote_types(values.dtype, torch.float32))
        sums = torch.nn.functional.embedding_bag(ragged.muons, precise, ragged.starts, mode="sum")
        return sums.to(values.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return _Spread.apply(grad, ctx.ragged), None  # type: ignore[no-untyped-call]


class _Spread(torch.autograd.Function):
    """The adjoint of _Sum."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, ragged: Ragged) -> Tensor:
        ctx.ragged = ragged
        return values.index_select(0, ragged.event_of_muon)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return _Sum.apply(grad.contiguous(), ctx.ragged), None  # type: ignore[no-untyped-call]
