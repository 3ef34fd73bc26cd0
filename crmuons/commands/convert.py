"""Convert files of other programs into events."""

import argparse
import sys


def add(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    formats = parser.add_subparsers(dest="format", required=True, metavar="FORMAT")
    corsika = formats.add_parser(
        "corsika",
        help="CORSIKA 7 particle files",
        description="Follow the muons of CORSIKA 7 particle files (DAT...) into the ice. "
        "A file that cannot be read to its end is left out completely and named; the exit code is then 1.",
    )
    add = corsika.add_argument
    add("files", nargs="+", help="files, globs, or directories that hold only CORSIKA files")
    add("--out", required=True, help="new directory or URL for the Parquet files")
    add("--depths", type=float, nargs="+", metavar="M", help="slant depths in metres (default: 1500 2000 2500)")
    add("--vertical", action="store_true", help="the depths are vertical: convert them with each shower's zenith")
    add("--threshold-gev", type=float, help="muons below this energy are lost (default: 10)")
    add("--seed", type=int, default=0, help="seed of the energy losses")


def run(arguments: argparse.Namespace) -> int:
    """Run the command."""
    from crmuons.simulation.corsika import DEPTHS_M, THRESHOLD_GEV, convert
    from crmuons.storage.output import folder_at

    with folder_at(arguments.out, new=True) as out:
        left_out = convert(
            arguments.files,
            out,
            depths_m=arguments.depths or DEPTHS_M,
            vertical=arguments.vertical,
            threshold_gev=THRESHOLD_GEV if arguments.threshold_gev is None else arguments.threshold_gev,
            seed=arguments.seed,
        )
    print(f"events in {arguments.out}")
    if left_out:
        print("\n".join([f"left out {len(left_out)} files:", *left_out.values()]), file=sys.stderr)
    return 1 if left_out else 0
