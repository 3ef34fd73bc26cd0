"""The part `parity`: check that a device and a CPU compute the same in all variants of the step, without waits."""

import copy
import math
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import repeat
from typing import Any

import numpy as np
import torch
from torch.overrides import TorchFunctionMode

from crmuons import config
from crmuons.benchmark import events
from crmuons.benchmark.gpu.machine import (
    HAS_GRAPHS,
    Figures,
    Machine,
    Precision,
    batch_on_device,
    fitted_features,
    precision,
    weights,
)
from crmuons.data.events import EventArrays
from crmuons.generation.generator import BundleGenerator
from crmuons.models.bundle_model import BundleModel
from crmuons.models.standalone import StandaloneModel
from crmuons.training.trainer import NonFiniteError, Trainer

PREDECESSOR = {"kind": "predecessor", "multiplicity": "regressor"}
WITHOUT_PENALTY = {"kind": "none"}
VARIANTS: dict[str, dict[str, Any]] = {
    "default": {},
    "wasserstein, one batch for five updates": {
        "loss": "wasserstein", "penalty": WITHOUT_PENALTY, "n_critic": 5, "reuse_batch": True,
    },
    "one-centred penalty": {"penalty": {"kind": "one_centred"}},
    "penalty of a part": {"penalty": {"sample_fraction": 0.3, "max_pairs": 50, "every": 2}, "n_critic": 3},
    "clipped": {"clip": 0.1},
    "all muons": {"muons_per_event": None},
    "accumulated": {"grad_accumulation": 3},
    "predecessor": {"model": PREDECESSOR},
    "predecessor, one-centred penalty": {"model": PREDECESSOR, "penalty": {"kind": "one_centred"}, "loss": "wasserstein"},
    "default, tf32": {"precision": "tf32"},
    "default, bf16": {"bf16": True},
}  # fmt: skip
BOUND = {"fp32": 1e-3, "tf32": 0.1, "bf16": 0.2}  # Largest relative difference; rounding gives 1e-5 in fp32.


def measure(machine: Machine) -> Figures:
    """Return relative differences between the device and the CPU by variant, and whether anything waited.

    A step that may become a graph pads its batches. Its first step runs operation by operation, and is compared too.
    """
    found: Figures = {}
    for way, graph in ({"": False} | ({", graph": True} if HAS_GRAPHS and machine.is_gpu else {})).items():
        for name, variant in VARIANTS.items():
            found[name + way] = attempt(_compare, machine, dict(variant), graph)
        for name, check in (("the same twice", _same_twice), ("resumed", _resumed), ("NaN", _stops_at_nan)):
            found[name + way] = attempt(check, machine, graph)
        if graph:
            found["replayed"] = attempt(_replay_equals_operations, machine)
    found["generated"] = attempt(_generated, machine)
    return found


