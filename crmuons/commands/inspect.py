"""Show what a data set holds; nothing is trained."""

import argparse


def add(parser: argparse.ArgumentParser) -> None:
    """The command's arguments."""
    add = parser.add_argument
    add("data", nargs="+", help="files, directories, globs or URLs of event Parquet")
    add("--rows", type=int, default=1_000_000, help="look at about so many rows; 0 for all (default: 1000000)")
    add("--preview", type=int, default=3, help="events with muons to show (default: 3)")


def run(arguments: argparse.Namespace) -> int:
    """Run the command."""
    from crmuons.data.inspection import inspect

    found = inspect(arguments.data, max_rows=arguments.rows or None)
    for line in found.lines(arguments.preview):
        print(line)
    return 1 if found.faults else 0
