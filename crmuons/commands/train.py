"""Train a generator, on Ray Train workers or in this process."""

import argparse
import sys
from pathlib import Path

from crmuons.commands import INTERRUPTED, check_place


def add(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.description = (
        "Train a generator. The settings come from a TOML preset, and from words section.key=value that override it."
    )
    parser.epilog = "`crmuons settings` lists every setting."
    parser.add_argument("preset", type=Path, help="TOML file; jobs/configs has presets")
    parser.add_argument("words", nargs="*", metavar="section.key=value", help="settings that override the preset's")


def run(arguments: argparse.Namespace) -> int:
    """Run the command."""
    from crmuons import config

    settings = config.load(arguments.preset, arguments.words)  # Before Ray, whose import takes seconds.
    check_place(settings.run.storage_path)
    from crmuons.commands import launcher_of
    from crmuons.training.driver import RunFailedError, run_training

    try:
        result = run_training(settings, launcher_of(settings))
    except RunFailedError as error:
        print(f"crmuons train: {error}", file=sys.stderr)
        return 1
    print(result.describe())
    return 0 if result.outcome == "finished" else INTERRUPTED
