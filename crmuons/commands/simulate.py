"""Draw muon bundles in ice, water or rock with the built-in simulator."""

import argparse

from crmuons.commands import HelpWithDefaults
from crmuons.storage.redact import printable


def add(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    from crmuons.config.options import Events, Output, Seed, option
    from crmuons.simulation.propagation import MEDIA
    from crmuons.simulation.simulate import (
        Depth,
        DepthsPerShower,
        Energy,
        ExpectedNumber,
        GammaWord,
        Nucleus,
        SimulationSettings,
        Threshold,
        ZenithDeg,
    )

    default = SimulationSettings()
    parser.description = (
        "Draw muon bundles from published parametrisations, in the ice of the South Pole, in water or in standard rock "
        "(docs/simulator.md)."
    )
    parser.formatter_class = HelpWithDefaults
    add = parser.add_argument
    add("--events", type=option(Events), required=True, help="rows to write; a shower gives one row for each depth")
    add(
        "--out",
        type=option(Output),
        required=True,
        help="new directory or URL for the Parquet files; for a URL, only this process simulates",
    )
    add("--seed", type=option(Seed), default=0, help="the same seed and settings give the same events")
    add(
        "--energy-range",
        type=option(Energy),
        nargs=2,
        metavar="GEV",
        default=default.energy_gev,
        help="lowest and highest energy of the primaries",
    )
    add(
        "--gamma",
        type=option(GammaWord),
        nargs="+",
        default=default.gamma,
        help="the primaries' spectrum is E^-GAMMA; or powers with the energies in GeV of breaks between them",
    )
    add(
        "--expected-muons",
        type=option(ExpectedNumber),
        nargs=2,
        metavar="N",
        help="draw energies so that the logarithm of the expected number of muons is uniform between these numbers; the "
        "column `weight` undoes this: weighted averages are the same as with --gamma (default: energies of --gamma)",
    )
    add(
        "--masses",
        type=option(Nucleus),
        nargs="+",
        metavar="NUCLEUS",
        default=default.masses_gev,
        help="primaries in equal shares: nuclei by name (p, He, C, N, O, Mg, Al, Si, Fe) or masses in GeV",
    )
    add(
        "--max-zenith-deg",
        type=option(ZenithDeg),
        default=default.max_zenith_deg,
        help="largest zenith angle; cos zenith is uniform from its cosine to 1",
    )
    add(
        "--depth-range",
        type=option(Depth),
        nargs=2,
        metavar="M",
        default=default.depth_range_m,
        help="range of the vertical depths",
    )
    add(
        "--depths-per-shower",
        type=option(DepthsPerShower),
        default=default.depths_per_shower,
        help="how many depths to draw for each shower",
    )
    add(
        "--depths",
        type=option(Depth),
        nargs="+",
        metavar="M",
        default=(),
        help="the same vertical depths for every shower, instead of drawn ones",
    )
    add(
        "--medium",
        choices=sorted(MEDIA),
        default=default.medium,
        help="matter that the muons pass; ice lies at 2835 m, water and rock at sea level",
    )
    add(
        "--threshold-gev",
        type=option(Threshold),
        default=default.threshold_gev,
        help="muons below this energy are lost",
    )
    add_features(parser)


def add_features(parser: argparse.ArgumentParser) -> None:
    """Add the option for further numbers of a muon."""
    from crmuons.config.options import Word, option

    parser.add_argument(
        "--features",
        type=option(Word),
        nargs="+",
        default=(),
        metavar="NAME",
        help="numbers of a muon in addition to energy_gev, x_m, y_m: t_ns dir_x dir_y charge energy_surface_gev",
    )


def run(arguments: argparse.Namespace) -> None:
    """Run the command."""
    from crmuons.simulation import power_law
    from crmuons.simulation.simulate import FILES_IN_PROCESS, SimulationSettings, num_files, simulate
    from crmuons.storage.output import folder_at

    settings = SimulationSettings(
        energy_gev=tuple(arguments.energy_range),
        gamma=power_law.joined(arguments.gamma),
        masses_gev=tuple(arguments.masses),
        max_zenith_deg=arguments.max_zenith_deg,
        depth_range_m=tuple(arguments.depth_range),
        depths_per_shower=arguments.depths_per_shower,
        depths_m=tuple(arguments.depths),
        threshold_gev=arguments.threshold_gev,
        medium=arguments.medium,
        features=tuple(arguments.features),
        expected_muons=None if arguments.expected_muons is None else tuple(arguments.expected_muons),
    )
    # With a URL, `out` is a temporary directory of this node: tasks on other nodes cannot write to it.
    if num_files(arguments.events, settings) > FILES_IN_PROCESS and "://" not in arguments.out:
        from crmuons.ray_backend.simulate import simulate
    with folder_at(arguments.out, new=True) as out:
        simulate(settings, num_events=arguments.events, out=out, seed=arguments.seed)
    print(printable(f"{arguments.events} events in {arguments.out}"))
