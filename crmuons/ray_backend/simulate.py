"""The simulator as Ray tasks, one per file."""

import itertools
from pathlib import Path

import ray

from crmuons.progress import progress
from crmuons.ray_backend import cluster
from crmuons.simulation.simulate import SimulationSettings, make_output_directory, num_files, write_file

TASKS_AHEAD_PER_CPU = 2  # Enough to keep every CPU busy; more would only fill the scheduler's queue.


def simulate(settings: SimulationSettings, *, num_events: int, out: Path, seed: int) -> None:
    """Write the same files as `crmuons.simulation.simulate.simulate`, by tasks on a cluster that shares the output directory.

    Raises:
        ValueError: for no events, a negative seed, or a directory that already holds something.
    """
    make_output_directory(out, num_events, seed)
    with cluster.cluster(), progress(num_events, unit="events", what="simulate") as bar:
        cpus = ray.cluster_resources().get("CPU", 1)
        ahead = TASKS_AHEAD_PER_CPU * max(1, int(cpus))
        write = ray.remote(write_file)
        waiting = (
            write.remote(out.absolute(), settings, seed, num_events, number)
            for number in range(num_files(num_events, settings))
        )
        running = list(itertools.islice(waiting, ahead))
        while running:
            done, running = ray.wait(running)
            running.extend(itertools.islice(waiting, len(done)))
            bar.update(sum(ray.get(done)))
