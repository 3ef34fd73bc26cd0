"""What `crmuons benchmark SUITE` does: run a suite, print it, keep it, and track it."""

import json
import os
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from crmuons import config, provenance
from crmuons.allocator import keep_freed_memory
from crmuons.benchmark import figures, generate, read, scale, step, train
from crmuons.benchmark.figures import Figure
from crmuons.simulation.simulate import SimulationSettings, simulate
from crmuons.tracking.tracker import Tracker
from crmuons.tracking.uri import resolve_uri
from crmuons.training.summary import RunSummary


@dataclass(frozen=True)
class BenchmarkOptions:
    """How a suite is run.

    Attributes:
        rounds: of each measurement.
        threads: of torch, in the suites `step` and `generate`, and in all workers of `train` together.
        device: of the suites `step` and `generate`; `train` takes a GPU where there is one.
        data: events for `read` and `train`; simulated where there are none.
        workers: of the suite `train`; 0 leaves Ray out of it and of `read`.
        events: of a worker's batch in the suite `train`.
        out: new directory for results.json, the MLflow journal and what the suite needs.
        start: trains as settings say.
        read_through_ray: the part of `read` that needs Ray.
    """

    rounds: int
    threads: int
    device: str
    data: Sequence[str]
    workers: int
    events: int
    out: Path
    start: Callable[[config.Config], RunSummary]
    read_through_ray: Callable[[int, Sequence[str]], list[Figure]]


SUITES: Mapping[str, Callable[[BenchmarkOptions], list[Figure]]] = {
    "step": lambda options: step.run(options.rounds, torch.device(options.device)),
    "read": lambda options: _read(options, _data(options)),
    "train": lambda options: train.run(options.rounds, _settings(options, _data(options)), options.start),
    "generate": lambda options: generate.run(options.rounds, torch.device(options.device)),
    "scale": lambda options: scale.run(options.rounds),
}


def _settings(options: BenchmarkOptions, data: Sequence[str]) -> config.Config:
    given = {"workers": options.workers, "threads": options.threads, "events": options.events}
    return train.settings_of(options.rounds, data, options.out, **given)


def _read(options: BenchmarkOptions, data: Sequence[str]) -> list[Figure]:
    found = read.run(options.rounds, data, options.out / "prepared")
    return found + options.read_through_ray(options.rounds, data) if options.workers else found


def run(suite: str, options: BenchmarkOptions) -> dict[str, Any]:
    """Run a suite; writes results.json and tracks the figures.

    Returns:
        What results.json holds, and under "table" the same for people.

    Raises:
        FileExistsError: if the directory for the results holds something.
    """
    options.out.mkdir(parents=True, exist_ok=True)
    if any(options.out.iterdir()):
        msg = f"{options.out} is not empty; name a new directory for the benchmark with --out"
        raise FileExistsError(msg)
    keep_freed_memory()
    torch.set_num_threads(options.threads)
    found = SUITES[suite](options)
    results = figures.as_json(suite, _machine(suite, options), found)
    (options.out / "results.json").write_text(json.dumps(results, indent=1))
    _track(suite, results["machine"], found, options.out)
    return results | {"table": figures.table(found)}


def _track(suite: str, machine: Mapping[str, Any], found: Sequence[Figure], out: Path) -> None:
    tracker = Tracker.open(
        out,
        uri=resolve_uri(Path()),
        experiment="crmuons benchmark",
        run_name=f"{suite} {datetime.now(UTC):%Y-%m-%d %H.%M.%S}",
        params=machine,
        tags={"suite": suite},
    )
    tracker.metrics(figures.metrics(found), 0)
    tracker.artifact(out / "results.json")
    tracker.finish("FINISHED")


def _machine(suite: str, options: BenchmarkOptions) -> dict[str, Any]:
    takes_device = suite in {"step", "generate"}
    on_gpu = options.device == "cuda" if takes_device else suite == "train" and torch.cuda.is_available()
    return {
        "processor": torch.cuda.get_device_name() if on_gpu else _processor(),
        "cores": os.cpu_count() or 0,
        "threads": options.threads if takes_device or suite == "train" else 1,
        "load_average": round(os.getloadavg()[0], 1),
        "rounds": options.rounds,
        "torch": torch.__version__,
        **provenance.code_tags(),
    }


def _processor() -> str:
    cpus = Path("/proc/cpuinfo")
    names = (
        [line.partition(":")[2] for line in cpus.read_text().splitlines() if line.startswith("model name")]
        if cpus.exists()
        else []
    )
    return names[0].strip() if names else platform.processor()


def _data(options: BenchmarkOptions) -> Sequence[str]:
    if options.data:
        return options.data
    made = options.out / "data"
    simulate(SimulationSettings(), num_events=200_000, out=made, seed=0)
    return [str(made)]
