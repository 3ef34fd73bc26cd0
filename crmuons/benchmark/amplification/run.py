"""Run `crmuons benchmark amplification`: read the showers and the truth, measure what is missing, write the results."""

import hashlib
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from crmuons import config, provenance
from crmuons.benchmark.amplification import report
from crmuons.benchmark.amplification.measure import FIXED, Bench
from crmuons.benchmark.amplification.results import MODEL, Results
from crmuons.benchmark.amplification.showers import copied_sizes, digest_of, read_pool
from crmuons.benchmark.command import processor
from crmuons.config.options import Minutes, SampleEvents, Seeds, ShowerNumbers, Threads
from crmuons.data.events import NO_EVENTS
from crmuons.data.selection import Selection
from crmuons.evaluation import pairing
from crmuons.evaluation.datasets import BlockedEvents, read
from crmuons.evaluation.headers import EventHeaders
from crmuons.evaluation.reference import (
    NEAREST,
    PARAMETRIC,
    EvaluationSettings,
    Reference,
    prepare_reference,
    size_warnings,
)
from crmuons.evaluation.tasks import in_process
from crmuons.machine import keep_freed_memory
from crmuons.simulation.simulate import SimulationSettings, simulate
from crmuons.storage import ownership, records
from crmuons.storage.atomic import write_json
from crmuons.storage.claims import names_in
from crmuons.tracking.health import usable_uri
from crmuons.tracking.tracker import Tracker

logger = logging.getLogger(__name__)

RECORD, RESULTS, FIGURE = "amplification.json", "results.json", "amplification.png"
DEPTHS = 5  # Depths at which a simulated shower is recorded; users of CORSIKA record about five.
LEAST_SIMULATED = 20_000  # Showers to copy. Copies of 20,000 showers have a joint AUC of about 0.53.


@dataclass(frozen=True)
class AmplificationOptions:
    """Options of the benchmark.

    Attributes:
        data, truth: events to train on, and held-out true events; both empty to simulate both.
        showers: numbers of showers to train on.
        seeds: number of trainings at each number of showers; each has its own showers and initial weights.
        minutes: duration of each training in minutes.
        threads: number of torch's threads in each training.
        sample_events: events of each half of the truth.
        settings: settings of the trainings.
        out: directory of the results; finished measurements of an earlier call are kept.

    Raises:
        ValueError: if only one of `data` and `truth` is given.
    """

    data: Sequence[str]
    truth: Sequence[str]
    showers: ShowerNumbers
    seeds: Seeds
    minutes: Minutes
    threads: Threads
    sample_events: SampleEvents
    settings: config.Config
    out: Path

    def __post_init__(self) -> None:
        if bool(self.data) != bool(self.truth):
            given, other = ("--data", "--truth") if self.data else ("--truth", "--data")
            msg = f"{given} is given without {other}; give both, of different showers, or neither, to simulate them"
            raise ValueError(msg)


def check_words(words: Sequence[str]) -> None:
    """Refuse settings that the benchmark chooses.

    Raises:
        ValueError: if there is one; the message names the first.
    """
    for word in words:
        name = word.partition("=")[0]
        if name in FIXED:
            msg = f"--settings {name}: the benchmark chooses it; leave it out (--minutes, --threads and --seeds say how to train)"
            raise ValueError(msg)


def run(options: AmplificationOptions) -> str:
    """Measure what is not measured yet; write results.json and amplification.png, and log them to MLflow.

    Returns:
        The table of the results.

    Raises:
        FileNotFoundError, ValueError: if data or options cannot be used.
        FileExistsError: if the directory holds something else.
        HeldError: if another process writes there.
        RunFailedError: if a training failed.
    """
    with ownership.hold(options.out):
        _check_directory(options.out)
        logger.info(
            "results go to %s; after an interruption the same command with --out %s continues", options.out, options.out
        )
        keep_freed_memory()
        torch.set_num_threads(options.threads)
        tracking_uri = usable_uri(Path())  # A wrong URI fails here, before hours of training.
        bench, about = _prepare(options)
        results = measure(bench, options.showers, options.seeds)
        write_json(options.out / RESULTS, report.as_json(results, about))
        report.draw(results).savefig(options.out / FIGURE, dpi=150)
        _track(results, about, options.out, tracking_uri)
        return report.table(results)


def measure(bench: Bench, showers: Sequence[int], seeds: int) -> Results:
    """Measure copies at all numbers of showers, and models and parametric baselines at the numbers to train on."""
    trained = sorted(set(showers))
    floor, copied = bench.floor(), copied_sizes(trained, bench.pool.num_showers)
    numbers: dict[str, dict[int, list[Any]]] = {MODEL: {}, NEAREST: {}, PARAMETRIC: {}}
    for seed in range(seeds):
        for size in copied:
            logger.info("seed %d: copies of %d showers", seed, size)
            numbers[NEAREST].setdefault(size, []).append(bench.copies(size, seed, NEAREST))
    for seed in range(seeds):
        for size in trained:
            logger.info("seed %d: a model of %d showers", seed, size)
            numbers[PARAMETRIC].setdefault(size, []).append(bench.copies(size, seed, PARAMETRIC))
            numbers[MODEL].setdefault(size, []).append(bench.model(size, seed))
    return Results(numbers, floor, trained)


