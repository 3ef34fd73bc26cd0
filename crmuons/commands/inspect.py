"""Show what a data set holds: rows, ranges, multiplicities and faults."""

import argparse

from crmuons.storage.redact import printable


def add(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.description = "Show what a data set holds. Every file is opened; the exit code is 1 if one is broken, or a row cannot be used."
    from crmuons.config.options import Place, Rows, option

    add = parser.add_argument
    add("data", type=option(Place), nargs="+", help="files, directories, globs or URLs of event Parquet")
    add(
        "--rows", type=option(Rows), default=1_000_000, help="read about this many rows; 0 reads all (default: 1000000)"
    )
    add("--preview", type=option(Rows), default=3, help="number of events with muons to show (default: 3)")


def run(arguments: argparse.Namespace) -> int:
    """Run the command."""
    from crmuons.data.inspection import inspect

    inspection = inspect(arguments.data, max_rows=arguments.rows or None)
    for line in inspection.lines(arguments.preview):
        print(printable(line))
    return 0 if inspection.is_good else 1
