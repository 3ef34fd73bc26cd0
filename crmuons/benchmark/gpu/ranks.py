"""The part `ranks`: compare training on all GPUs of the machine, which exchange gradients, with training on one."""

import time
from functools import partial
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.multiprocessing

from crmuons.benchmark import events
from crmuons.benchmark.gpu.machine import HAS_GRAPHS, Figures, Machine, batch_on_device, weights
from crmuons.training import distributed

SHAPE = 4_096, 13.5  # Events of a rank's batch, and their mean number of muons.


def measure(machine: Machine) -> Figures:
    """Return steps per second of one rank and of all, and whether all have the same weights at the end."""
    ranks = torch.cuda.device_count() if machine.is_gpu else 2
    found: Figures = {}
    for graph in (False, *([True] if HAS_GRAPHS and machine.is_gpu else [])):
        speeds = {number: _run(machine, number, graph) for number in sorted({1, ranks})}
        way = "graph" if graph else "eager"
        found |= {f"{way}, {number} ranks": figures for number, figures in speeds.items()}
        if ranks > 1:
            found[f"{way}, share of perfect scaling"] = speeds[ranks]["steps/s"] / speeds[1]["steps/s"]
    return found


def _run(machine: Machine, ranks: int, graph: bool) -> Figures:
    folder = machine.folder / f"ranks-{ranks}-{graph}"
    folder.mkdir()
    torch.multiprocessing.spawn(_rank, (machine, ranks, graph, folder), nprocs=ranks)  # type: ignore[attr-defined, no-untyped-call]
    ends = [np.load(folder / f"{rank}.npy") for rank in range(ranks)]
    return {
        "steps/s": 1 / float(np.load(folder / "seconds.npy")), "the same weights": all(np.array_equal(end, ends[0]) for end in ends),
        "us, an exchange": 1e6 * float(np.load(folder / "exchange.npy")),
    }  # fmt: skip


def _rank(rank: int, machine: Machine, ranks: int, graph: bool, folder: Path) -> None:
    torch.set_num_threads(1)
    device: Any = torch.device(machine.device, rank) if machine.is_gpu else machine.torch
    if machine.is_gpu:
        torch.cuda.set_device(device)
    # The ranks meet in a file, because a port that is free now may be taken when they listen on it.
    dist.init_process_group(
        "nccl" if machine.is_gpu else "gloo", init_method=f"file://{folder}/ranks", rank=rank, world_size=ranks
    )
    trainer = machine.trainer(graph=graph, on=str(device))
    number, mean = SHAPE
    batches = cycle(
        [batch_on_device(trainer, events.draw(machine.size(number, 64), mean, 100 * rank + i)) for i in range(4)]
    )
    seconds = _seconds(machine, partial(trainer.step, batches), 40)
    buffer = torch.zeros(100_000, device=device)
    exchange = _seconds(machine, lambda: distributed.sum_over_ranks(buffer), 100)
    np.save(folder / f"{rank}.npy", weights(trainer.model, trainer.critic).numpy())
    if rank == 0:
        np.save(folder / "seconds.npy", seconds)
        np.save(folder / "exchange.npy", exchange)
    del trainer  # A communicator must outlive the graphs that hold its exchanges.
    machine.wait()
    dist.barrier()
    dist.destroy_process_group()


def _seconds(machine: Machine, run: Any, calls: int) -> float:
    calls = machine.size(calls, 2)
    for _ in islice(range(calls), machine.size(10, 1)):
        run()
    machine.wait()
    dist.barrier()
    begin = time.perf_counter()
    for _ in range(calls):
        run()
    machine.wait()
    return (time.perf_counter() - begin) / calls
