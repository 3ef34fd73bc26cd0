"""Share the digests of remote files between the ranks. Each rank gets a digest when it opens a file."""

from collections.abc import Sequence

import numpy as np
import torch

from crmuons.storage.identity import Digests
from crmuons.training import distributed


def common_digests(digests: Digests, urls: Sequence[str], device: torch.device) -> dict[str, str]:
    """Exchange the digests of remote files between the ranks, and return all digests that any rank knows.

    Args:
        digests: digests of this rank. The digests of the other ranks are added.
        urls: the files, the same on every rank.
        device: device for the exchange.

    Raises:
        ChangedError: on every rank, if two ranks opened a file with different content.
    """
    if urls:
        # Digests are gathered as 64-bit numbers, with 0 for no digest: `gather` needs tensors of one shape.
        own = np.array([int(digests.known.get(url, "0"), 16) for url in urls], np.uint64)
        gathered = distributed.gather(torch.from_numpy(own.view(np.int64)).to(device))
        for number, rank in zip(*np.nonzero(codes := gathered.cpu().numpy().view(np.uint64).T), strict=True):
            digests.note(urls[number], f"{codes[number, rank]:016x}")
    return dict(digests.known)
