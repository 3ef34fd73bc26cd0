"""List every setting of a run, with what it means."""

import argparse


def add(parser: argparse.ArgumentParser) -> None:
    """The command's arguments."""


def run(_arguments: argparse.Namespace) -> None:
    """Run the command."""
    from crmuons import config

    for path, (default, meaning) in config.settings().items():
        print(f"{path} = {default}\n    {meaning}")
