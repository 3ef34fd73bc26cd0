"""Time functions in turns, so that the machine's other work slows all of them alike."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch


@dataclass(frozen=True)
class Times:
    """Seconds of each round: wall time, and CPU time of this process if it did all the work."""

    wall: np.ndarray
    cpu: np.ndarray | None = None


def alternate(functions: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, Times]:
    """Time each function once per round, after one round that does not count."""
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in functions}
    for number in range(rounds + 1):
        for name, run in functions.items():
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
    """Measure floating-point operations per second of a square matrix product, the best of ten."""
    left, right = torch.randn(2, size, size, device=device)
    best: float = alternate({"": lambda: left @ right}, 10)[""].wall.min()
    return 2 * size**3 / best


def copy_rate(device: torch.device, megabytes: int = 256) -> float:
    """Measure bytes per second read and written by a copy that exceeds most caches, the best of ten."""
    source = torch.zeros(megabytes * 2**18, device=device)
    target = torch.empty_like(source)
    best: float = alternate({"": lambda: target.copy_(source)}, 10)[""].wall.min()
    return 2 * source.nbytes / best


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
