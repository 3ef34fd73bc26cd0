"""What ranks exchange; tests/integration/training/test_distributed.py does it with two processes."""

import torch

from crmuons.training import distributed


def test_one_process_needs_no_group():
    assert (distributed.rank(), distributed.world_size()) == (0, 1)
    assert distributed.from_rank_zero([1.5, 2.0], torch.device("cpu")) == [1.5, 2.0]
    assert distributed.gather(torch.tensor([3.0])).tolist() == [[3.0]]
    assert distributed.sum_over_ranks(torch.tensor([3.0])).tolist() == [3.0]
