"""Suite `step`: the training step against the reference step, at the same shapes, on the same events."""

from itertools import repeat
from typing import Any

import torch

from crmuons import config
from crmuons.benchmark import events, roofline, timing
from crmuons.benchmark.figures import Figure
from crmuons.benchmark.reference import ReferenceStep
from crmuons.benchmark.timing import Times
from crmuons.models.features import Features
from crmuons.training.batch import TrainingBatch
from crmuons.training.trainer import Trainer

N_CRITIC, LAMBDA_GP = 5, 10.0
Shape = tuple[int, float, bool]
# Events of a batch, mean muons of an event, with a gradient penalty or without: the predecessor's headline and two denser ones.
SHAPES = ((48_000, 0.36, False), (2_048, 13.5, True), (8_192, 13.5, False))


def run(rounds: int, device: torch.device) -> list[Figure]:
    """The figures of all shapes."""
    rates = timing.matmul_rate(device), timing.copy_rate(device)
    return [figure for shape in SHAPES for figure in compare(shape, rounds, device, rates)]


def compare(shape: Shape, rounds: int, device: torch.device, rates: tuple[float, float]) -> list[Figure]:
    """Our step at the reference's layer sizes, and at the default settings, against the reference.

    Args:
        shape: one of SHAPES.
        rounds: of each.
        device: of all.
        rates: floating-point operations and bytes per second of the machine.
    """
    number, mean, penalised = shape
    batch = events.draw(number, mean)
    ours = {"equal layer sizes": equal_layers(penalised, device), "default settings": default(device)}
    ready = {name: trainer.prepare(batch).to(device) for name, trainer in ours.items()}
    reference, features = ReferenceStep(LAMBDA_GP if penalised else 0.0, N_CRITIC, device), _features(True).to(device)
    primaries, counts, muons = (
        torch.from_numpy(array).to(device) for array in (batch.primaries, batch.counts, batch.muons)
    )
    given = features.condition(primaries), counts, features.muons(muons)
    rivals = {name: _stepping(trainer, ready[name]) for name, trainer in ours.items()}
    times = timing.alternate({"reference": lambda: reference(*given), **rivals}, rounds)
    title = f"step, {number:,} x {mean:g}{' with penalty' if penalised else ''}"
    return [
        Figure(
            f"{title}, {name}", "events", number, times[name], "a step of the predecessor's structure", number,
            times["reference"], _limits(rival, times[name], rates),
        )
        for name, rival in rivals.items()
    ]  # fmt: skip


def _limits(step: Any, times: Times, rates: tuple[float, float]) -> dict[str, float]:
    work = roofline.work(step)
    limit = work.seconds(*rates)
    return {
        "gflop": work.flops / 1e9, "gigabytes": work.bytes / 1e9, "machine_gflop_per_second": rates[0] / 1e9,
        "machine_gigabytes_per_second": rates[1] / 1e9, "roofline_ms": 1e3 * limit,
        "achieved_share": limit / float(times.wall.min()),
    }  # fmt: skip


def _stepping(trainer: Trainer, sets: TrainingBatch) -> Any:
    return lambda: trainer.step(repeat(sets))


def equal_layers(penalised: bool, device: torch.device) -> Trainer:
    """Our step with the predecessor's networks and recipe: 5 critic updates, SGD, all muons, penalty on interpolates."""
    penalty = {"kind": "one_centred" if penalised else "none", "lambda_gp": LAMBDA_GP}
    train = {
        "steps": 1, "n_critic": N_CRITIC, "reuse_batch": True, "loss": "wasserstein", "muons_per_event": None, "penalty": penalty,
        "optimizer": {"kind": "sgd", "lr": 1e-4, "momentum": 0.5},
    }  # fmt: skip
    model = {"kind": "predecessor", "multiplicity": "regressor"}
    return Trainer(config.from_dict({"model": model, "train": train}), _features(True), device)


def default(device: torch.device) -> Trainer:
    """Our step at the default settings."""
    return Trainer(config.from_dict({"train": {"steps": 1}}), _features(False), device)


def _features(cartesian: bool) -> Features:
    return Features(cartesian=cartesian).fit(events.draw(5_000, 5.0, seed=1))
