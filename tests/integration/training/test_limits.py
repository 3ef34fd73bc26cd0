"""Two ranks end together within the time limit, whatever happens to the data of one of them."""

import time

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing

from crmuons.training import worker
from tests.unit.training.test_limits import SLOW_MACHINE_S, hang_after, inputs, last_line, prepared  # noqa: F401 - fixtures


def one_of_two(rank, settings, run, segments, directory):
    """Train as one rank of two; rank 1 gets the events of so many segments."""
    dist.init_process_group("gloo", init_method=f"file://{directory}/ranks", rank=rank, world_size=2)
    how = {"read": hang_after(segments)} if rank == 1 else {}
    outcome = worker.train(settings, run, device=torch.device("cpu"), tracking_uri="", **how)
    (directory / f"{rank}.txt").write_text(outcome)
    dist.destroy_process_group()


@pytest.mark.parametrize("segments", [6, 10**9], ids=["rank 1 hangs", "both read"])
def test_ranks_end_together_within_the_time_also_when_one_gets_no_data(prepared, tmp_path, segments):  # noqa: F811
    settings, run = prepared(max_seconds=2.0)
    begin = time.monotonic()
    torch.multiprocessing.spawn(one_of_two, (settings, run, segments, tmp_path), nprocs=2)
    assert time.monotonic() - begin < 10 * SLOW_MACHINE_S  # Two processes import torch.
    assert [(tmp_path / f"{rank}.txt").read_text() for rank in (0, 1)] == ["finished"] * 2
    assert last_line(run)["progress/seconds"] >= 2.0
