"""Run the simulator in Ray tasks, one per file."""

from functools import partial
from pathlib import Path

from crmuons.progress import progress
from crmuons.ray_backend import cluster
from crmuons.ray_backend.tasks import map_unordered
from crmuons.simulation.simulate import SimulationSettings, plan_files, write_file


def simulate(settings: SimulationSettings, *, num_events: int, out: Path, seed: int) -> None:
    """Write the same files as `crmuons.simulation.simulate.simulate`, in tasks on a cluster that shares the directory.

    Raises:
        ValueError: see `plan_files`.
    """
    numbers, done = plan_files(settings, num_events, out, seed)
    write = partial(write_file, out.absolute(), settings, seed, num_events)
    with cluster.cluster(), progress(num_events, unit="events", what="simulate", initial=done) as bar:
        for written in map_unordered(write, numbers, options={"name": "write_file"}):
            bar.update(written)
