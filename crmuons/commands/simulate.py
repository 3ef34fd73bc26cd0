"""Draw muon bundles in ice with the built-in simulator."""

import argparse

from crmuons.commands import HelpWithDefaults


def add(parser: argparse.ArgumentParser) -> None:
    """The command's arguments."""
    from crmuons.simulation.simulate import SimulationSettings

    default = SimulationSettings()
    parser.description = "Draw muon bundles in South Pole ice from published parametrisations (docs/simulator.md)."
    parser.formatter_class = HelpWithDefaults
    add = parser.add_argument
    add("--events", type=int, required=True, help="rows to write: a shower counts once per depth")
    add("--out", required=True, help="new directory for the Parquet files, or a URL (then in this process alone)")
    add("--seed", type=int, default=0, help="same seed and settings, same events")
    add("--energy-range", type=float, nargs=2, metavar="GEV", default=default.energy_gev, help="of the primaries")
    add("--gamma", type=float, default=default.gamma, help="primaries follow E^-GAMMA")
    add("--masses", type=float, nargs="+", metavar="GEV", default=default.masses_gev, help="of the primaries")
    add("--max-zenith-deg", type=float, default=default.max_zenith_deg, help="cos zenith is uniform from here to 1")
    add("--depth-range", type=float, nargs=2, metavar="M", default=default.depth_range_m, help="of vertical depths")
    add("--depths-per-shower", type=int, default=default.depths_per_shower, help="depths drawn in the range")
    add("--depths", type=float, nargs="+", metavar="M", default=(), help="vertical depths, instead of drawn ones")
    add("--threshold-gev", type=float, default=default.threshold_gev, help="muons below are lost")


def run(arguments: argparse.Namespace) -> None:
    """Run the command."""
    from crmuons.simulation.simulate import FILES_IN_PROCESS, SimulationSettings, num_files, simulate
    from crmuons.storage.output import folder_at

    settings = SimulationSettings(
        energy_gev=tuple(arguments.energy_range),
        gamma=arguments.gamma,
        masses_gev=tuple(arguments.masses),
        max_zenith_deg=arguments.max_zenith_deg,
        depth_range_m=tuple(arguments.depth_range),
        depths_per_shower=arguments.depths_per_shower,
        depths_m=tuple(arguments.depths),
        threshold_gev=arguments.threshold_gev,
    )
    # Tasks on other nodes would write to directories of their own, from which nothing is copied to a URL.
    if num_files(arguments.events, settings) > FILES_IN_PROCESS and "://" not in arguments.out:
        from crmuons.ray_backend.simulate import simulate
    with folder_at(arguments.out, new=True) as out:
        simulate(settings, num_events=arguments.events, out=out, seed=arguments.seed)
    print(f"{arguments.events} events in {arguments.out}")
