"""Make the digests of remote files, which each rank gets as it opens them, the same on all ranks."""

from collections.abc import Sequence

import numpy as np
import torch

from crmuons.storage.identity import Digests
from crmuons.training import distributed


def common_digests(digests: Digests, urls: Sequence[str], device: torch.device) -> dict[str, str]:
    """Exchange the digests of remote files between the ranks, and return those that any rank knows.

    Args:
        digests: of this rank, which gets those of the others too.
        urls: the files, the same on every rank.
        device: of the exchange.

    Raises:
        ChangedError: on every rank, if two ranks opened a file with different content.
    """
    if urls:
        # A digest is 64 bits, and 0 stands for none: text of any length cannot be gathered.
        own = np.array([int(digests.known.get(url, "0"), 16) for url in urls], np.uint64)
        gathered = distributed.gather(torch.from_numpy(own.view(np.int64)).to(device))
        for number, rank in zip(*np.nonzero(codes := gathered.cpu().numpy().view(np.uint64).T), strict=True):
            digests.note(urls[number], f"{codes[number, rank]:016x}")
    return dict(digests.known)
