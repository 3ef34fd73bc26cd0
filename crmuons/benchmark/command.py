"""Run a suite of `crmuons benchmark SUITE`, and save and track its results."""

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
from crmuons.benchmark import figures, generate, read, step, train
from crmuons.benchmark.figures import Figure
from crmuons.machine import keep_freed_memory
from crmuons.simulation.simulate import SimulationSettings, simulate
from crmuons.storage import ownership
from crmuons.storage.claims import names_in
from crmuons.tracking.health import usable_uri
from crmuons.tracking.tracker import Tracker
from crmuons.training.summary import RunSummary


@dataclass(frozen=True)
class BenchmarkOptions:
    """Options of a suite.

    Attributes:
        rounds: number of rounds of each measurement.
        threads: torch's threads in the suites `step` and `generate`, or of all workers together in `train`.
        device: device of the suites `step` and `generate`; `train` takes a GPU if there is one.
        data: events for `read` and `train`; an empty list simulates them.
        workers: workers of the suite `train`; with 0, neither `train` nor `read` uses Ray.
        events: events in a worker's batch in the suite `train`.
        out: new directory for results.json, the MLflow journal and the suite's own files.
        start: function that trains with the given settings.
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
}


def _settings(options: BenchmarkOptions, data: Sequence[str]) -> config.Config:
    return train.settings_of(
        options.rounds, data, options.out, workers=options.workers, threads=options.threads, events=options.events
    )


def _read(options: BenchmarkOptions, data: Sequence[str]) -> list[Figure]:
    results = read.run(options.rounds, data, options.out / "prepared")
    return results + options.read_through_ray(options.rounds, data) if options.workers else results


def run(suite: str, options: BenchmarkOptions) -> dict[str, Any]:
    """Run a suite, write results.json and track the figures.

    Returns:
        The content of results.json, and under "table" the same as text.

    Raises:
        FileExistsError: if the directory for the results is not empty.
        HeldError: if another process writes there.
    """
    with ownership.hold(options.out):
        return _run(suite, options)


def _run(suite: str, options: BenchmarkOptions) -> dict[str, Any]:
    if names_in(options.out):
        msg = f"{options.out} is not empty; name a new directory for the benchmark with --out"
        raise FileExistsError(msg)
    keep_freed_memory()
    torch.set_num_threads(options.threads)
    tracking_uri = usable_uri(Path())  # A wrong URI fails here, before hours of measuring.
    measured = SUITES[suite](options)
    results = figures.as_json(suite, _machine(suite, options), measured)
    (options.out / "results.json").write_text(json.dumps(results, indent=1), encoding="utf-8")
    _track(suite, results["machine"], measured, options.out, tracking_uri)
    return results | {"table": figures.figure_table(measured)}


def _track(suite: str, machine: Mapping[str, Any], measured: Sequence[Figure], out: Path, uri: str) -> None:
    tracker = Tracker.open(
        out,
        uri=uri,
        experiment="crmuons benchmark",
        run_name=f"{suite} {datetime.now(UTC):%Y-%m-%d %H.%M.%S}",
        params=machine,
        tags={"suite": suite},
    )
    tracker.metrics(figures.figure_metrics(measured), 0)
    tracker.artifact(out / "results.json")
    tracker.finish("FINISHED")


def _machine(suite: str, options: BenchmarkOptions) -> dict[str, Any]:
    takes_device = suite in {"step", "generate"}
    on_gpu = options.device == "cuda" if takes_device else suite == "train" and torch.cuda.is_available()
    return {
        "processor": torch.cuda.get_device_name() if on_gpu else processor(),
        "cores": os.cpu_count() or 0,
        "threads": options.threads if takes_device or suite == "train" else 1,
        "load_average": round(os.getloadavg()[0], 1),
        "rounds": options.rounds,
        "torch": torch.__version__,
        **provenance.code_tags(),
    }


def processor() -> str:
    """Return the name of this machine's processor."""
    cpus = Path("/proc/cpuinfo")
    names = (
        [
            line.partition(":")[2]
            for line in cpus.read_text(encoding="utf-8").splitlines()
            if line.startswith("model name")
        ]
        if cpus.exists()
        else []
    )
    return names[0].strip() if names else platform.processor()


def _data(options: BenchmarkOptions) -> Sequence[str]:
    if options.data:
        return options.data
    simulated = options.out / "data"
    # The default range would give twice as many muons per event, but figures must stay comparable between versions.
    simulate(SimulationSettings(energy_gev=(1e4, 1e9), gamma=1.4), num_events=200_000, out=simulated, seed=0)
    return [str(simulated)]