def attempt(check: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
    """Return the result of a check, or its error, because a check that fails must not stop the others."""
    try:
        return check(*arguments, **options)
    except Exception as error:  # noqa: BLE001 - the report shows it, and the log has the traceback
        traceback.print_exc()
        return {"error": f"{type(error).__name__}: {error}"[:500]}


class SameNoise(TorchFunctionMode):
    """Make torch.rand and torch.randn return the same numbers on every device and for every size of the batch.

    A larger batch (one that is padded) begins with the numbers of the smaller one.
    """

    def __init__(self) -> None:
        super().__init__()
        source = torch.Generator().manual_seed(7)
        self.normal, self.uniform = torch.randn(2**22, generator=source), torch.rand(2**22, generator=source)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func not in (torch.rand, torch.randn):
            return func(*args, **kwargs)
        shape = args[0] if args and not isinstance(args[0], int) else args
        table = self.normal if func is torch.randn else self.uniform
        values = table[: math.prod(shape)].reshape(tuple(shape)).to(kwargs.get("device", "cpu"))
        return values if kwargs.get("out") is None else kwargs["out"].copy_(values)


def _trainers(machine: Machine, variant: dict[str, Any], graph: bool) -> tuple[Trainer, Trainer]:
    """Return trainers on the CPU and on the device. Their steps are proportional to the gradients (plain SGD)."""
    plain = {"kind": "sgd", "lr": 0.1, "momentum": 0.0, "warmup_steps": 0, "decay": "none"}
    clip = {"max_grad_norm": variant.pop("clip")} if "clip" in variant else {}
    how = {"optimizer": plain | clip} | variant
    here = machine.trainer(**how | {"on": "cpu", "bf16": False})
    there = machine.trainer(graph=graph, **how)
    return here, there


def _compare(machine: Machine, variant: dict[str, Any], graph: bool) -> Figures:
    kind: Precision = "bf16" if variant.get("bf16") else variant.pop("precision", "fp32")
    drawn = events.draw(machine.size(512, 32), 4.0)
    moves, metrics = [], []
    for trainer, way in zip(_trainers(machine, variant, graph), ("fp32", kind), strict=True):
        networks = trainer.critic, trainer.model.generator
        before = [weights(network) for network in networks]
        batch = batch_on_device(trainer, drawn)
        with precision(way), SameNoise():
            metrics.append({name: float(value) for name, value in trainer.step(repeat(batch)).items()})
        moves.append([weights(network) - was for network, was in zip(networks, before, strict=True)])
    variant.pop("clip", None)
    waits = _waits(machine.trainer(graph=graph, **variant), drawn) if machine.is_gpu else "none"
    errors = {name: _difference(here, metrics[1][name]) for name, here in metrics[0].items()}
    for name, here, there in zip(("critic gradient", "generator gradient"), *moves, strict=True):
        errors[name] = float((there - here).norm() / here.norm())
    where = max(errors, key=errors.__getitem__)
    return {
        "worst": errors[where],
        "of": where,
        "within bound": errors[where] < BOUND[kind],
        "waits": waits,
        "all": errors,
    }


def _difference(here: float, there: float) -> float:
    if math.isnan(here) and math.isnan(there):  # A step without a penalty reports NaN for it.
        return 0.0
    difference = abs(there - here) / max(abs(here), 1e-6)
    return math.inf if math.isnan(difference) else difference


@contextmanager
def waiting_is_an_error() -> Iterator[None]:
    """Let torch raise an error where the host waits for the GPU."""
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def _waits(trainer: Trainer, drawn: EventArrays) -> str:
    """Return a traceback of where a step, or the copy of its batches, waits for the device, or "none"."""
    for _ in range(5):  # Enough steps to record a graph of each kind of step.
        trainer.step(repeat(batch_on_device(trainer, drawn)))
    ready = [trainer.prepare(drawn) for _ in range(24)]
    try:
        with waiting_is_an_error():
            trainer.step(batch.to(trainer.device, non_blocking=True) for batch in ready)
    except RuntimeError:
        return traceback.format_exc(limit=-3)[-800:]
    return "none"


def _same_twice(machine: Machine, graph: bool) -> Figures:
    same = {}
    for kind in ("set", "predecessor"):
        pair = [machine.trainer({"kind": kind}, graph=graph, n_critic=2) for _ in range(2)]
        for trainer in pair:
            _steps(trainer, machine, 10)
        same[kind] = bool(torch.equal(*(weights(trainer.model, trainer.critic, trainer.averaged) for trainer in pair)))
    return same


def _steps(trainer: Trainer, machine: Machine, number: int) -> Trainer:
    batch = batch_on_device(trainer, events.draw(machine.size(2048, 64), 6.0))
    for _ in range(number):
        trainer.step(repeat(batch))
    return trainer


def _resumed(machine: Machine, graph: bool) -> bool:
    unbroken, other = _steps(machine.trainer(graph=graph), machine, 5), machine.trainer(graph=graph)
    torch.save(unbroken.state_dict(), machine.folder / "state.pt")
    other.load_state_dict(torch.load(machine.folder / "state.pt", map_location="cpu", weights_only=True))
    ends = [
        weights(end.model, end.critic, end.averaged)
        for end in (_steps(unbroken, machine, 5), _steps(other, machine, 5))
    ]
    return bool(torch.equal(*ends))


def _stops_at_nan(machine: Machine, graph: bool) -> Figures:
    trainer = machine.trainer(graph=graph)
    _steps(trainer, machine, 3)
    before = weights(trainer.model, trainer.critic)
    bad = copy.deepcopy(events.draw(64, 6.0))
    bad.muons[0, 0] = np.nan
    try:
        trainer.step(repeat(batch_on_device(trainer, bad)))
        _steps(trainer, machine, 1)
        trainer.check_finite()
    except NonFiniteError as error:
        stands = bool(torch.equal(before, weights(trainer.model, trainer.critic)))
        return {"said": str(error).partition(";")[0], "weights stand still": stands}
    return {"error": "a NaN was not reported"}


def _generated(machine: Machine) -> Figures:
    """Compare muons made from the same noise, with one large event, and look for waits."""
    model = BundleModel(config.Model(), fitted_features())
    here = StandaloneModel(model.state_dict())
    primaries = events.draw(3, 1.0, seed=0).primaries
    counts = torch.tensor([1, machine.size(200_000, 500), 30])
    noise = here.noise(3, int(counts.sum()), torch.Generator().manual_seed(0))
    given = torch.from_numpy(primaries), counts, torch.repeat_interleave(counts)
    expected = here.muons_of(*given, noise)
    generator = BundleGenerator(model, {}, machine.torch)
    network = StandaloneModel(generator.model.state_dict())
    found: Figures = {}
    for kind in ("fp32", "tf32"):
        with precision(kind), torch.inference_mode():
            there = [part.to(machine.torch) for part in given]
            muons = network.muons_of(there[0], there[1], there[2], tuple(part.to(machine.torch) for part in noise))
        found[kind] = float(((muons.cpu() - expected).norm(dim=0) / expected.norm(dim=0)).max())
    drawn = events.draw(machine.size(40_000, 300), 13.5)
    whole = generator.generate(drawn.primaries, seed=1, counts=drawn.counts)
    kept = torch.cat(
        [part.muons for part in generator.generate_on_device(drawn.primaries, seed=1, counts=drawn.counts)]
    )
    found["the same on the device"] = bool(torch.equal(kept.cpu(), torch.from_numpy(whole.muons)))
    found["waits"] = _generation_waits(generator, drawn) if machine.is_gpu else "none"
    return found


def _generation_waits(generator: BundleGenerator, drawn: EventArrays) -> str:
    try:
        with waiting_is_an_error():
            for _ in generator.network.draw_muons(drawn.primaries, drawn.counts, 1):
                pass
    except RuntimeError:
        return traceback.format_exc(limit=-3)[-800:]
    return "none"


def _replay_equals_operations(machine: Machine) -> Figures:
    """Compare a replayed graph with the same operations one by one."""
    ends = []
    for captures in (True, False):
        trainer = machine.trainer(graph=True, n_critic=2)
        assert trainer.graphs is not None  # graph=True
        trainer.graphs.captures = captures
        _steps(trainer, machine, 10)
        ends.append(weights(trainer.model, trainer.critic, trainer.averaged))
    difference = float((ends[1] - ends[0]).norm() / ends[0].norm())
    return {"difference": difference, "within bound": difference < BOUND["fp32"]}
