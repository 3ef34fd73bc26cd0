"""Draw muon bundles from a trained model."""

import argparse
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from crmuons.commands import INTERRUPTED, HelpWithDefaults
from crmuons.storage.redact import printable

if TYPE_CHECKING:
    from crmuons.generation.primaries import PrimarySource
    from crmuons.generation.rewrite import FormatOptions


def add(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.description = (
        "Draw one event for each primary (docs/generation.md). After an interruption, run the same command again to "
        "continue."
    )
    parser.formatter_class = HelpWithDefaults
    from crmuons.config.options import Counts, Events, Muons, Output, Place, Seed, Word, option

    add = parser.add_argument
    add(
        "--model",
        type=option(Place),
        required=True,
        help="a run, a checkpoint or a model directory (a path or a URL), or `models:/NAME@ALIAS` in MLflow",
    )
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument(
        "--primaries",
        type=option(Place),
        nargs="+",
        metavar="URL",
        help="primaries: Parquet files, directories, globs or URLs",
    )
    source.add_argument(
        "--spectrum",
        type=option(Word),
        nargs="+",
        metavar="NAME=VALUE",
        help="draw the primaries from a spectrum: events=N energy_gev=LOW:HIGH gamma=G "
        "composition=p:SHARE,He:SHARE,... zenith_deg=LOW:HIGH depth_m=LOW:HIGH (vertical) cylinder_m=LENGTH:RADIUS",
    )
    add("--vertical", action="store_true", help="depth_m of the primaries is the vertical depth")
    add("--out", type=option(Output), required=True, help="directory or URL for the Parquet files")
    add("--seed", type=option(Seed), default=0, help="the same seed, model and primaries give the same bundles")
    add("--device", type=option(Word), default="auto", help="cpu, cuda, or auto (a GPU if there is one)")
    add(
        "--counts",
        type=option(Counts),
        default="predict",
        help="muons in each event: predict (draw the number), column (take it from the primaries' files), or a number",
    )
    add(
        "--count-column",
        type=option(Word),
        metavar="NAME",
        help="the column of the primaries' files that holds N; implies --counts column",
    )
    add("--max-muons-per-event", type=option(Muons), metavar="CAP", help="limit the muons of each event to this number")
    add(
        "--events-per-shard",
        type=option(Events),
        help="events in a file, a multiple of 1024 (default: about 2 million muons in a file)",
    )
    add(
        "--strict",
        action="store_true",
        help="refuse primaries outside the range of the training data instead of flagging their events",
    )
    add(
        "--weight",
        type=option(Word),
        metavar="FLUX",
        help="add the column weight_hz for a cosmic-ray flux of simweights, for example GaisserH3a; needs --spectrum",
    )
    add(
        "--format",
        type=option(Word),
        help="also write the files of tracks, corsika8, icecube, f2k, mupage or siren (docs/formats.md), below OUT "
        "(default: parquet, only the contract's files; with --surface: tracks)",
    )
    add(
        "--surface",
        type=option(Word),
        metavar="SHAPE:SIZES",
        help="draw the axes around a detector, with bundles at the depth of their entry and tracks from there on: "
        "cylinder:RADIUS,LENGTH, sphere:RADIUS or plane:RADIUS, in metres; needs --spectrum with one depth_m",
    )
    add_fill(parser)


def add_fill(parser: argparse.ArgumentParser) -> None:
    """Add the option with which a format gets features that the muons lack."""
    from crmuons.config.options import Word, option

    parser.add_argument(
        "--fill",
        type=option(Word),
        nargs="+",
        default=(),
        metavar="NAME=VALUE",
        help="values for features that the muons lack and the format needs: dir_x=0 dir_y=0 t_ns=0 charge=-1",
    )


def run(arguments: argparse.Namespace) -> int:
    """Run the command."""
    from crmuons.generation import writer
    from crmuons.generation.formats.tracks import check_needs
    from crmuons.generation.load import choose_device, load_generator
    from crmuons.generation.request import GenerationOptions
    from crmuons.generation.rewrite import rewrite_files
    from crmuons.storage.files import list_files
    from crmuons.storage.output import Output
    from crmuons.storage.ownership import hold
    from crmuons.tracking.logged_models import local_place

    if arguments.count_column is not None:
        arguments.counts = _with_count_column(arguments.counts)
    options = GenerationOptions(
        device=choose_device(arguments.device, elsewhere="RAY_ADDRESS" in os.environ),
        seed=arguments.seed,
        counts=arguments.counts,
        max_muons_per_event=arguments.max_muons_per_event,
        strict=arguments.strict,
        events_per_shard=arguments.events_per_shard,
        weight=arguments.weight,
    )
    target = _format_options(arguments)
    generator = load_generator(local_place(arguments.model))
    if target is not None:
        what = f"--format {arguments.format}: {arguments.model}"
        check_needs([one.name for one in generator.muon_features], target.format.needs, target.fill, what)
    source = _primaries(arguments)
    try:
        with hold(arguments.out):
            work = writer.plan_generation(Output.at(arguments.out), generator, source, options)
            if work.is_for_ray:
                from crmuons.ray_backend.generate import generate
            else:
                from crmuons.generation.writer import generate
            counts = generate(generator, source, work)
            if target is not None:
                written = rewrite_files(
                    list_files(arguments.out), Output.at(f"{arguments.out}/_{arguments.format}"), target
                )
    except KeyboardInterrupt:
        print(
            "crmuons generate: interrupted; run the same command to continue after the finished files", file=sys.stderr
        )
        return INTERRUPTED
    print(printable(f"{counts.events} events with {counts.muons} muons in {arguments.out}"))
    print(printable(f"{counts.outside_training} outside the trained range, {counts.capped} capped"))
    if target is not None:
        missed = f"; {written.missed} events miss the surface and are left out" if arguments.surface else ""
        print(printable(f"{written.files} files of {arguments.format} in {arguments.out}/_{arguments.format}{missed}"))
    return 0


def _format_options(arguments: argparse.Namespace) -> "FormatOptions | None":
    """Return the format to write in addition to the contract's files; None if there is none."""
    from crmuons.generation.formats import CONTRACT, format_named
    from crmuons.generation.formats.surface import Surface
    from crmuons.generation.formats.tracks import parse_fill
    from crmuons.generation.rewrite import FormatOptions

    surface = None if arguments.surface is None else Surface.parse(arguments.surface)
    if arguments.format is None:
        arguments.format = CONTRACT if surface is None else "tracks"
    if arguments.format == CONTRACT:
        if surface is not None:
            msg = "--surface writes tracks, which the contract's files do not hold; leave --format out, or name another"
            raise ValueError(msg)
        if arguments.fill:
            msg = "--fill is for the formats of other tools; choose one with --format, or leave --fill out"
            raise ValueError(msg)
        return None
    return FormatOptions(
        format_named(arguments.format, "--format"), parse_fill(arguments.fill), arguments.seed, surface
    )


def _primaries(arguments: argparse.Namespace) -> "PrimarySource":
    from crmuons.generation.formats.surface import Surface
    from crmuons.generation.placement import PlacedSpectrum
    from crmuons.generation.primaries import PrimaryFiles
    from crmuons.generation.spectrum import Spectrum
    from crmuons.storage.output import check_apart

    if arguments.primaries:
        if arguments.surface is not None:
            msg = (
                "--surface takes the depth of each bundle where its axis enters; give --spectrum instead of --primaries"
            )
            raise ValueError(msg)
        if "://" not in arguments.out:
            check_apart(Path(arguments.out), arguments.primaries)
        return PrimaryFiles(
            arguments.primaries,
            with_counts=arguments.counts == "column",
            count_column=arguments.count_column,
            vertical_depth=arguments.vertical,
        )
    if arguments.counts == "column" or arguments.vertical:
        msg = "--counts column, --count-column and --vertical describe the files of --primaries; they do not go with --spectrum: give --primaries, or leave them out"
        raise ValueError(msg)
    spectrum = Spectrum.parse(arguments.spectrum, arguments.seed)
    if arguments.surface is None:
        return spectrum
    if any(word.startswith("cylinder_m=") for word in arguments.spectrum):
        msg = "--surface says through which cylinder the flux passes; leave cylinder_m out of --spectrum"
        raise ValueError(msg)
    return PlacedSpectrum.around(Surface.parse(arguments.surface), spectrum)


def _with_count_column(counts: int | str) -> str:
    if counts not in {"predict", "column"}:
        msg = f"--count-column takes N from the primaries' files, and --counts {counts} does not; leave one of them out"
        raise ValueError(msg)
    return "column"
