"""Compare a model, or generated events, with held-out true ones."""

import argparse
import os
import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from crmuons.evaluation.evaluate import Evaluation
    from crmuons.evaluation.tasks import Executor


def add(parser: argparse.ArgumentParser) -> None:
    """The command's arguments."""
    parser.description = (
        "Compare generated events with true ones, beside the floor (truth against truth) and two cheap rivals. "
        "What the figures mean: docs/metrics.md."
    )
    add = parser.add_argument
    add("--truth", nargs="+", required=True, metavar="DATA", help="true events: files, directories, globs or URLs")
    add("--split", choices=("test", "validation", "train", "all"), default="test", help="of the true showers")
    candidate = parser.add_mutually_exclusive_group(required=True)
    candidate.add_argument(
        "--model",
        nargs="+",
        default=(),
        metavar="DIR",
        help="a run, a checkpoint or a model directory; of several, each gets a directory below --out",
    )
    candidate.add_argument("--generated", nargs="+", default=(), metavar="DATA", help="events, in place of a model")
    add("--out", required=True, help="directory or URL for evaluation.json, report.html and figures")
    add(
        "--events", type=int, default=60_000, help="events on each side (default: 60000); the floor takes as many again"
    )
    add(
        "--training",
        nargs="+",
        default=(),
        metavar="DATA",
        help="for the rivals (default: what the model was trained on, or the training split of --truth)",
    )
    add(
        "--depth",
        choices=("slant", "vertical"),
        help="what the true files' depth_m is (default: as in the model's training; slant for --generated)",
    )
    add("--seed", type=int, default=0, help="of the draws and the halves")
    add(
        "--workers",
        type=int,
        metavar="N",
        help="Ray tasks on N CPUs here; 0 for this process alone (default: the cluster of RAY_ADDRESS if that is set, or else 0)",
    )


def run(arguments: argparse.Namespace) -> None:
    """Run the command."""
    from crmuons.evaluation.reference import EvaluationSettings
    from crmuons.evaluation.report.files import summary, write_report
    from crmuons.evaluation.request import EvaluationRequest, evaluate_request
    from crmuons.storage.output import folder_at

    request = EvaluationRequest(
        truth=arguments.truth,
        split=arguments.split,
        models=arguments.model,
        generated=arguments.generated,
        training=arguments.training,
        depth=arguments.depth,
        settings=EvaluationSettings(arguments.events, arguments.seed),
    )
    names = _report_names(request.models)
    with folder_at(arguments.out) as out, _pieces(arguments.workers) as pieces:
        for evaluation, name in zip(evaluate_request(request, pieces), names, strict=True):
            write_report(evaluation, out / name)
            print(f"{evaluation.about['candidate']}\n{summary(evaluation)}")
            if request.models:
                _track_evaluation(Path(evaluation.about["candidate"]), evaluation, out / name)
    for name in names:
        place = f"{arguments.out.rstrip('/')}/{name}".rstrip("/")
        print(f"report: {place}/report.html\nfigures: {place}/evaluation.json")


def _report_names(models: Sequence[str]) -> list[str]:
    """The directories of the reports, by the models' names, where there are several."""
    if len(models) < 2:
        return [""]
    names = [Path(model).name for model in models]
    return [name if names.count(name) == 1 else f"{number}-{name}" for number, name in enumerate(names, 1)]


def _pieces(workers: int | None) -> "AbstractContextManager[Executor]":
    """Where an evaluation's work is done: in this process, or in Ray tasks."""
    cluster = "RAY_ADDRESS" in os.environ
    if workers is not None and (workers < 0 or (workers and cluster)):
        msg = f"--workers {workers}: wanted 0 or more, and none where RAY_ADDRESS names a cluster, whose CPUs are all used"
        raise ValueError(msg)
    if workers == 0 or (workers is None and not cluster):
        from crmuons.evaluation.tasks import in_process

        return in_process()
    from crmuons.ray_backend.evaluate import on_ray

    return on_ray(num_cpus=workers)


def _track_evaluation(run: Path, evaluation: "Evaluation", out: Path) -> None:
    """Add the evaluation of a run to the run in MLflow; a server that is down is no failure of the evaluation."""
    from crmuons.tracking.journal import Journal
    from crmuons.tracking.results import add_results

    if not Journal.exists(run):
        return
    values = {f"evaluation/{name}": value for name, value in evaluation.flat().items()}
    try:
        run_id = add_results(run, values, int(evaluation.about["model_step"]), out)
    except (ConnectionError, BlockingIOError) as error:
        print(f"kept for `crmuons sync {run}`: {error}", file=sys.stderr)
    else:
        print(f"MLflow run: {run_id}")
