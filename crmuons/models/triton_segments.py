"""Triton kernels for the two operations between events and muons. They are imported on NVIDIA GPUs only (segments.py)."""

import torch
import triton
import triton.language as tl
from torch import Tensor

ROWS_OF_SUM = 8  # Rows that one program reads at once; most events of sparse data have fewer muons.
ROWS_OF_SPREAD = 32


@triton.jit
def _sum(values, starts, counts, sums, stride, width, ROWS: tl.constexpr, COLUMNS: tl.constexpr):  # noqa: PLR0917
    # 64 bits, because 34 million muons of 64 numbers are more than 32 bits can count.
    event = tl.program_id(0).to(tl.int64)
    first = tl.load(starts + event)
    number = tl.load(counts + event)
    rows = tl.arange(0, ROWS)
    columns = tl.arange(0, COLUMNS)
    # Single precision also for bfloat16, because sums in bfloat16 stop growing at 256. The ROWS partial sums are added at
    # the end.
    total = tl.zeros((ROWS, COLUMNS), tl.float32)
    # One program adds up one event in a fixed order, so every run gives the same sum. Atomic adds would not.
    for row in range(0, number, ROWS):
        mask = (row + rows < number)[:, None] & (columns < width)[None, :]
        total += tl.load(values + (first + row + rows)[:, None] * stride + columns[None, :], mask=mask, other=0.0).to(
            tl.float32
        )
    tl.store(sums + event * width + columns, tl.sum(total, 0), mask=columns < width)


@triton.jit
def _spread(values, events, result, stride, width, muons, ROWS: tl.constexpr, COLUMNS: tl.constexpr):  # noqa: PLR0917
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    columns = tl.arange(0, COLUMNS)
    event = tl.load(events + rows, mask=rows < muons, other=0)
    mask = (rows < muons)[:, None] & (columns < width)[None, :]
    # Rows after the last muon get event 0, which exists; because of the mask they are neither read nor stored.
    content = tl.load(values + event[:, None] * stride + columns[None, :], mask=mask, other=0.0)
    tl.store(result + rows[:, None] * width + columns[None, :], content, mask=mask)


@triton.jit
def _add_spread(  # noqa: PLR0917
    values,
    addend,
    events,
    signs,
    stride,
    width,
    muons,
    slope,
    MASKED: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    columns = tl.arange(0, COLUMNS)
    event = tl.load(events + rows, mask=rows < muons, other=0)
    mask = (rows < muons)[:, None] & (columns < width)[None, :]
    places = rows[:, None] * width + columns[None, :]
    total = tl.load(values + places, mask=mask, other=0.0).to(tl.float32)
    total += tl.load(addend + event[:, None] * stride + columns[None, :], mask=mask, other=0.0).to(tl.float32)
    sign = total
    if MASKED:
        sign = tl.load(signs + places, mask=mask, other=0.0).to(tl.float32)
    # A result of 0 gets `slope`, as in torch's LeakyReLU: forward and backward must agree on every slope.
    tl.store(values + places, tl.where(sign > 0, total, total * slope), mask=mask)


def add_spread_leaky_(values: Tensor, addend: Tensor, events: Tensor, signs: Tensor | None, slope: float) -> Tensor:
    """Add to each muon the row of its event, and multiply negative results by `slope`, in place.

    Args:
        values: a contiguous row for each muon.
        addend: a row for each event.
        events: event of each muon.
        signs: numbers like `values`; if given, their signs decide instead of the signs of the results.
        slope: the slope of LeakyReLU.
    """
    rows = _rows(addend)
    muons, width = values.shape
    if muons:
        _add_spread[(triton.cdiv(muons, ROWS_OF_SPREAD),)](
            values, rows, events, values if signs is None else signs, rows.stride(0), width, muons, slope,
            signs is not None, ROWS_OF_SPREAD, triton.next_power_of_2(width),
        )  # fmt: skip
    return values


def segment_sum(values: Tensor, starts: Tensor, counts: Tensor) -> Tensor:
    """Return the sum of the rows of each event [events, width], added in single precision."""
    rows = _rows(values)
    events, width = len(counts), values.shape[1]
    sums = torch.empty(events, width, dtype=values.dtype, device=values.device)
    # A kernel cannot be launched with no programs.
    if events:
        _sum[(events,)](
            rows, starts, counts, sums, rows.stride(0), width, ROWS_OF_SUM, triton.next_power_of_2(width), num_warps=2
        )
    return sums


def spread(values: Tensor, events: Tensor) -> Tensor:
    """Return for each muon the row of its event [muons, width]."""
    rows = _rows(values)
    muons, width = len(events), values.shape[1]
    result = torch.empty(muons, width, dtype=values.dtype, device=values.device)
    if muons:
        _spread[(triton.cdiv(muons, ROWS_OF_SPREAD),)](
            rows, events, result, rows.stride(0), width, muons, ROWS_OF_SPREAD, triton.next_power_of_2(width)
        )
    return result


def _rows(values: Tensor) -> Tensor:
    """Return values whose rows are contiguous; the kernels take any distance between rows."""
    return values if values.stride(1) == 1 else values.contiguous()
