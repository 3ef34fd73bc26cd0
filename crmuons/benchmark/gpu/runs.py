"""The parts `job`, `train` and `evaluate`: whole runs from prepared shards to a model, and its fidelity."""

import json
import statistics
import time
from typing import Any

import torch

from crmuons import config
from crmuons.benchmark.gpu.data import DENSE, SPARSE, prepared
from crmuons.benchmark.gpu.machine import HAS_GRAPHS, Figures, Machine
from crmuons.benchmark.gpu.parity import attempt
from crmuons.benchmark.gpu.steps import SPARSE as SIX_UPDATES
from crmuons.runs.directory import Run
from crmuons.training.driver import LocalLauncher, run_training

NEVER = 10**8  # Steps between validations or checkpoints of a run that is only timed.


def job(machine: Machine) -> Figures:
    """Return events per second of runs of 48,000 x 0.36 with six updates on a batch: from shards to the optimizer."""
    runs = {"eager": {"graph": False}, "graph": {"graph": True}, "graph, tf32": {"graph": True, "tf32": True}}
    return {
        name: attempt(_timed, machine, name, **how) if HAS_GRAPHS or not how["graph"] else "no graph"
        for name, how in runs.items()
    }


def _timed(machine: Machine, name: str, *, graph: bool, tf32: bool = False) -> Figures:
    train = SIX_UPDATES | {
        "events_per_worker": machine.size(48_000, 64), "log_every": machine.size(20, 2), "validate_every": NEVER,
        "validation_events": 1_000, "tf32": tf32,
    }  # fmt: skip
    run, lines = _train(machine, name, SPARSE, train, 8.0, graph=graph)
    speeds = [line["speed/events_per_second"] for line in lines if "speed/events_per_second" in line]
    waits = [line["speed/data_wait_share"] for line in lines if "speed/data_wait_share" in line]
    # A step uses one batch for its six updates, as the predecessor does. The first two log steps include the start.
    return {"events/s": statistics.median(speeds[2:] or speeds), "share of time waiting for data": statistics.median(waits[2:] or waits),
            "steps": lines[-1]["step"], "run": run.directory.name}  # fmt: skip


def train(machine: Machine) -> Figures:
    """Return the speed and the validations of a run of 75 s on simulated bundles."""
    settings = {
        "events_per_worker": machine.size(4096, 64), "log_every": machine.size(50, 5), "validate_every": machine.size(1_000, 20),
        "validation_events": machine.size(20_000, 300), "tf32": True,
    }  # fmt: skip
    begin = time.perf_counter()
    run, lines = _train(machine, "train", DENSE, settings, 75.0, graph=machine.is_gpu)
    scores = [[line["step"], line["validation/score"]] for line in lines if "validation/score" in line]
    speeds = [line["speed/events_per_second"] for line in lines if "speed/events_per_second" in line]
    last = {name: value for name, value in lines[-1].items() if name.startswith("validation/")}
    return {
        "events/s": statistics.median(speeds), "steps": lines[-1]["step"], "seconds": time.perf_counter() - begin,
        "score at the end": scores[-1][1] if scores else None, "scores": scores, "last": last, "run": run.directory.name,
    }  # fmt: skip


def evaluate(machine: Machine) -> Figures:
    """Return the figures of `crmuons evaluate` for the run of `train`, on the CPU. It needs scikit-learn and matplotlib."""
    from crmuons.evaluation.reference import EvaluationSettings  # noqa: PLC0415
    from crmuons.evaluation.report.files import summary  # noqa: PLC0415
    from crmuons.evaluation.request import EvaluationRequest, evaluate_request  # noqa: PLC0415
    from crmuons.evaluation.tasks import in_process  # noqa: PLC0415

    torch.set_num_threads(min(4, torch.get_num_threads()))
    model = str(machine.folder / "runs" / "train")
    settings = EvaluationSettings(machine.size(15_000, 600), 0)
    with in_process() as executor:
        (evaluation,) = evaluate_request(
            EvaluationRequest([prepared(machine, DENSE)], models=[model], settings=settings), executor
        )
    return {"summary": summary(evaluation).splitlines(), "figures": evaluation.flat()}


def _train(
    machine: Machine, name: str, data: str, settings: dict[str, Any], seconds: float, *, graph: bool
) -> tuple[Run, list[dict[str, Any]]]:
    """Train for some seconds in this process; return the run and its lines of metrics."""
    graphs = {"cuda_graph": graph} if HAS_GRAPHS else {}
    ends = {"steps": 40} if machine.tiny else {"max_seconds": seconds}
    settings = settings | graphs | ends
    given = {
        "data": {"train": [prepared(machine, data)]}, "train": settings, "tracking": {"enabled": False}, "scaling": {"num_workers": 0},
        "run": {"name": name.replace(", ", "-"), "storage_path": str(machine.folder / "runs"), "checkpoint_every": NEVER},
    }  # fmt: skip
    run = run_training(config.from_dict(given), LocalLauncher()).run
    return run, [json.loads(line) for line in run.metrics.read_text(encoding="utf-8").splitlines()]
