"""Exchange tensors and numbers between ranks. Without a process group there is one rank and nothing to exchange."""

import logging
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import Tensor

logger = logging.getLogger(__name__)

SAY_AFTER_S = 5.0
LOOK_S = 1.0
SAYING_RANKS = 2  # Only these ranks warn: warnings of all waiting ranks would hide the message of the late rank.

_joined = False  # Whether this process has seen a process group.


def rank() -> int:
    """Return the rank of this process, 0 to world_size() - 1."""
    return dist.get_rank() if _is_one_of_several() else 0


def world_size() -> int:
    """Return the number of processes that train together."""
    return dist.get_world_size() if _is_one_of_several() else 1


class _Wait:
    """The time when this process began to wait for other ranks (None if it does not wait), and the expected wait."""

    since: float | None = None
    expected_s = 0.0


@contextmanager
def _waiting(expected_s: float = 0.0) -> Iterator[None]:
    _Wait.expected_s, _Wait.since = expected_s, time.time()
    try:
        yield
    finally:
        _Wait.since = None


@contextmanager
def long_waits_said() -> Iterator[None]:
    """Log a warning about each long wait for other ranks, for the duration of the block, in a thread."""
    ended, said = threading.Event(), 0.0
    if rank() >= SAYING_RANKS:
        yield
        return

    def look() -> None:
        nonlocal said
        while not ended.wait(LOOK_S):
            since = _Wait.since
            if since is None or since == said or time.time() - since <= max(SAY_AFTER_S, _Wait.expected_s):
                continue
            said = since
            logger.warning(
                "waiting for the other workers since %s, for %.0f s until now",
                time.strftime("%H:%M:%S", time.localtime(since)), time.time() - since,
            )  # fmt: skip

    thread = threading.Thread(target=look, name="long-waits", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _is_one_of_several() -> bool:
    """Return whether there is a process group.

    Raises:
        RuntimeError: if there was one before. Ray Train destroys it under a running worker when it changes the number
            of workers of an elastic run. A rank that continued alone would save a state without the others' data.
    """
    global _joined  # noqa: PLW0603 - torch's process group is global too
    if dist.is_initialized():
        _joined = True
    # The rank must never become 0 of 1 here: this process would write checkpoints and delete the run's checkpoints.
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
        with _waiting():
            dist.all_reduce(buffer)
    return buffer


def from_rank_zero(values: Sequence[float], device: torch.device, *, expected_s: float = 0.0) -> list[float]:
    """Return rank 0's numbers on every rank. A wait of up to `expected_s` for them is not logged."""
    if world_size() == 1:
        return list(values)
    # Double precision: step numbers and seconds above 2^24 have to arrive exactly.
    buffer = torch.tensor(values, dtype=torch.float64, device=device)
    with _waiting(expected_s):
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
    with _waiting():
        dist.all_gather(gathered, values)
    return torch.stack(gathered)
