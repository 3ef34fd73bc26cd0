"""Suite `scale`: processes that train together, what they exchange, and what that predicts for many GPUs.

The prediction and its assumptions are in docs/performance.md.
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

EVENTS, MEAN_MUONS = 2_048, 13.5  # As many events a worker as the default settings take.
NUM_BATCHES = 8


@dataclass(frozen=True)
class Link:
    """What connects the GPUs of a prediction: an assumption, not a measurement."""

    gpus: int
    seconds_per_hop: float
    bytes_per_second: float


LINKS = (Link(8, 5e-6, 200e9), Link(64, 15e-6, 25e9))


@dataclass(frozen=True)
class Case:
    """So many workers, which exchange their gradients or nothing."""

    workers: int
    together: bool

    def __str__(self) -> str:
        workers = f"{self.workers} worker{'s' if self.workers > 1 else ''}"
        return workers if self.together else f"{workers} that exchange nothing"


def run(rounds: int, workers: Sequence[int] = (1, 2)) -> list[Figure]:
    """Events per second of each number of worker processes with one thread each, against one worker, in turns.

    As many processes that exchange nothing show what the machine's cores, caches and memory leave of perfect scaling.
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
    """Share of perfect scaling for the links above.

    A step takes a worker's own time, waits for the slowest worker (whose expected lag behind the mean of n normal times is
    about sqrt(2 ln n) standard deviations), and exchanges in a ring: 2 (n - 1) hops a collective, 2 (n - 1)/n of the bytes.
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
    """For each case the times of a step, and the bytes of each sum over ranks in one."""
    with TemporaryDirectory() as folder:
        arguments = cases, rounds, folder
        torch.multiprocessing.spawn(_worker, arguments, nprocs=_world(cases))  # type: ignore[attr-defined, no-untyped-call]
        seconds = np.load(Path(folder) / "seconds.npy")
        exchanged = json.loads((Path(folder) / "exchanged.json").read_text())
    return [Times(taken) for taken in seconds], exchanged


def _world(cases: Sequence[Case]) -> int:
    return max(case.workers for case in cases)


def _worker(rank: int, cases: Sequence[Case], rounds: int, folder: str) -> None:
    keep_freed_memory()
    torch.set_num_threads(1)
    # They meet in a file: a port that is free now may be taken when they come to listen on it.
    dist.init_process_group("gloo", init_method=f"file://{folder}/ranks", rank=rank, world_size=_world(cases))
    groups = {case.workers: dist.new_group(range(case.workers)) for case in cases}
    trainer = step.default(torch.device("cpu"))
    seeds = range(rank * NUM_BATCHES, (rank + 1) * NUM_BATCHES)
    batches = cycle([trainer.prepare(events.draw(EVENTS, MEAN_MUONS, seed)) for seed in seeds])
    seconds, exchanged = torch.zeros(len(cases), rounds + 1, dtype=torch.float64), []
    for turn in range(rounds + 1):
        for place, case in enumerate(cases):
            sent: list[int] = []
            distributed.sum_over_ranks = partial(_add_up, groups[case.workers] if case.together else None, sent)
            dist.barrier()
            if rank < case.workers:
                begin = time.perf_counter()
                trainer.step(batches)
                seconds[place, turn] = (time.perf_counter() - begin) / case.workers
            if not turn:
                exchanged.append(sent)
    dist.all_reduce(seconds)  # The mean of a case's workers.
    dist.destroy_process_group()
    if rank == 0:
        np.save(Path(folder) / "seconds.npy", seconds[:, 1:].numpy())
        (Path(folder) / "exchanged.json").write_text(json.dumps(exchanged))


def _add_up(group: dist.ProcessGroup | None, sent: list[int], buffer: torch.Tensor) -> torch.Tensor:
    """Sum over the ranks of a group, in place of the sum over all; notes the bytes."""
    sent.append(buffer.nbytes)
    if group is not None:
        dist.all_reduce(buffer, group=group)
    return buffer
