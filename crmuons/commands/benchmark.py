"""Measure speed on this machine, or how good models of few showers are."""

import argparse
import json
import sys
from datetime import UTC, datetime
from pathlib import Path

from crmuons.commands import HelpWithDefaults
from crmuons.machine import num_threads
from crmuons.storage.redact import message, printable


def add(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.description = (
        "Time one part of crmuons and its reference in turn. Print medians and quartiles as a table and as JSON, and "
        "log them to MLflow (docs/performance.md). The suite amplification measures fidelity (docs/amplification.md)."
    )
    parser.formatter_class = HelpWithDefaults
    from crmuons.config.options import (
        BatchEvents,
        LocalPath,
        Minutes,
        Place,
        Processes,
        Rounds,
        SampleEvents,
        Seconds,
        Seeds,
        ShowerNumbers,
        Threads,
        Word,
        option,
    )

    add = parser.add_argument
    add(
        "suite",
        choices=("step", "read", "train", "generate", "gpu", "amplification"),
        help="what to measure; gpu checks a GPU in parts, in eight minutes, and needs neither Ray nor MLflow; amplification "
        "compares models of few showers with copies of more (docs/amplification.md)",
    )
    add("--rounds", type=option(Rounds), default=5, help="how often to run each of the compared programs")
    add(
        "--threads",
        type=option(Threads),
        default=num_threads().number,
        help="torch threads in step, generate and each training of amplification; in train, threads of all workers together",
    )
    add(
        "--device",
        type=option(Word),
        help="device of step, generate (default: cpu) and gpu (default: cuda): cpu, cuda or auto; train uses a GPU if there is one",
    )
    add(
        "--data",
        type=option(Place),
        nargs="+",
        default=(),
        metavar="DATA",
        help="events for read (raw files), train (raw or prepared files) and amplification (with --truth); simulated if not "
        "given",
    )
    add(
        "--workers",
        type=option(Processes),
        default=1,
        help="Ray Train workers of train; with 0, train and read do not use Ray",
    )
    add("--events", type=option(BatchEvents), default=2048, help="events in a worker's batch in train")
    add(
        "--parts",
        type=option(Word),
        nargs="+",
        metavar="PART",
        help="parts of gpu: machine, parity, step, generate, data, job, train, ranks, evaluate",
    )
    add(
        "--limit",
        type=option(Seconds),
        default=420.0,
        metavar="SECONDS",
        help="time for gpu; a part that does not fit is left out",
    )
    add("--tiny", action="store_true", help="run gpu once on a few events, to try the check itself")
    add(
        "--truth",
        type=option(Place),
        nargs="+",
        default=(),
        metavar="DATA",
        help="held-out true events of amplification, many of them; simulated with --data if not given",
    )
    add(
        "--showers",
        type=option(ShowerNumbers),
        default=(200, 600, 2000),
        metavar="N,N,...",
        help="numbers of showers to train on in amplification (default: 200,600,2000)",
    )
    add("--seeds", type=option(Seeds), default=3, help="trainings at each number of showers in amplification")
    add("--minutes", type=option(Minutes), default=10.0, help="minutes of each training in amplification")
    add(
        "--sample-events",
        type=option(SampleEvents),
        default=30_000,
        metavar="EVENTS",
        help="number of true events, and of generated events, in amplification; the truth needs twice this number",
    )
    add(
        "--settings",
        nargs="+",
        type=option(Word),
        default=(),
        metavar="WORD",
        help="a preset and section.key=value for the trainings of amplification (default: the preset default)",
    )
    add(
        "--out",
        type=option(LocalPath),
        help="new directory for results.json and the suite's own files (default: benchmarks/SUITE-TIME); amplification "
        "continues in the directory of an earlier call",
    )


def run(arguments: argparse.Namespace) -> int:
    """Run the command."""
    from crmuons.storage.files import check_writable

    now = datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
    out = arguments.out or Path("benchmarks") / f"{arguments.suite}-{now}"
    check_writable(str(out))  # Before the imports of torch and MLflow, which take seconds.
    own = {"gpu": _run_check, "amplification": _run_amplification}
    return own.get(arguments.suite, _run_suite)(arguments, out)


def _run_check(arguments: argparse.Namespace, out: Path) -> int:
    from crmuons.benchmark.gpu import report, run
    from crmuons.generation.load import choose_device

    parts = arguments.parts or list(run.PARTS)
    if unknown := sorted(set(parts) - set(run.PARTS)):
        msg = f"--parts {unknown[0]}: expected {', '.join(run.PARTS)}"
        raise ValueError(msg)
    device = choose_device(arguments.device or "cuda", elsewhere=False)
    results = run.run(device, out, parts=parts, limit=arguments.limit, tiny=arguments.tiny)
    print(printable(report.table(results)))
    print(printable(f"figures: {out}/results.json\nfor docs/performance.md: {out}/paragraph.md\nlog: {out}/log.txt"))
    found = report.failures(results)
    for fault in found:
        print(message(f"crmuons benchmark: {fault}"), file=sys.stderr)
    return 1 if found else 0


def _run_amplification(arguments: argparse.Namespace, out: Path) -> int:
    from crmuons.benchmark.amplification.run import AmplificationOptions, check_words, run
    from crmuons.commands import settings_of
    from crmuons.training.driver import RunFailedError

    check_words(arguments.settings)
    options = AmplificationOptions(
        data=arguments.data,
        truth=arguments.truth,
        showers=arguments.showers,
        seeds=arguments.seeds,
        minutes=arguments.minutes,
        threads=arguments.threads,
        sample_events=arguments.sample_events,
        settings=settings_of(arguments.settings),
        out=out,
    )
    try:
        print(printable(run(options)))
    except RunFailedError as error:
        print(message(f"crmuons benchmark: {error}"), file=sys.stderr)
        return 1
    print(printable(f"figures: {out}/results.json, {out}/amplification.png"))
    return 0


def _run_suite(arguments: argparse.Namespace, out: Path) -> int:
    from crmuons.benchmark import read_through_ray
    from crmuons.benchmark.command import BenchmarkOptions, run
    from crmuons.commands import launcher_of
    from crmuons.generation.load import choose_device
    from crmuons.training.driver import RunFailedError, run_training

    options = BenchmarkOptions(
        rounds=arguments.rounds,
        threads=arguments.threads,
        device=choose_device(arguments.device or "cpu", elsewhere=False),
        data=arguments.data,
        workers=arguments.workers,
        events=arguments.events,
        out=out,
        start=lambda settings: run_training(settings, launcher_of(settings)),
        read_through_ray=read_through_ray.run,
    )
    try:
        results = run(arguments.suite, options)
    except RunFailedError as error:
        print(message(f"crmuons benchmark: {error}"), file=sys.stderr)
        return 1
    print(printable(results.pop("table")))
    print(printable(json.dumps(results)))
    return 0
