"""The machine of a check: its device, sizes for a real or a tiny run, time on the device, and its own speed."""

import json
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import torch

from crmuons import config, provenance
from crmuons.benchmark import events, timing
from crmuons.data.events import EventArrays
from crmuons.models.features import Features
from crmuons.training.trainer import PreparedBatch, Trainer

Figures = dict[str, Any]  # The figures of one part of the check, by name.
Precision = Literal["fp32", "tf32", "bf16"]
HAS_GRAPHS = "cuda_graph" in config.Train.model_fields


@dataclass(frozen=True)
class Machine:
    """The device, the size and the directory of a check.

    Attributes:
        device: "cuda" or "cpu".
        tiny: run everything once on a few events, to try the check itself.
        folder: directory of its data and runs.
    """

    device: str
    tiny: bool
    folder: Path

    @property
    def torch(self) -> torch.device:
        return torch.device(self.device)

    @property
    def is_gpu(self) -> bool:
        return self.device == "cuda"

    def size(self, full: int, tiny: int) -> int:
        """Return a number for a real or for a tiny check."""
        return tiny if self.tiny else full

    def wait(self) -> None:
        """Wait until the device has done its work."""
        if self.is_gpu:
            torch.cuda.synchronize()

    def seconds(self, run: Callable[[], object], rounds: int, warm: int = 3) -> tuple[float, float]:
        """Return the median seconds of a call until its work is done on the device, and until it returns to the host."""
        done, returned = [], []
        for number in range(self.size(warm + rounds, 2)):
            self.wait()
            begin = time.perf_counter()
            run()
            returned.append(time.perf_counter() - begin)
            self.wait()
            done.append(time.perf_counter() - begin)
            if number < self.size(warm, 1):
                done.clear()
                returned.clear()
        return statistics.median(done), statistics.median(returned)

    def in_a_row(self, run: Callable[[], object], calls: int) -> float:
        """Return the mean seconds of calls that follow each other without a wait, as in a training."""
        calls = self.size(calls, 1)
        run()
        self.wait()
        begin = time.perf_counter()
        for _ in range(calls):
            run()
        self.wait()
        return (time.perf_counter() - begin) / calls

    def trainer(
        self, model: dict[str, Any] | None = None, *, graph: bool = False, on: str | None = None, **train: Any
    ) -> Trainer:
        """Return a trainer with the default sizes.

        Args:
            model: settings of `model`.
            graph: capture the step as a CUDA graph.
            on: the device, if it is not the device of the check.
            train: settings of `train`.
        """
        model = model or {}
        graphs = {"cuda_graph": graph} if HAS_GRAPHS else {}
        settings = config.from_dict({"model": model, "train": {"steps": 100_000} | graphs | train})
        features = fitted_features(cartesian=settings.model.kind == "predecessor")
        return Trainer(settings, features, torch.device(on or self.device))


def fitted_features(*, cartesian: bool = False) -> Features:
    """Return features fitted to random events."""
    return Features(cartesian=cartesian).fit(events.draw(5_000, 5.0, seed=1))


def batch_on_device(trainer: Trainer, drawn: EventArrays) -> PreparedBatch:
    """Return a batch as a training step takes it."""
    return trainer.prepare(drawn).to(trainer.device, non_blocking=True)


@contextmanager
def precision(kind: Precision) -> Iterator[None]:
    """Let the matrix products of float32 use TF32 or not, as `train.tf32` does."""
    torch.set_float32_matmul_precision("highest" if kind == "fp32" else "high")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision("highest")


def weights(*modules: torch.nn.Module) -> torch.Tensor:
    """Return the weights of modules as one vector on the host."""
    return torch.cat(
        [parameter.detach().flatten().double().cpu() for module in modules for parameter in module.parameters()]
    )


def describe(machine: Machine) -> Figures:
    """Return the part `machine`: versions, and the rates of copies, products and launches."""
    found: Figures = {
        "python": platform.python_version(), "torch": torch.__version__, "numpy": np.__version__, "pyarrow": pa.__version__,
        "cpus": os.cpu_count(), **provenance.code_tags(),
    }  # fmt: skip
    size = machine.size(8192 if machine.is_gpu else 1024, 128)
    if machine.is_gpu:
        asked = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"]
        answer = subprocess.run(asked, capture_output=True, text=True, check=False).stdout  # noqa: S603
        found |= {"gpus": torch.cuda.device_count(), "gpu": answer.partition("\n")[0], "cuda": torch.version.cuda}
        found |= _transfers(machine)
    for kind in ("fp32", "tf32"):
        with precision(kind):
            found[f"Tflop/s, {kind}"] = timing.matmul_rate(machine.torch, size) / 1e12
    found["TB/s, copy"] = timing.copy_rate(machine.torch, machine.size(1024, 1)) / 1e12
    one = torch.zeros(1, device=machine.torch)

    def thousand() -> None:
        for _ in range(1000):
            one.add_(1)

    found["us, small operation"] = 1e3 * machine.in_a_row(thousand, 5)
    if machine.is_gpu:
        found["us, small operation in a graph"] = 1e3 * machine.seconds(_graph(thousand).replay, 5)[0]
    return found


def _transfers(machine: Machine) -> Figures:
    host, there = (
        torch.empty(2**26, dtype=torch.uint8, pin_memory=True),
        torch.empty(2**26, dtype=torch.uint8, device="cuda"),
    )
    to_device = machine.seconds(lambda: there.copy_(host, non_blocking=True), 10)[0]
    to_host = machine.seconds(lambda: host.copy_(there, non_blocking=True), 10)[0]
    return {"GB/s, to the device": host.nbytes / to_device / 1e9, "GB/s, to the host": host.nbytes / to_host / 1e9}


def _graph(run: Callable[[], object]) -> torch.cuda.CUDAGraph:
    graph = torch.cuda.CUDAGraph()
    run()
    with torch.cuda.graph(graph):
        run()
    return graph


def profile(machine: Machine, run: Callable[[], object], rounds: int = 3) -> Figures:
    """Return a call's number of kernels, their time in ms, the share of time without one, and the longest kernels."""
    from torch._C._autograd import DeviceType  # noqa: PLC0415
    from torch.profiler import ProfilerActivity  # noqa: PLC0415

    run()
    machine.wait()
    rounds = machine.size(rounds, 1)
    kinds = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if machine.is_gpu else [])]
    with torch.profiler.profile(activities=kinds, acc_events=True) as recorded:
        for _ in range(rounds):
            run()
        machine.wait()
    kind = DeviceType.CUDA if machine.is_gpu else DeviceType.CPU
    kernels = [event for event in recorded.events() if event.device_type == kind and not event.is_user_annotation]
    if not kernels:
        return {"kernels": 0}
    by_name: dict[str, tuple[int, float]] = {}
    for kernel in kernels:
        number, taken = by_name.get(kernel.name, (0, 0.0))
        by_name[kernel.name] = number + 1, taken + kernel.time_range.elapsed_us()
    busy = sum(taken for _, taken in by_name.values())
    span = max(kernel.time_range.end for kernel in kernels) - min(kernel.time_range.start for kernel in kernels)
    longest = sorted(by_name.items(), key=lambda item: -item[1][1])[:12]
    return {
        "kernels": len(kernels) / rounds, "busy ms": busy / rounds / 1e3, "idle share": max(0.0, 1 - busy / span),
        "longest": [[name[:100], number / rounds, taken / rounds] for name, (number, taken) in longest],
    }  # fmt: skip


def write_json(path: Path, content: object) -> None:
    """Write a file of figures."""
    path.write_text(json.dumps(content, indent=1, default=str), encoding="utf-8")
