"""Times side by side: rivals take turns, so that what else the machine does falls on all of them."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch


@dataclass(frozen=True)
class Times:
    """Seconds of each round: by the clock, and of this process's threads on a CPU where these did all the work."""

    wall: np.ndarray
    cpu: np.ndarray | None = None


def alternate(rivals: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, Times]:
    """Time each rival once a round; one round before the first is not counted."""
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in rivals}
    for number in range(rounds + 1):
        for name, run in rivals.items():
            taken = _time(run)
            if number:
                seconds[name].append(taken)
    return {name: Times(*np.asarray(taken).T) for name, taken in seconds.items()}


def _time(run: Callable[[], object]) -> tuple[float, float]:
    _wait()
    wall, cpu = time.perf_counter(), time.process_time()
    run()
    _wait()
    return time.perf_counter() - wall, time.process_time() - cpu


def matmul_rate(device: torch.device, size: int = 1024) -> float:
    """Floating-point operations per second of a square matrix product, the best of ten."""
    left, right = torch.randn(2, size, size, device=device)
    best: float = alternate({"": lambda: left @ right}, 10)[""].wall.min()
    return 2 * size**3 / best


def copy_rate(device: torch.device, megabytes: int = 256) -> float:
    """Bytes per second read and written by a copy too large for most caches, the best of ten."""
    source = torch.zeros(megabytes * 2**18, device=device)
    target = torch.empty_like(source)
    best: float = alternate({"": lambda: target.copy_(source)}, 10)[""].wall.min()
    return 2 * source.nbytes / best


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