def _check_showers(bench: Bench, showers: Sequence[int], seeds: int) -> None:
    available = bench.pool.num_showers
    if max(showers) > available:
        msg = (
            f"--showers {max(showers)}: --data has {available} showers that are not in the truth; give more data, or "
            "smaller numbers"
        )
        raise ValueError(msg)
    for seed in range(seeds):
        for size in showers:
            bench.check(size, seed)


def _check_directory(out: Path) -> None:
    if names_in(out) and not (out / RECORD).is_file() and set(names_in(out)) - {"simulated"}:
        msg = f"{out} is not empty, and holds no amplification; name a new directory with --out"
        raise FileExistsError(msg)


def _prepare(options: AmplificationOptions) -> tuple[Bench, dict[str, Any]]:
    """Read the events, and check that the directory was begun with the same options."""
    data, truth = (options.data, options.truth) if options.data else _simulated(options)
    vertical = options.settings.data.depth == "vertical"
    reference = _reference(truth, options.sample_events, vertical=vertical)
    limit = options.settings.data.max_quarantined_share
    for warning in size_warnings(reference.truth.event_set):
        logger.warning(warning)
    pool = read_pool(data, reference.both.ids, vertical=vertical, max_quarantined_share=limit)
    about = {
        "data": f"{', '.join(data)}: {pool.num_showers} showers, {len(pool.showers)} events",
        "truth": f"{', '.join(truth)}: two halves of {len(reference.truth.event_set)} events",
        "digest": f"{digest_of(pool.events)} {digest_of(reference.both)}",
        "minutes": options.minutes,
        "threads": options.threads,
        "settings": options.settings.model_dump(mode="json", exclude={"run": {"name"}}),
    }
    bench = Bench(options.out, pool, reference, options.settings, options.minutes, options.threads)
    _check_showers(bench, options.showers, options.seeds)
    _record(options.out / RECORD, about)  # This comes last, so that a refused command does not claim the directory.
    machine = {"processor": processor(), "cores": os.cpu_count() or 0, "torch": torch.__version__}
    return bench, about | {"seeds": options.seeds} | machine | provenance.code_tags()


def _record(file: Path, about: Mapping[str, Any]) -> None:
    """Write what the results depend on; refuse a directory that was begun with something else."""
    if not file.is_file():
        write_json(file, about)
        return
    earlier = records.read(file, keys=tuple(about))
    for name, value in about.items():
        if earlier[name] != value and name not in {"data", "truth"}:
            what = "other events" if name == "digest" else f"another value of {name}"
            msg = f"{file.parent} was begun with {what}; give the same as then, or name another --out"
            raise ValueError(msg)


def _simulated(options: AmplificationOptions) -> tuple[list[str], list[str]]:
    """Simulate showers to train on and true showers. They have different seeds and therefore different ids."""
    showers = {
        "data": max(LEAST_SIMULATED, 10 * max(options.showers)),
        "truth": -(-2 * options.sample_events // DEPTHS) + 1,
    }
    for seed, (name, number) in enumerate(showers.items(), 1):
        out = options.out / "simulated" / name
        simulate(SimulationSettings(depths_per_shower=DEPTHS), num_events=DEPTHS * number, out=out, seed=seed)
    return [str(options.out / "simulated" / "data")], [str(options.out / "simulated" / "truth")]


def _reference(truth: Sequence[str], events: int, *, vertical: bool) -> Reference:
    settings = EvaluationSettings(events)
    with in_process() as executor:
        request = Selection(vertical_depth=vertical), 2 * events
        (found,), counts = read(executor, truth, [request], settings.seed)
        if not len(found):
            msg = f"no true events in {', '.join(truth)} ({counts.rows} rows read, {counts.quarantined} of them unusable); give others in --truth"
            raise ValueError(msg)
        halves = pairing.halve(found.headers, events, settings.seed)
        return prepare_reference(
            executor, found, BlockedEvents(EventHeaders.of(NO_EVENTS), [], 0, []), settings, halves
        )


def _track(results: Results, about: Mapping[str, Any], out: Path, uri: str) -> None:
    params = {name: value for name, value in about.items() if name != "settings"}
    # MLflow keeps the first value of a step, so results with more seeds need another run.
    digest = hashlib.sha256((out / RESULTS).read_bytes()).hexdigest()[:8]
    tracker = Tracker.open(
        out / "mlflow" / digest,
        uri=uri,
        experiment="crmuons benchmark",
        run_name=f"amplification {out.name}",
        params=params | {"settings": about["settings"]["train"]},
        tags={"suite": "amplification"},
    )
    for showers, values in report.metrics(results).items():
        tracker.metrics(values, showers)
    tracker.artifact(out / RESULTS)
    tracker.artifact(out / FIGURE)
    tracker.finish("FINISHED")
