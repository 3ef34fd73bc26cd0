"""Train many runs over a space of settings, and find the best."""

import argparse
import sys
from pathlib import Path

from crmuons.commands import INTERRUPTED


def add(parser: argparse.ArgumentParser) -> None:
    """The command's arguments."""
    parser.description = (
        "Train trials over a space of settings on Ray Tune; the score is the validation's, as in `crmuons train`. "
        "The same command with run.resume=auto continues a sweep that was stopped or killed (docs/sweeps.md)."
    )
    parser.epilog = "`crmuons settings` lists every setting."
    add = parser.add_argument
    add(
        "preset",
        type=Path,
        help="TOML file with the settings of every trial; those that come along are in jobs/configs",
    )
    add("words", nargs="*", metavar="section.key=value", help="settings that override the preset's")
    add("--space", type=Path, metavar="TOML", help="what varies (default: learning rates, momentum or betas, critic steps, "
        "penalty, batch size)")  # fmt: skip
    add("--search", choices=("random", "tpe", "grid"), default="tpe", help="how trials are chosen (default: tpe)")
    add("--scheduler", choices=("none", "asha", "pbt"), default="asha",
        help="which trials go on: all, the better ones, or a population that copies its best (default: asha)")  # fmt: skip
    add("--samples", type=int, metavar="N", help="trials (default: 20, or the whole grid)")
    add("--concurrency", type=int, metavar="N", help="trials at once (default: as many as there is room for)")
    add("--cpus-per-trial", type=float, metavar="CPUS", help="(default: an equal share)")
    add(
        "--gpus-per-trial",
        type=float,
        metavar="GPUS",
        help="fractions share a GPU, 0 trains on CPUs (default: an equal share)",
    )
    add("--max-seconds", type=float, metavar="S", help="save and end all trials after this time (default: no limit)")
    add("--seed", type=int, default=0, help="of the choice of trials; run.seed is the training's (default: 0)")
    add(
        "--first-rung",
        type=float,
        metavar="SHARE",
        default=1 / 9,
        help="of a run, where asha compares first (default: 1/9)",
    )
    add("--reduction", type=float, default=3.0, help="asha lets one in so many go on from rung to rung (default: 3)")


def run(arguments: argparse.Namespace) -> int:
    """Run the command."""
    from crmuons import config
    from tune.options import SweepOptions
    from tune.space import Space

    settings = config.load(arguments.preset, arguments.words)
    space = Space.default(settings) if arguments.space is None else Space.load(arguments.space)
    options = SweepOptions(**{name: getattr(arguments, name) for name in SweepOptions.__dataclass_fields__})
    space.check(settings)
    options.check(space, settings)  # Before Ray, whose import takes seconds.
    from tune.sweep import run_sweep

    result = run_sweep(settings, space, options)
    print(result.describe())
    if result.outcome == "interrupted":
        return INTERRUPTED
    if result.outcome == "complete" and result.best is None:
        print("crmuons sweep: no trial reached its end with a score; the reasons are in trials.csv", file=sys.stderr)
        return 1
    return 0
