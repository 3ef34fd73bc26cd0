"""Copy muons from a GPU to the host while the GPU generates the next muons."""

import itertools
from collections import deque
from collections.abc import Callable, Iterator
from typing import TypeVar

import torch

T = TypeVar("T")


def on_host(made: Iterator[tuple[slice, torch.Tensor]], device: torch.device) -> Iterator[tuple[slice, torch.Tensor]]:
    """Yield muons on the host. Muons of a GPU lie in one of two buffers, which the next part but one overwrites."""
    if device.type == "cpu":
        return made
    buffers = [_HostBuffer(device) for _ in range(2)]
    copies = ((rows, buffer.fill(muons)) for (rows, muons), buffer in zip(made, itertools.cycle(buffers)))
    return ((rows, wait()) for rows, wait in _one_ahead(copies))


class _HostBuffer:
    """Page-locked memory, into which a GPU copies while it computes. It is kept, because locking 1 MB takes 0.9 ms."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.memory = torch.empty((0, 0), dtype=torch.float32, pin_memory=True)

    def fill(self, values: torch.Tensor) -> Callable[[], torch.Tensor]:
        """Start a copy, and return a function that waits for it and returns its values."""
        rows, width = values.shape
        if len(self.memory) < rows or self.memory.shape[1] != width:
            self.memory = torch.empty((rows * 5 // 4, width), dtype=torch.float32, pin_memory=True)
        copied = self.memory[: len(values)].copy_(values, non_blocking=True)
        done = torch.cuda.Event()
        done.record(torch.cuda.current_stream(self.device))  # The default would be the stream of the current device.

        def wait() -> torch.Tensor:
            done.synchronize()
            return copied

        return wait


def _one_ahead(items: Iterator[T]) -> Iterator[T]:
    """Yield the same items, each after the next item was started."""
    waiting = deque(itertools.islice(items, 1))
    for item in items:
        waiting.append(item)
        yield waiting.popleft()
    yield from waiting
