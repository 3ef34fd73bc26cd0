"""Compare a model or events with muons measured in nature, weighted to a cosmic-ray flux."""

import argparse
from pathlib import Path
from typing import Annotated

from pydantic import Field

from crmuons.storage.redact import printable


def add(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    from crmuons.config.options import Events, Output, Place, Seed, Word, option
    from crmuons.evaluation.nature.weights import DEFAULT_FLUX
    from crmuons.simulation.propagation import MEDIA
    from crmuons.simulation.simulate import Energy, GammaWord, Threshold

    parser.description = (
        "Weight events to a cosmic-ray flux, and compare depth-intensity curve, zenith angles, energies, multiplicities "
        "and distances with published measurements and calculations. docs/validation.md explains the figures."
    )
    add = parser.add_argument
    add(
        "sources",
        type=option(Place),
        nargs="+",
        metavar="DATA_OR_MODEL",
        help="events (files, directories, globs or URLs), or a run, checkpoint or model directory, which generates its own",
    )
    add(
        "--out",
        type=option(Output),
        required=True,
        help="directory or URL for validation.json, report.html and figures",
    )
    add(
        "--flux",
        type=option(Word),
        default=DEFAULT_FLUX,
        help=f"cosmic-ray flux of simweights (default: {DEFAULT_FLUX})",
    )
    add(
        "--energy-range",
        type=option(Energy),
        nargs=2,
        metavar="GEV",
        help="range from which the primaries were drawn (default: as the files of `simulate` and `generate` say)",
    )
    add(
        "--gamma",
        type=option(GammaWord),
        nargs="+",
        help="the primaries were drawn from E^-GAMMA, or from powers with the energies in GeV of breaks between them "
        "(default: as the files say)",
    )
    add(
        "--threshold-gev",
        type=option(Threshold),
        help="leave out muons below this energy at the depth (default: as the files say, or 10)",
    )
    add(
        "--surface-cut-gev",
        type=option(Annotated[float, Field(ge=0, le=1e10)]),
        default=0.0,
        metavar="GEV",
        help="energy at the surface below which the events lack muons, such as CORSIKA's cut (default: 0, none)",
    )
    add("--medium", choices=sorted(MEDIA), help="matter that the muons passed (default: as the files say, or ice)")
    add("--depth", choices=("slant", "vertical"), default="slant", help="meaning of depth_m in the files")
    add(
        "--events",
        type=option(Events),
        help="events to read at most (default: 2000000), or to generate from a model (default: 400000)",
    )
    add("--seed", type=option(Seed), default=0, help="seed of the generation, and of the choice of files")


def run(arguments: argparse.Namespace) -> None:
    """Run the command."""
    from crmuons.commands import track_results
    from crmuons.evaluation.nature.report import summary, write_report
    from crmuons.evaluation.nature.request import ValidationRequest, validate
    from crmuons.evaluation.tasks import in_process
    from crmuons.simulation.power_law import joined
    from crmuons.storage.output import folder_at

    request = ValidationRequest(
        sources=arguments.sources,
        flux=arguments.flux,
        energy_gev=None if arguments.energy_range is None else tuple(arguments.energy_range),
        gamma=None if arguments.gamma is None else joined(arguments.gamma),
        threshold_gev=arguments.threshold_gev,
        surface_gev=arguments.surface_cut_gev,
        medium=arguments.medium,
        vertical_depth=arguments.depth == "vertical",
        events=arguments.events,
        seed=arguments.seed,
    )
    with folder_at(arguments.out) as out, in_process() as executor:
        validation = validate(request, executor)
        write_report(validation, out)
        print(printable(summary(validation)))
        if validation.model_step is not None:
            values = {f"validation/{name}": value for name, value in validation.flat().items()}
            track_results(Path(request.sources[0]), values, validation.model_step, out)
    folder = arguments.out.rstrip("/")
    print(printable(f"report: {folder}/report.html\nfigures: {folder}/validation.json"))
