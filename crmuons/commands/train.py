"""Train a generator, on Ray Train workers or in this process."""

import argparse
import sys
from typing import TYPE_CHECKING

from crmuons.commands import INTERRUPTED, add_settings, settings_of
from crmuons.storage.redact import message, printable

if TYPE_CHECKING:
    from crmuons.training.ensemble import EnsembleSummary
    from crmuons.training.summary import RunSummary


def add(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.description = (
        "Train a generator. The settings come from a TOML preset, and from words section.key=value that override it."
    )
    add_settings(parser)
    from crmuons.config.options import Members, option

    parser.add_argument(
        "--ensemble",
        type=option(Members),
        metavar="K",
        help="train K runs, each without another part of the showers, and join them to one model with error bars",
    )


def run(arguments: argparse.Namespace) -> int:
    """Run the command."""
    from crmuons.config.options import check_place

    settings = settings_of(arguments.words)  # Before the import of Ray, which takes seconds.
    check_place(settings.run.storage_path)
    from crmuons.commands import launcher_of
    from crmuons.training.driver import RunFailedError, run_training
    from crmuons.training.ensemble import train_ensemble

    try:
        if arguments.ensemble is not None:
            result: RunSummary | EnsembleSummary = train_ensemble(settings, arguments.ensemble, launcher_of(settings))
        else:
            result = run_training(settings, launcher_of(settings))
    except RunFailedError as error:
        print(message(f"crmuons train: {error}"), file=sys.stderr)
        return 1
    print(printable(result.describe()))
    return 0 if result.outcome == "finished" else INTERRUPTED
