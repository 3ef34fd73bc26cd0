"""Suite `scale`: processes that train together, what they exchange, and what that predicts for many GPUs.

The prediction and its assumptions are in docs/performance.md.
"""

import math
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
import torch.distributed as dist
import torch.multiprocessing

from crmuons import distributed
from crmuons.benchmark import events, step
from crmuons.benchmark.figures import Figure
from crmuons.benchmark.timing import Times
from crmuons.memory import keep_freed_memory

EVENTS, MEAN_MUONS = 2_048, 13.5  # As many events a worker as the default settings take.
NUM_BATCHES = 8


@dataclass(frozen=True)
class Link:
    """What connects the GPUs of a prediction: an assumption, not a measurement."""

    gpus: int
    seconds_per_hop: float
    bytes_per_second: float


LINKS = (Link(8, 5e-6, 200e9), Link(64, 15e-6, 25e9))


def run(rounds: int, workers: Sequence[int] = (1, 2)) -> list[Figure]:
    """Events per second of each number of worker processes with one thread each, against one worker.

    As many processes that exchange nothing show what the machine's cores, caches and memory leave of perfect scaling.
    """
    cases = [(number, together) for number in workers for together in (True, False) if together or number > 1]
    measured = {case: _measure(*case, rounds) for case in cases}
    alone = measured[workers[0], True][0]
    return [
        Figure(
            _title(*case), "events", EVENTS * case[0], times,
            "the first line, workers started one after another", EVENTS * workers[0], alone,
            {"collectives_a_step": calls, "bytes_a_step": sent, **predict(times.wall, calls, sent)} if case[1] else {},
        )
        for case, (times, calls, sent) in measured.items()
    ]  # fmt: skip


def _title(workers: int, together: bool) -> str:
    return f"scale, {workers} worker{'s' if workers > 1 else ''}{'' if together else ' that exchange nothing'}"


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


def _measure(workers: int, together: bool, rounds: int) -> tuple[Times, float, float]:
    """Times of a step, collectives and bytes of a step."""
    with TemporaryDirectory() as folder:
        arguments = (workers, together), rounds, _free_port(), folder
        torch.multiprocessing.spawn(_worker, arguments, nprocs=workers)  # type: ignore[attr-defined, no-untyped-call]
        told = np.load(Path(folder) / "told.npz")
        return Times(told["wall"]), float(told["calls"]), float(told["bytes"])


def _worker(rank: int, case: tuple[int, bool], rounds: int, port: int, folder: str) -> None:
    world, together = case
    keep_freed_memory()
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=world)
    if not together:
        dist.barrier()
        dist.destroy_process_group()
    trainer = step.default(torch.device("cpu"))
    seeds = range(rank * NUM_BATCHES, (rank + 1) * NUM_BATCHES)
    batches = cycle([trainer.prepare(events.batch(EVENTS, MEAN_MUONS, seed)) for seed in seeds])
    trainer.step(batches)
    exchanged = _count_exchanges()
    taken = []
    for _ in range(rounds):
        begin = time.perf_counter()
        trainer.step(batches)
        taken.append(time.perf_counter() - begin)
    if together:
        dist.destroy_process_group()
    if rank == 0:
        calls, sent = len(exchanged) / rounds, sum(exchanged) / rounds
        np.savez(Path(folder) / "told.npz", wall=np.asarray(taken), calls=calls, bytes=sent)


def _count_exchanges() -> list[int]:
    """From here on, the bytes of every sum over ranks, in a list that grows."""
    exchanged: list[int] = []
    add_up = distributed.sum_over_ranks

    def counted(buffer: torch.Tensor) -> torch.Tensor:
        exchanged.append(buffer.nbytes)
        return add_up(buffer)

    distributed.sum_over_ranks = counted
    return exchanged


def _free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port: int = taken.getsockname()[1]
        return port
