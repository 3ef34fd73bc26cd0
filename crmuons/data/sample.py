"""A sample of the events of many files."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from crmuons.data.events import EventArrays, concat, take
from crmuons.data.manifest import is_shard
from crmuons.data.quarantine import QuarantineLimit, ReadCounts
from crmuons.data.reader import read_ordered, read_slice
from crmuons.data.sampler import cut_files, permutation
from crmuons.data.selection import Selection, in_split
from crmuons.storage.files import File

SAMPLE_SHARD_BYTES = 8 * 2**20  # Of shards in a sample: the driver takes 229 MB for it, and 327 with units of 64 MB.


def sample_events(
    found: Sequence[File],
    wanted: Sequence[tuple[Selection, int]],
    seed: int = 0,
    max_quarantined_share: float = 1.0,
) -> tuple[list[EventArrays], ReadCounts]:
    """Up to so many events of several selections, in one pass over units in random order.

    Args:
        found: the files.
        wanted: selections, and how many events of each.
        seed: of the order.
        max_quarantined_share: of all rows there are.

    Returns:
        The events of each selection, fewer where the files hold fewer, and what became of the rows read.

    Raises:
        ValueError: if a file is not one of events, or too many rows cannot be used.
    """
    shards = [file for file in found if is_shard(file)]
    # Raw files may be one row group, which is decoded for each unit: they are not cut more finely.
    units = [*cut_files([file for file in found if not is_shard(file)]), *cut_files(shards, SAMPLE_SHARD_BYTES)]
    units = permutation(units, seed, 0)
    limit = QuarantineLimit(max_quarantined_share, sum(unit.size for unit in units))
    parts: list[list[EventArrays]] = [[] for _ in wanted]
    tally = ReadCounts()
    for unit, (events, read) in zip(
        units, read_ordered(read_slice, units, replace(wanted[0][0], split="all")), strict=False
    ):
        tally += read
        limit.count(read.rows, unit.size)
        _check_sample(limit, tally)
        for (selection, number), got in zip(wanted, parts, strict=True):
            missing = max(number - _num_events(got), 0)
            got.append(take(events, np.flatnonzero(in_split(events.ids, selection))[:missing]))
        if all(_num_events(got) >= number for (_, number), got in zip(wanted, parts, strict=True)):
            break
    return [concat(got) for got in parts], tally


def _num_events(parts: Sequence[EventArrays]) -> int:
    return sum(len(part.counts) for part in parts)


def _check_sample(limit: QuarantineLimit, tally: ReadCounts) -> None:
    if limit.is_exceeded(tally):
        msg = (
            f"{tally.quarantined} of the first {tally.rows} rows read cannot be used, more than data.max_quarantined_share = "
            f"{limit.share:g} of all rows; the warnings above name files, rows and reasons"
        )
        raise ValueError(msg)
