"""The part `step`: time a training step at three shapes, eager and as a graph, and the reference step."""

from itertools import repeat
from typing import Any

import torch

from crmuons.benchmark import events, roofline, timing
from crmuons.benchmark.gpu.machine import (
    HAS_GRAPHS,
    Figures,
    Machine,
    Precision,
    batch_on_device,
    fitted_features,
    precision,
    profile,
)
from crmuons.benchmark.gpu.parity import WITHOUT_PENALTY, attempt
from crmuons.benchmark.reference import ReferenceStep
from crmuons.benchmark.step import LAMBDA_GP, N_CRITIC
from crmuons.data.events import EventArrays

# One batch serves five critic updates and the generator update, as in the predecessor.
SPARSE: dict[str, Any] = {"n_critic": 5, "loss": "wasserstein", "penalty": WITHOUT_PENALTY, "reuse_batch": True}
# Name: events of a batch, mean number of muons, settings of `train`, whether the reference has a penalty.
SHAPES: dict[str, tuple[int, float, dict[str, Any], bool]] = {
    "48,000 x 0.36, six updates on a batch": (48_000, 0.36, SPARSE, False),
    "2,048 x 13.5, default settings": (2_048, 13.5, {}, True),
    "65,536 x 13.5, default settings": (65_536, 13.5, {}, True),
}


def measure(machine: Machine) -> Figures:
    """Return the figures of each shape."""
    size = machine.size(4096 if machine.is_gpu else 1024, 128)
    rates = timing.matmul_rate(machine.torch, size), timing.copy_rate(machine.torch, machine.size(256, 1))
    return {name: attempt(_shape, machine, shape, rates) for name, shape in SHAPES.items()}


def _shape(machine: Machine, shape: tuple[int, float, dict[str, Any], bool], rates: tuple[float, float]) -> Figures:
    number, mean, train, penalised = shape
    drawn = events.draw(machine.size(number, 64), mean)
    found: Figures = {"events": len(drawn.counts), "eager, fp32": _step(machine, drawn, train, "fp32", rates)}
    for kind in ("fp32", "tf32", "bf16"):
        found[f"graph, {kind}"] = (
            attempt(_step, machine, drawn, train | {"graph": True, "bf16": kind == "bf16"}, kind)
            if HAS_GRAPHS and machine.is_gpu
            else "no graph"
        )
    found["reference"] = _reference(machine, drawn, penalised)
    if machine.is_gpu:
        torch.cuda.empty_cache()
    return found


def _step(
    machine: Machine,
    drawn: EventArrays,
    train: dict[str, Any],
    kind: Precision,
    rates: tuple[float, float] | None = None,
) -> Figures:
    if machine.is_gpu:
        torch.cuda.reset_peak_memory_stats()
    trainer = machine.trainer(**train)
    batch = batch_on_device(trainer, drawn)

    def step() -> None:
        trainer.step(repeat(batch))

    with precision(kind):
        done, host = machine.seconds(step, 8)
        in_a_row = machine.in_a_row(step, 15)
        found: Figures = {
            "events/s": len(drawn.counts) / in_a_row, "ms": 1e3 * in_a_row, "ms alone": 1e3 * done, "ms of the host": 1e3 * host,
        }  # fmt: skip
        if rates is not None:
            work = roofline.work(step)
            found |= {
                "Gflop": work.flops / 1e9,
                "GB": work.bytes / 1e9,
                "roofline ms": 1e3 * work.seconds(*rates),
            }
        found["profile"] = attempt(profile, machine, step)
    if machine.is_gpu:
        found["memory GB"] = torch.cuda.max_memory_allocated() / 1e9
    return found


def _reference(machine: Machine, drawn: EventArrays, penalised: bool) -> Figures:
    reference = ReferenceStep(LAMBDA_GP if penalised else 0.0, N_CRITIC, machine.torch)
    features = fitted_features(cartesian=True).to(machine.torch)
    primaries, counts, muons = (
        torch.from_numpy(array).to(machine.torch) for array in (drawn.primaries, drawn.counts, drawn.muons)
    )
    given = features.condition(primaries), counts, features.muons(muons)
    seconds, _ = machine.seconds(lambda: reference(*given), 5)
    return {"events/s": len(drawn.counts) / seconds, "ms": 1e3 * seconds}
