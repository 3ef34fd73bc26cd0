"""Suite `step`: the training step at the default settings against the reference step, on the same events."""

from collections.abc import Callable
from itertools import repeat

import torch

from crmuons import config
from crmuons.benchmark import events, roofline, timing
from crmuons.benchmark.figures import Figure
from crmuons.benchmark.reference import ReferenceStep
from crmuons.benchmark.timing import Times
from crmuons.models.features import Features
from crmuons.training.trainer import Trainer

N_CRITIC, LAMBDA_GP = 5, 10.0
Shape = tuple[int, float, bool]
# Events of a batch, mean N, and whether the reference has a gradient penalty: the predecessor's own case and two denser
# ones.
SHAPES = ((48_000, 0.36, False), (2_048, 13.5, True), (8_192, 13.5, False))


def run(rounds: int, device: torch.device) -> list[Figure]:
    """Measure all shapes."""
    rates = timing.matmul_rate(device), timing.copy_rate(device)
    return [compare_step(shape, rounds, device, rates) for shape in SHAPES]


def compare_step(shape: Shape, rounds: int, device: torch.device, rates: tuple[float, float]) -> Figure:
    """Measure our step against the reference step.

    Args:
        shape: one of SHAPES.
        rounds: number of rounds of each.
        device: device of both.
        rates: floating-point operations and bytes per second of the machine.
    """
    number, mean, penalised = shape
    batch = events.draw(number, mean)
    reference, features = ReferenceStep(LAMBDA_GP if penalised else 0.0, N_CRITIC, device), _features(True).to(device)
    primaries, counts, muons = (
        torch.from_numpy(array).to(device) for array in (batch.primaries, batch.counts, batch.muons)
    )
    standardised = features.condition(primaries), counts, features.muons(muons)
    trainer = default(device)
    batches = repeat(trainer.prepare(batch).to(device))
    steps = {"reference": lambda: reference(*standardised), "ours": lambda: trainer.step(batches)}
    times = timing.alternate(steps, rounds)
    title = f"step, {number:,} x {mean:g}{' with penalty' if penalised else ''}, default settings"
    # The operations of a CUDA graph cannot be counted while it is replayed.
    eager = trainer if trainer.graphs is None else default(device, static=False)
    counted = repeat(eager.prepare(batch).to(device))
    details = _limits(lambda: eager.step(counted), times["ours"], rates)
    against = "a step of the predecessor's structure"
    return Figure(title, "events", number, times["ours"], against, number, times["reference"], details)


def _limits(step: Callable[[], object], times: Times, rates: tuple[float, float]) -> dict[str, float]:
    work = roofline.work(step)
    limit = work.seconds(*rates)
    return {
        "gflop": work.flops / 1e9, "gigabytes": work.bytes / 1e9, "machine_gflop_per_second": rates[0] / 1e9,
        "machine_gigabytes_per_second": rates[1] / 1e9, "roofline_ms": 1e3 * limit,
        "achieved_share": limit / float(times.wall.min()),
    }  # fmt: skip


def default(device: torch.device, *, static: bool | None = None) -> Trainer:
    """Return our trainer at the default settings; `static` as in Trainer."""
    return Trainer(config.from_dict({"train": {"steps": 1}}), _features(False), device, static=static)


def _features(cartesian: bool) -> Features:
    return Features(cartesian=cartesian).fit(events.draw(5_000, 5.0, seed=1))
