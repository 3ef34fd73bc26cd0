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
from crmuons.benchmark import figures, generate, read, scale, step, train
from crmuons.benchmark.figures import Figure
from crmuons.memory import keep_freed_memory
from crmuons.simulation.simulate import Settings, simulate
from crmuons.tracking.tracker import Tracker
from crmuons.tracking.uri import resolve_uri


@dataclass(frozen=True)
class Options:
    """How a suite is run.

    Attributes:
        rounds: of each measurement.
        threads: of torch in this process.
        device: of the suites `step` and `generate`.
        data: event Parquet for `read` and `train`; simulated where there is none.
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
    start: Callable[[config.Config], Any]
    read_through_ray: Callable[[int, Sequence[str]], list[Figure]]


SUITES: Mapping[str, Callable[[Options], list[Figure]]] = {
    "step": lambda options: step.run(options.rounds, torch.device(options.device)),
    "read": lambda options: _read(options, _data(options)),
    "train": lambda options: train.run(options.rounds, _settings(options, _data(options)), options.start),
    "generate": lambda options: generate.run(options.rounds, torch.device(options.device)),
    "scale": lambda options: scale.run(options.rounds),
}


def _settings(options: Options, data: Sequence[str]) -> config.Config:
    return train.settings_of(options.rounds, data, options.workers, options.events, options.out)


def _read(options: Options, data: Sequence[str]) -> list[Figure]:
    found = read.run(options.rounds, data)
    return found + options.read_through_ray(options.rounds, data) if options.workers else found


def run(suite: str, options: Options) -> dict[str, Any]:
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
    results = figures.as_json(suite, _machine(options), found)
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


def _machine(options: Options) -> dict[str, Any]:
    on_gpu = torch.device(options.device).type == "cuda"
    return {
        "processor": torch.cuda.get_device_name() if on_gpu else _processor(),
        "cores": os.cpu_count() or 0,
        "threads": options.threads,
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


def _data(options: Options) -> Sequence[str]:
    if options.data:
        return options.data
    made = options.out / "data"
    simulate(Settings(), num_events=200_000, out=made, seed=0)
    return [str(made)]
