"""Draw a sample of the events of many files, for fitting features and for validation before a run starts."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from crmuons.data.events import EventArrays, concat, take
from crmuons.data.manifest import is_shard
from crmuons.data.quarantine import QuarantineLimit, ReadCounts
from crmuons.data.reader import read_ordered, read_slice
from crmuons.data.sampler import FileSlice, cut_files, permutation
from crmuons.data.selection import Selection, in_split
from crmuons.storage.files import File
from crmuons.storage.identity import Digests

SAMPLE_SHARD_BYTES = 8 * 2**20  # Size of a slice of a shard. The driver then takes 229 MB; with 64 MB it took 327 MB.


def sample_events(
    found: Sequence[File],
    requests: Sequence[tuple[Selection, int]],
    seed: int = 0,
    max_quarantined_share: float = 1.0,
    digests: Digests | None = None,
) -> tuple[list[EventArrays], ReadCounts]:
    """Read a number of events for each of several selections, in one pass over the files' slices in random order.

    Args:
        found: the files.
        requests: selections, and the number of events of each. Only their splits may differ.
        seed: seed of the order.
        max_quarantined_share: limit on the share of bad rows.
        digests: receives the digests of the remote files that gave events.

    Returns:
        The events of each selection (fewer if the files hold fewer), and the counts of the rows read.

    Raises:
        ValueError: if a file does not hold events, or too many rows cannot be used.
    """
    shards = [file for file in found if is_shard(file)]
    # A raw file may be one row group, and every slice decodes all of it: raw files are not cut into small slices.
    slices = [*cut_files([file for file in found if not is_shard(file)]), *cut_files(shards, SAMPLE_SHARD_BYTES)]
    slices = permutation(slices, seed, 0)
    limit = QuarantineLimit(max_quarantined_share, sum(part.size for part in slices))
    samples: list[list[EventArrays]] = [[] for _ in requests]
    read_counts = ReadCounts()
    results = read_ordered(_read_with_digests, slices, replace(requests[0][0], split="all"))
    for file_slice, (events, counts, opened) in zip(slices, results, strict=False):
        for url, digest in opened.known.items():
            (digests or opened).note(url, digest)
        read_counts += counts
        limit.count(counts.rows, file_slice.size)
        _check_limit(limit, read_counts)
        for (selection, number), sample in zip(requests, samples, strict=True):
            missing = max(number - _num_events(sample), 0)
            sample.append(take(events, np.flatnonzero(in_split(events.ids, selection))[:missing]))
        if all(_num_events(sample) >= number for (_, number), sample in zip(requests, samples, strict=True)):
            break
    return [concat(sample) for sample in samples], read_counts


def _read_with_digests(file_slice: FileSlice, selection: Selection) -> tuple[EventArrays, ReadCounts, Digests]:
    # The digests of this slice only: threads read ahead by a varying amount, and a run's record must not depend on that.
    opened = Digests()
    return *read_slice(file_slice, replace(selection, digests=opened)), opened


def _num_events(parts: Sequence[EventArrays]) -> int:
    return sum(len(part.counts) for part in parts)


def _check_limit(limit: QuarantineLimit, read_counts: ReadCounts) -> None:
    if limit.is_exceeded(read_counts):
        msg = (
            f"{read_counts.quarantined} of the first {read_counts.rows} rows read cannot be used, more than "
            f"data.max_quarantined_share = {limit.share:g} of all rows; the warnings above name files, rows and reasons"
        )
        raise ValueError(msg)
