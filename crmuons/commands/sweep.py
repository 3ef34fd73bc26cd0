"""Train many runs with different settings, and find the best."""

import argparse
import sys
from typing import get_args

from crmuons.commands import INTERRUPTED, add_settings, settings_of
from crmuons.storage.redact import printable


def add(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.description = (
        "Train trials with different settings on Ray Tune, and compare their validation scores. To continue a sweep "
        "that was stopped or killed, run the same command with run.resume=auto (docs/sweeps.md)."
    )
    add_settings(parser)
    from crmuons.config.options import LocalPath, Seconds, Seed, option
    from tune.options import Cpus, FirstRung, Gpus, Reduction, SchedulerName, Trials
    from tune.search import Method

    add = parser.add_argument
    add("--space", type=option(LocalPath), metavar="TOML", help="the settings to vary (default: learning rates, momentum or betas, "
        "critic steps, penalty, batch size)")  # fmt: skip
    add(
        "--search",
        choices=get_args(Method),
        default="tpe",
        help="how to choose the settings of a trial (default: tpe)",
    )
    add("--scheduler", choices=get_args(SchedulerName), default="asha",
        help="which trials to continue: all (none), the better ones (asha), or a population in which bad trials copy "
        "good ones (pbt) (default: asha)")  # fmt: skip
    add("--samples", type=option(Trials), metavar="N", help="number of trials (default: 20, or the whole grid)")
    add("--concurrency", type=option(Trials), metavar="N", help="number of trials at once (default: as many as fit)")
    add("--cpus-per-trial", type=option(Cpus), metavar="CPUS", help="CPUs of a trial (default: an equal share)")
    add(
        "--gpus-per-trial",
        type=option(Gpus),
        metavar="GPUS",
        help="GPUs of a trial; a fraction shares a GPU, 0 trains on CPUs (default: an equal share)",
    )
    add(
        "--max-seconds",
        type=option(Seconds),
        metavar="S",
        help="save and end all trials after this time (default: no limit)",
    )
    add(
        "--seed",
        type=option(Seed),
        default=0,
        help="seed of the choice of settings; run.seed is the seed of the training (default: 0)",
    )
    add(
        "--first-rung",
        type=option(FirstRung),
        metavar="SHARE",
        default=1 / 9,
        help="share of a run after which asha first compares trials (default: 1/9)",
    )
    add(
        "--reduction",
        type=option(Reduction),
        default=3.0,
        help="asha continues one in this many trials at each comparison (default: 3)",
    )


def run(arguments: argparse.Namespace) -> int:
    """Run the command."""
    from crmuons.config.options import check_place
    from tune.options import SweepOptions
    from tune.space import Space

    settings = settings_of(arguments.words)
    check_place(settings.run.storage_path)
    space = Space.default(settings) if arguments.space is None else Space.load(arguments.space)
    options = SweepOptions(**{name: getattr(arguments, name) for name in SweepOptions.__dataclass_fields__})
    space.check(settings)
    options.check(space, settings)  # Before the import of Ray, which takes seconds.
    from tune.sweep import run_sweep

    result = run_sweep(settings, space, options)
    print(printable(result.describe()))
    if result.outcome == "interrupted":
        return INTERRUPTED
    if result.outcome == "complete" and result.best is None:
        print("crmuons sweep: no trial finished with a score; trials.csv has the reasons", file=sys.stderr)
        return 1
    return 0
