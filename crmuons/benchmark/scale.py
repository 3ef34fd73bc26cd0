"""Suite `scale`: the speed of processes that train together, their communication, and a prediction for many GPUs.

docs/performance.md explains the prediction and its assumptions.
"""

import json
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import cycle
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
import torch.distributed as dist
import torch.multiprocessing

from crmuons.allocator import keep_freed_memory
from crmuons.benchmark import events, step
from crmuons.benchmark.figures import Figure
from crmuons.benchmark.timing import Times
from crmuons.training import distributed

EVENTS, MEAN_MUONS = 2_048, 13.5  # Events per worker as in the default settings.
NUM_BATCHES = 8


@dataclass(frozen=True)
class Link:
    """The connection of GPUs in a prediction: an assumption, not a measurement."""

    gpus: int
    seconds_per_hop: float
    bytes_per_second: float


LINKS = (Link(8, 5e-6, 200e9), Link(64, 15e-6, 25e9))


@dataclass(frozen=True)
class Case:
    """A number of workers that exchange their gradients (`together`) or nothing."""

    workers: int
    together: bool

    def __str__(self) -> str:
        workers = f"{self.workers} worker{'s' if self.workers > 1 else ''}"
        return workers if self.together else f"{workers} that exchange nothing"


def run(rounds: int, workers: Sequence[int] = (1, 2)) -> list[Figure]:
    """Measure events per second of worker processes with one thread each, alternating with a single worker.

    The same number of processes without communication shows the limit set by the machine's cores, caches and memory.
    """
    cases = [Case(number, together) for number in workers for together in (True, False) if together or number > 1]
    measured, exchanged = _measure(cases, rounds)
    alone = measured[0]
    return [
        Figure(
            f"scale, {case}", "events", EVENTS * case.workers, times, f"{cases[0]}, in turns", EVENTS * cases[0].workers, alone,
            {"collectives_a_step": len(sent), "bytes_a_step": sum(sent), **predict(times.wall, len(sent), sum(sent))}
            if case.together else {},
        )
        for case, times, sent in zip(cases, measured, exchanged, strict=True)
    ]  # fmt: skip


def predict(seconds: np.ndarray, collectives: float, exchanged: float) -> dict[str, float]:
    """Predict the share of perfect scaling for each of LINKS.

    A step takes a worker's own time, the wait for the slowest worker, and the exchange. The slowest of n normal times
    is about sqrt(2 ln n) standard deviations behind the mean. A ring takes 2 (n - 1) hops per collective, and transfers
    2 (n - 1)/n of the bytes.

    Args:
        seconds: times of a worker's steps.
        collectives: number of collectives in a step.
        exchanged: bytes exchanged in a step.
    """
    mean, deviation = float(seconds.mean()), float(seconds.std())
    shares = {}
    for link in LINKS:
        n = link.gpus
        ring = collectives * 2 * (n - 1) * link.seconds_per_hop + 2 * (n - 1) / n * exchanged / link.bytes_per_second
        shares[f"predicted_share_of_perfect_scaling_{n}"] = mean / (
            mean + deviation * math.sqrt(2 * math.log(n)) + ring
        )
    return shares


def _measure(cases: Sequence[Case], rounds: int) -> tuple[list[Times], list[list[int]]]:
    """Return for each case the times of its steps, and the bytes of each sum over ranks in a step."""
    with TemporaryDirectory() as folder:
        arguments = cases, rounds, folder
        torch.multiprocessing.spawn(_worker, arguments, nprocs=_world(cases))  # type: ignore[attr-defined, no-untyped-call]
        seconds = np.load(Path(folder) / "seconds.npy")
        exchanged = json.loads((Path(folder) / "exchanged.json").read_text(encoding="utf-8"))
    return [Times(taken) for taken in seconds], exchanged


def _world(cases: Sequence[Case]) -> int:
    return max(case.workers for case in cases)


def _worker(rank: int, cases: Sequence[Case], rounds: int, folder: str) -> None:
    keep_freed_memory()
    torch.set_num_threads(1)
    # The processes meet in a file, because a port that is free now may be taken when they listen on it.
    dist.init_process_group("gloo", init_method=f"file://{folder}/ranks", rank=rank, world_size=_world(cases))
    groups = {case.workers: dist.new_group(range(case.workers)) for case in cases}
    trainer = step.default(torch.device("cpu"))
    seeds = range(rank * NUM_BATCHES, (rank + 1) * NUM_BATCHES)
    batches = cycle([trainer.prepare(events.draw(EVENTS, MEAN_MUONS, seed)) for seed in seeds])
    seconds, exchanged = torch.zeros(len(cases), rounds + 1, dtype=torch.float64), []
    for turn in range(rounds + 1):
        for index, case in enumerate(cases):
            sent: list[int] = []
            distributed.sum_over_ranks = partial(_add_up, groups[case.workers] if case.together else None, sent)
            dist.barrier()
            if rank < case.workers:
                begin = time.perf_counter()
                trainer.step(batches)
                seconds[index, turn] = (time.perf_counter() - begin) / case.workers
            if not turn:
                exchanged.append(sent)
    dist.all_reduce(seconds)  # Sums to the mean over a case's workers.
    dist.destroy_process_group()
    if rank == 0:
        np.save(Path(folder) / "seconds.npy", seconds[:, 1:].numpy())
        (Path(folder) / "exchanged.json").write_text(json.dumps(exchanged), encoding="utf-8")


def _add_up(group: dist.ProcessGroup | None, sent: list[int], buffer: torch.Tensor) -> torch.Tensor:
    """Replace the sum over all ranks by the sum over a group, and record its bytes."""
    sent.append(buffer.nbytes)
    if group is not None:
        dist.all_reduce(buffer, group=group)
    return buffer
