"""Convert files of other programs into events, and events into the files of other tools."""

import argparse
import sys
from typing import TYPE_CHECKING

from crmuons.commands import INTERRUPTED
from crmuons.storage.redact import message, printable

if TYPE_CHECKING:
    from crmuons.simulation.convert import Conversion
    from crmuons.simulation.surface import DepthSettings

ENDING = (
    "A file that cannot be read to its end is left out completely and named; the exit code is then 1. The same command "
    "continues after an interruption."
)


def add(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    from crmuons.commands.simulate import add_features
    from crmuons.config.options import Output, Place, Seed, Word, option
    from crmuons.simulation.propagation import MEDIA
    from crmuons.simulation.simulate import Threshold
    from crmuons.simulation.surface import SlantDepth

    formats = parser.add_subparsers(dest="format", required=True, metavar="FORMAT")
    corsika = _format(
        formats,
        "corsika",
        "CORSIKA 7 particle files and CORSIKA 8 directories",
        "Follow the muons of CORSIKA 7 particle files (DAT..., also compressed with gzip, bz2, xz or zstd) and of "
        "CORSIKA 8's output directories into ice, water or rock.",
    )
    add = corsika.add_argument
    add("files", nargs="+", type=option(Place), help="files, globs or directories; the content tells what a file is")
    add("--out", type=option(Output), required=True, help="directory or URL for the Parquet files")
    add(
        "--depths",
        type=option(SlantDepth),
        nargs="+",
        metavar="M",
        help="slant depths in metres (default: 1500 2000 2500)",
    )
    add("--vertical", action="store_true", help="the depths are vertical: convert them with each shower's zenith")
    add("--medium", choices=sorted(MEDIA), default="ice", help="matter that the muons pass (default: ice)")
    add("--threshold-gev", type=option(Threshold), default=10.0, help="muons below this energy are lost (default: 10)")
    add("--seed", type=option(Seed), default=0, help="seed of the energy losses")
    add_features(corsika)

    for name, what in (("hdf5", "HDF5 dumps of Muonitron"), ("parquet", "Parquet files whose rows have more numbers")):
        dump = _format(
            formats,
            name,
            what,
            f"Convert {what} into the columns of crmuons. Without --columns, the widths that the predecessor wrote are "
            "known: primaries of 7 or 6 numbers, muons of 6 or 5.",
        )
        add = dump.add_argument
        add("files", nargs="+", type=option(Place), help="files, directories, globs or URLs")
        add("--out", type=option(Output), required=True, help="directory or URL for the Parquet files")
        add(
            "--columns",
            type=option(Word),
            nargs="+",
            default=(),
            metavar="PART=NAME,...",
            help="the numbers of a row in their order, for example "
            "primary=major,minor,energy,zenith,mass,time,depth muons=energy,radius,x,y; a primary needs energy, zenith, "
            "mass and depth, a muon energy, x and y; major and minor are the shower's ids; other names are ignored",
        )
        add(
            "--vertical",
            action="store_true",
            help="the depths are vertical, as in Muonitron: convert them to slant depths",
        )
    _add_events(formats)


def _add_events(formats: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    from crmuons.commands.generate import add_fill
    from crmuons.config.options import Output, Place, Seed, Word, option

    events = formats.add_parser(
        "events",
        help="events in the formats of other tools",
        description="Write files of events in the format of another tool, one file for each (docs/formats.md). The same "
        "command continues after an interruption.",
    )
    add = events.add_argument
    add("files", nargs="+", type=option(Place), help="Parquet files of events, directories, globs or URLs")
    add(
        "--to",
        type=option(Word),
        required=True,
        metavar="FORMAT",
        help="tracks, corsika8, icecube, f2k, mupage or siren",
    )
    add("--out", type=option(Output), required=True, help="directory or URL for the files")
    add("--seed", type=option(Seed), default=0, help="seed of the azimuths, one for each shower")
    add_fill(events)


def _format(
    formats: "argparse._SubParsersAction[argparse.ArgumentParser]", name: str, what: str, description: str
) -> argparse.ArgumentParser:
    return formats.add_parser(name, help=what, description=f"{description} {ENDING}")


def run(arguments: argparse.Namespace) -> int:
    """Run the command."""
    from crmuons.simulation import convert

    if arguments.format == "events":
        return _run_events(arguments)
    try:
        if arguments.format == "corsika":
            result = convert.convert_corsika(arguments.files, arguments.out, _depth_settings(arguments))
        else:
            result = convert.convert_dumps(
                arguments.files,
                arguments.out,
                columns=arguments.columns,
                vertical=arguments.vertical,
                command=f"convert {arguments.format}",
            )
    except KeyboardInterrupt:
        print(
            "crmuons convert: interrupted; run the same command to continue after the finished files", file=sys.stderr
        )
        return INTERRUPTED
    return _report(arguments, result)


def _run_events(arguments: argparse.Namespace) -> int:
    from pathlib import Path

    from crmuons.generation.formats import format_named
    from crmuons.generation.formats.tracks import parse_fill
    from crmuons.generation.rewrite import FormatOptions, rewrite
    from crmuons.storage.output import check_apart

    options = FormatOptions(format_named(arguments.to, "--to"), parse_fill(arguments.fill), arguments.seed)
    if "://" not in arguments.out:
        check_apart(Path(arguments.out), arguments.files)
    result = rewrite(arguments.files, arguments.out, options)
    kept = f", {result.kept} were there already" if result.kept else ""
    print(
        printable(f"{result.files} files with {result.events} events and {result.muons} muons in {arguments.out}{kept}")
    )
    return 0


def _depth_settings(arguments: argparse.Namespace) -> "DepthSettings":
    from crmuons.simulation.surface import DepthSettings

    depths = {} if arguments.depths is None else {"depths_m": tuple(arguments.depths)}
    return DepthSettings(
        **depths,
        vertical=arguments.vertical,
        threshold_gev=arguments.threshold_gev,
        medium=arguments.medium,
        seed=arguments.seed,
        features=tuple(arguments.features),
    )


def _report(arguments: argparse.Namespace, result: "Conversion") -> int:
    """Print what the output holds, and name each file that was left out once; return the exit code."""
    if result.total.events:
        kept = f", {result.kept} were there already" if result.kept else ""
        print(printable(f"{result.converted} files converted{kept}; in {arguments.out}:"))
        print(printable("\n".join(result.total.lines())))
        if arguments.format != "corsika" and not arguments.vertical:
            print("depths are kept as slant depths; Muonitron writes vertical depths, which need --vertical")
    else:
        print("nothing was converted", file=sys.stderr)
    if result.left_out:
        what = [f"left out {len(result.left_out)} files:", *result.left_out.values()]
        print(message("\n".join(what)), file=sys.stderr)
    return 1 if result.left_out or not result.total.events else 0
