"""Exchange tensors and numbers between ranks. Without a process group there is one rank and nothing to exchange."""

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor

_joined = False  # Whether this process has seen a process group.


def rank() -> int:
    """Return the rank of this process, 0 to world_size() - 1."""
    return dist.get_rank() if _is_one_of_several() else 0


def world_size() -> int:
    """Return the number of processes that train together."""
    return dist.get_world_size() if _is_one_of_several() else 1


def _is_one_of_several() -> bool:
    """Return whether there is a process group.

    Raises:
        RuntimeError: if there was one before. Ray Train destroys it under a running worker when it changes the number
            of workers of an elastic run. A rank that continued alone would save a state without the others' data.
    """
    global _joined  # noqa: PLW0603 - torch's process group is global too
    if dist.is_initialized():
        _joined = True
    # Never back to rank 0 of 1: it would write checkpoints and delete those of the run.
    elif _joined:
        msg = (
            "the process group of this worker was destroyed while it trained; "
            "the run continues from the last checkpoint"
        )
        raise RuntimeError(msg)
    return _joined


def sum_over_ranks(buffer: Tensor) -> Tensor:
    """Sum a buffer over all ranks in place and return it; every rank gets the sum."""
    if world_size() > 1:
        dist.all_reduce(buffer)
    return buffer


def from_rank_zero(values: Sequence[float], device: torch.device) -> list[float]:
    """Return rank 0's numbers on every rank."""
    if world_size() == 1:
        return list(values)
    # Double precision: step numbers and seconds above 2^24 have to arrive exactly.
    buffer = torch.tensor(values, dtype=torch.float64, device=device)
    dist.broadcast(buffer, 0)
    numbers: list[float] = buffer.tolist()  # device sync
    return numbers


def bytes_from_rank_zero(content: bytes, device: torch.device) -> bytes:
    """Return rank 0's bytes on every rank; `content` of the other ranks is ignored."""
    if world_size() == 1:
        return content
    # The others must know the size before they can receive.
    (length,) = from_rank_zero([float(len(content))], device)
    buffer = torch.empty(int(length), dtype=torch.uint8, device=device)
    if rank() == 0:
        buffer.copy_(torch.frombuffer(bytearray(content), dtype=torch.uint8) if content else buffer)
    dist.broadcast(buffer, 0)
    return buffer.cpu().numpy().tobytes()


def gather(values: Tensor) -> Tensor:
    """Return the tensors of all ranks, which have the same shape, stacked by rank [ranks, ...]."""
    if world_size() == 1:
        return values[None]
    # All ranks must send the same shape, or the exchange hangs.
    gathered = [torch.empty_like(values) for _ in range(world_size())]
    dist.all_gather(gathered, values)
    return torch.stack(gathered)
