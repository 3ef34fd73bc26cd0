"""What ranks exchange. Without a process group there is one rank, and nothing is exchanged."""

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor

_joined = False  # Whether this process has been one of several.


def rank() -> int:
    """This process's number, 0 to world_size() - 1."""
    return dist.get_rank() if _is_one_of_several() else 0


def world_size() -> int:
    """How many processes train together."""
    return dist.get_world_size() if _is_one_of_several() else 1


def _is_one_of_several() -> bool:
    """Whether there is a process group.

    Raises:
        RuntimeError: if there was one. Ray Train takes it down under a running worker when it changes the number of workers of
            an elastic run; a rank that went on alone would save a state in which the others' data are missing.
    """
    global _joined  # noqa: PLW0603 - torch's process group is the process's too
    if dist.is_initialized():
        _joined = True
    elif _joined:
        msg = (
            "the process group of this worker was taken down while it trained; the run goes on from its last checkpoint"
        )
        raise RuntimeError(msg)
    return _joined


def sum_over_ranks(buffer: Tensor) -> Tensor:
    """Add up a buffer over all ranks, in place; every rank gets the sum."""
    if world_size() > 1:
        dist.all_reduce(buffer)
    return buffer


def from_rank_zero(values: Sequence[float], device: torch.device) -> list[float]:
    """Rank 0's numbers, on every rank."""
    if world_size() == 1:
        return list(values)
    buffer = torch.tensor(values, dtype=torch.float64, device=device)
    dist.broadcast(buffer, 0)
    numbers: list[float] = buffer.tolist()  # device sync
    return numbers


def bytes_from_rank_zero(content: bytes, device: torch.device) -> bytes:
    """Rank 0's bytes, on every rank; those of the other ranks are not looked at."""
    if world_size() == 1:
        return content
    (length,) = from_rank_zero([float(len(content))], device)
    buffer = torch.empty(int(length), dtype=torch.uint8, device=device)
    if rank() == 0:
        buffer.copy_(torch.frombuffer(bytearray(content), dtype=torch.uint8) if content else buffer)
    dist.broadcast(buffer, 0)
    return buffer.cpu().numpy().tobytes()


def gather(values: Tensor) -> Tensor:
    """Every rank's tensor of the same shape, stacked by rank [ranks, ...]."""
    if world_size() == 1:
        return values[None]
    gathered = [torch.empty_like(values) for _ in range(world_size())]
    dist.all_gather(gathered, values)
    return torch.stack(gathered)
