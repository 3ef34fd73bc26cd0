"""Draw muon bundles from a trained model."""

import argparse
import os
import sys
from typing import TYPE_CHECKING

from crmuons.commands import INTERRUPTED, HelpWithDefaults

if TYPE_CHECKING:
    from crmuons.generation.primaries import PrimarySource


def add(parser: argparse.ArgumentParser) -> None:
    """The command's arguments."""
    parser.description = (
        "Draw one event for each primary (docs/generation.md). The same command goes on where it was interrupted."
    )
    parser.formatter_class = HelpWithDefaults
    add = parser.add_argument
    add("--model", required=True, help="a run, a checkpoint or a model directory; a path or a URL")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--primaries", nargs="+", metavar="URL", help="Parquet files, directories, globs or URLs")
    source.add_argument(
        "--spectrum",
        nargs="+",
        metavar="NAME=VALUE",
        help="draw the primaries: events=N energy_gev=LOW:HIGH gamma=G composition=p:SHARE,He:SHARE,... zenith_deg=LOW:HIGH "
        "depth_m=LOW:HIGH (vertical) cylinder_m=LENGTH:RADIUS",
    )
    add("--vertical", action="store_true", help="the primaries' depth_m is the vertical depth")
    add("--out", required=True, help="directory or URL for the Parquet files")
    add("--seed", type=int, default=0, help="same seed, model and primaries, same bundles")
    add("--device", default="auto", help="cpu, cuda, or auto: a GPU where there is one")
    add(
        "--counts",
        type=_counts,
        default="predict",
        help="N: predict (draw it), column (the primaries' files), or a number",
    )
    add("--max-muons-per-event", type=int, metavar="CAP", help="events with more muons get this many")
    add(
        "--events-per-shard",
        type=int,
        help="rows of a file, a multiple of 1024 (default: such that it has 2 million muons)",
    )
    add(
        "--strict",
        action="store_true",
        help="refuse primaries outside the trained range instead of flagging their events",
    )


def run(arguments: argparse.Namespace) -> int:
    """Run the command."""
    from crmuons.generation import writer
    from crmuons.generation.load import choose_device, load_generator
    from crmuons.generation.request import GenerationOptions
    from crmuons.storage.output import Output

    options = GenerationOptions(
        device=choose_device(arguments.device, elsewhere="RAY_ADDRESS" in os.environ),
        seed=arguments.seed,
        counts=arguments.counts,
        max_muons_per_event=arguments.max_muons_per_event,
        strict=arguments.strict,
        events_per_shard=arguments.events_per_shard,
    )
    generator = load_generator(arguments.model)
    source = _primaries(arguments)
    try:
        work = writer.plan_generation(Output.at(arguments.out), generator, source, options)
        if work.is_for_ray:
            from crmuons.ray_backend.generate import generate
        else:
            from crmuons.generation.writer import generate
        tally = generate(generator, source, work)
    except KeyboardInterrupt:
        print("crmuons generate: interrupted; the same command goes on from the finished shards", file=sys.stderr)
        return INTERRUPTED
    print(f"{tally.events} events with {tally.muons} muons in {arguments.out}")
    print(f"{tally.outside_training} outside the trained range, {tally.capped} capped")
    return 0


def _primaries(arguments: argparse.Namespace) -> "PrimarySource":
    from crmuons.generation.primaries import PrimaryFiles
    from crmuons.generation.spectrum import Spectrum

    if arguments.primaries:
        return PrimaryFiles(
            arguments.primaries, with_counts=arguments.counts == "column", vertical_depth=arguments.vertical
        )
    if arguments.counts == "column" or arguments.vertical:
        msg = "--counts column and --vertical say how --primaries files are read; a spectrum has neither"
        raise ValueError(msg)
    return Spectrum.parse(arguments.spectrum, arguments.seed)


def _counts(text: str) -> int | str:
    if text in {"predict", "column"}:
        return text
    if text.isdecimal():
        return int(text)
    msg = f"'{text}' is none of: predict, column, a number of muons"
    raise argparse.ArgumentTypeError(msg)
