"""Sums over the muons of each event, and the event's row for each muon: in Triton on an NVIDIA GPU, otherwise in torch.

On an H200 torch's index_select and embedding_bag write rows of 64 numbers at an eighth of the memory's speed, and took
a quarter of a step.
"""

import logging
from functools import cache
from types import ModuleType

import torch
from torch import Tensor
from torch.nn.functional import leaky_relu_

from crmuons.models.formulas import SLOPE

logger = logging.getLogger(__name__)

DTYPES = (torch.float32, torch.bfloat16)
LEAST_WIDTH = 16  # Rows of a few numbers leave most threads of a kernel idle.


def segment_sum(values: Tensor, muons: Tensor, starts: Tensor, counts: Tensor) -> Tensor:
    """Return the sum of the rows of each event [events, width].

    Args:
        values: a row for each muon.
        muons: the numbers 0, 1, ... of the muons.
        starts: first muon of each event.
        counts: number of muons of each event.
    """
    kernels = _kernels_for(values)
    if kernels is not None:
        sums: Tensor = kernels.segment_sum(values, starts, counts)
        return sums
    # embedding_bag is twice as fast as index_add on a CPU (27,000 muons x 64 features: 0.30 ms against 0.68 ms).
    # Sums are in single precision, because sums in bfloat16 would stop growing at 256 muons: 256 + 1 rounds to 256.
    precise = values if values.dtype in (torch.float32, torch.float64) else values.float()
    return torch.nn.functional.embedding_bag(muons, precise, starts, mode="sum").to(values.dtype)


def spread(values: Tensor, events: Tensor) -> Tensor:
    """Return for each muon the row of its event [muons, width].

    Args:
        values: a row for each event.
        events: event of each muon.
    """
    kernels = _kernels_for(values)
    if kernels is None:
        return values.index_select(0, events)
    result: Tensor = kernels.spread(values, events)
    return result


def linear_leaky(values: Tensor, weight: Tensor, addend: Tensor, events: Tensor, signs: Tensor | None = None) -> Tensor:
    """Return LeakyReLU(values @ weight.T + the row of each muon's event) [muons, width].

    Args:
        values: a row for each muon.
        weight: [width, width of values].
        addend: a row for each event.
        events: event of each muon.
        signs: outputs of an earlier LeakyReLU [muons, width]; if given, its slopes are used.
    """
    kernels = _kernels_for(addend)
    if kernels is not None:
        result: Tensor = kernels.add_spread_leaky_(values @ weight.T, addend, events, signs, SLOPE)
        return result
    # In place, because tensors with one row per muon are the largest of a step, and each new tensor costs a pass through
    # memory.
    sums = spread(addend, events).addmm_(values, weight.T)
    return leaky_relu_(sums, SLOPE) if signs is None else leaky_relu_grad_(sums, signs)


def leaky_relu_grad(values: Tensor, activation: Tensor) -> Tensor:
    """Multiply by LeakyReLU's slope, given its output `activation`, which has the sign of its input."""
    result: Tensor = torch.ops.aten.leaky_relu_backward(values, activation, SLOPE, True)
    return result


def leaky_relu_grad_(values: Tensor, activation: Tensor) -> Tensor:
    """Do the same as `leaky_relu_grad`, in place."""
    torch.ops.aten.leaky_relu_backward.grad_input(values, activation, SLOPE, True, grad_input=values)
    return values


def _kernels_for(values: Tensor) -> ModuleType | None:
    # Double precision is for tests, which compare with autograd on torch's own kernels.
    if not values.is_cuda or values.dtype not in DTYPES or values.shape[1] < LEAST_WIDTH:
        return None
    return _kernels(values.device)


@cache
def _kernels(device: torch.device) -> ModuleType | None:
    """Return the Triton kernels if they can be compiled here and are right; it takes a second."""
    try:
        from crmuons.models import triton_segments  # noqa: PLC0415 - only torch's builds for GPUs bring Triton

        # The test has an event without muons, an event with more muons than a program reads at once, and a width that is no
        # power of two.
        # Sums of small integers are exact in any order, so the results must be equal to the last bit.
        counts = torch.tensor([3, 0, 40, 1], device=device)
        values = torch.arange(44 * 24, device=device).reshape(44, 24).float()
        events = torch.repeat_interleave(torch.arange(4, device=device), counts)
        sums = triton_segments.segment_sum(values, counts.cumsum(0) - counts, counts)
        expected = torch.zeros(4, 24, device=device).index_add_(0, events, values)
        signs = -values
        added = triton_segments.add_spread_leaky_(values.clone(), expected, events, signs, 0.5)
        if (
            torch.equal(sums, expected)
            and torch.equal(triton_segments.spread(sums, events), expected[events])
            and torch.equal(added, (values + expected[events]) * torch.where(signs > 0, 1.0, 0.5))
        ):
            return triton_segments
        reason = "they give wrong numbers"
    except Exception as error:  # noqa: BLE001 - a compiler fails in many ways, and torch's kernels do the same work
        reason = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
    logger.warning(
        "Triton's kernels cannot be used on this machine (%s); torch's take their place, and a step takes up to a third "
        "longer. Triton needs a C compiler",
        reason,
    )
    return None
