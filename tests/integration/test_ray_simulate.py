"""The simulator as Ray tasks writes what one process writes."""

import pytest

from crmuons import ray_simulate
from crmuons.simulation import simulate


@pytest.mark.ray
@pytest.mark.usefixtures("cluster")
def test_ray_tasks_write_the_same_files_as_one_process(tmp_path):
    settings = simulate.Settings(energy_gev=(1e4, 1e6))
    arguments = {"num_events": 120_000, "seed": 11}
    simulate.simulate(settings, out=tmp_path / "process", **arguments)
    ray_simulate.simulate(settings, out=tmp_path / "tasks", **arguments)
    names = sorted(path.name for path in (tmp_path / "process").iterdir())
    assert len(names) == 3
    assert sorted(path.name for path in (tmp_path / "tasks").iterdir()) == names
    assert all((tmp_path / "tasks" / name).read_bytes() == (tmp_path / "process" / name).read_bytes() for name in names)
