"""Measure the speed on this machine."""

import argparse
import json
import os
from datetime import UTC, datetime
from pathlib import Path


def add(parser: argparse.ArgumentParser) -> None:
    """The command's arguments."""
    parser.description = (
        "Time a part beside its reference, in turns; print medians and quartiles as a table and as JSON, and log "
        "them to MLflow (docs/performance.md)."
    )
    parser.formatter_class = argparse.ArgumentDefaultsHelpFormatter
    add = parser.add_argument
    add("suite", choices=("step", "read", "train", "generate", "scale"), help="what is measured")
    add("--rounds", type=int, default=5, help="times that each of the rivals runs")
    add("--threads", type=int, default=os.cpu_count() or 1, help="torch threads of this process")
    add("--device", default="cpu", help="of step and generate: cpu or cuda")
    add(
        "--data",
        nargs="+",
        default=(),
        metavar="DATA",
        help="event Parquet for read and train; simulated where not given",
    )
    add("--workers", type=int, default=1, help="Ray Train workers of train; 0: no Ray, in train and in read")
    add("--events", type=int, default=2048, help="of a worker's batch in train")
    add(
        "--out",
        type=Path,
        help="new directory for results.json and what the suite needs (default: benchmarks/SUITE-TIME)",
    )


def run(arguments: argparse.Namespace) -> None:
    """Run the command."""
    from crmuons.benchmark import read_through_ray
    from crmuons.benchmark.command import Options, run
    from crmuons.ray_train import run_training

    now = datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
    results = run(
        arguments.suite,
        Options(
            rounds=arguments.rounds,
            threads=arguments.threads,
            device=arguments.device,
            data=arguments.data,
            workers=arguments.workers,
            events=arguments.events,
            out=arguments.out or Path("benchmarks") / f"{arguments.suite}-{now}",
            start=run_training,
            read_through_ray=read_through_ray.run,
        ),
    )
    print(results.pop("table"))
    print(json.dumps(results))
