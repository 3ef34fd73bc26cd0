"""Compare a model, or generated events, with held-out true ones."""

import argparse
import os
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING

from crmuons.storage.redact import printable

if TYPE_CHECKING:
    from crmuons.evaluation.tasks import Executor


def add(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.description = (
        "Compare generated events with true ones. The report also shows the best possible result (truth against truth) "
        "and two simple baselines. docs/metrics.md explains the numbers."
    )
    from crmuons.config.options import Output, Place, Processes, SampleEvents, Seed, option

    add = parser.add_argument
    add(
        "--truth",
        type=option(Place),
        nargs="+",
        required=True,
        metavar="DATA",
        help="true events: files, directories, globs or URLs",
    )
    add(
        "--split",
        choices=("test", "validation", "train", "all"),
        default="test",
        help="which of the true showers to use",
    )
    candidate = parser.add_mutually_exclusive_group(required=True)
    candidate.add_argument(
        "--model",
        type=option(Place),
        nargs="+",
        default=(),
        metavar="DIR",
        help="runs, checkpoints or model directories; with several, each gets a directory below --out",
    )
    candidate.add_argument(
        "--generated",
        type=option(Place),
        nargs="+",
        default=(),
        metavar="DATA",
        help="generated events, in place of a model",
    )
    add(
        "--out",
        type=option(Output),
        required=True,
        help="directory or URL for evaluation.json, report.html and figures",
    )
    add(
        "--events",
        type=option(SampleEvents),
        default=60_000,
        help="number of true events, and of generated events (default: 60000); truth against truth needs this number again",
    )
    add(
        "--training",
        type=option(Place),
        nargs="+",
        default=(),
        metavar="DATA",
        help="events to fit the baselines to (default: the model's training data, or the training split of --truth)",
    )
    add(
        "--depth",
        choices=("slant", "vertical"),
        help="whether depth_m of the true files is slant or vertical (default: as in the model's training; slant for "
        "--generated)",
    )
    add(
        "--hard-cells",
        type=option(SampleEvents),
        nargs="?",
        const=20_000,
        metavar="EVENTS",
        help="read all of the truth, and judge large bundles, distant and energetic muons and other rare kinds with up to "
        "this number of events each (20000 if no number is given)",
    )
    add("--seed", type=option(Seed), default=0, help="seed of the generation and of the samples")
    add(
        "--workers",
        type=option(Processes),
        metavar="N",
        help="run Ray tasks on N CPUs of this machine; 0 uses this process alone (default: the cluster of RAY_ADDRESS if "
        "it is set, otherwise 0)",
    )


def run(arguments: argparse.Namespace) -> None:
    """Run the command."""
    from crmuons.commands import check_tracking, track_results
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
        hard_cells=arguments.hard_cells,
    )
    names = _report_names(request.models)
    check_tracking(request.models)
    with folder_at(arguments.out) as out, _executor(arguments.workers) as executor:
        for evaluation, name in zip(evaluate_request(request, executor), names, strict=True):
            write_report(evaluation, out / name)
            print(printable(f"{evaluation.about['candidate']}\n{summary(evaluation)}"))
            if request.models:
                values = {f"evaluation/{figure}": value for figure, value in evaluation.flat().items()}
                run_directory, step = Path(evaluation.about["candidate"]), int(evaluation.about["model_step"])
                track_results(run_directory, values, step, out / name)
    for name in names:
        folder = f"{arguments.out.rstrip('/')}/{name}".rstrip("/")
        print(printable(f"report: {folder}/report.html\nfigures: {folder}/evaluation.json"))


def _report_names(models: Sequence[str]) -> list[str]:
    """Return the directory of each report below --out: none for one model, the models' names for several."""
    if len(models) < 2:
        return [""]
    names = [Path(model).name for model in models]
    return [name if names.count(name) == 1 else f"{number}-{name}" for number, name in enumerate(names, 1)]


def _executor(workers: int | None) -> "AbstractContextManager[Executor]":
    """Return what runs the evaluation's tasks: this process, or Ray."""
    cluster = "RAY_ADDRESS" in os.environ
    if workers is not None and (workers < 0 or (workers and cluster)):
        msg = (
            f"--workers {workers}: expected 0 or more; omit it if RAY_ADDRESS names a cluster, whose CPUs are all used"
        )
        raise ValueError(msg)
    if workers == 0 or (workers is None and not cluster):
        from crmuons.evaluation.tasks import in_process

        return in_process()
    from crmuons.ray_backend.evaluate import on_ray

    return on_ray(num_cpus=workers)
