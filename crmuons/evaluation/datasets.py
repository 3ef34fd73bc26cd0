"""Read true, generated and training events in blocks that stay with the executor; the caller holds only headers."""

import itertools
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Int64

from crmuons.data import manifest
from crmuons.data.events import EventArrays, concat, take
from crmuons.data.quarantine import ReadCounts
from crmuons.data.reader import read_slice
from crmuons.data.sampler import FileSlice, cut_files, permutation
from crmuons.data.selection import Selection, in_split
from crmuons.evaluation.headers import EventHeaders
from crmuons.evaluation.tasks import Executor, Future

SelectionAndLimit = tuple[Selection, int]  # A selection of events, and the largest number of them to read.
# The events of each selection in one file slice, and the read counts.
Block = tuple[tuple[EventArrays, ...], ReadCounts]


@dataclass(frozen=True)
class EventSet:
    """A set of events: their headers, and the events themselves, which the executor holds."""

    headers: EventHeaders
    events: Future[EventArrays]

    def __len__(self) -> int:
        return len(self.headers)


@dataclass(frozen=True)
class BlockedEvents:
    """The events of one selection, in the blocks in which they were read.

    Attributes:
        headers: headers of all events, block after block.
        blocks: one block for each file slice.
        index: the position of the selection in each block.
        sizes: number of events of each block that are used; these are the first ones.
    """

    headers: EventHeaders
    blocks: list[Future[Block]]
    index: int
    sizes: list[int]

    def __len__(self) -> int:
        return len(self.headers)

    def gather(self, executor: Executor, rows: Int64[np.ndarray, " rows"]) -> EventSet:
        """Return the events of some rows, in ascending order, as one set."""
        rows = np.sort(rows)
        starts = np.cumsum([0, *self.sizes])
        parts = [rows[(rows >= low) & (rows < high)] - low for low, high in itertools.pairwise(starts)]
        nonempty = [number for number, part in enumerate(parts) if len(part)]
        blocks = (self.blocks[number] for number in nonempty)
        events = executor.submit(_gather, self.index, [parts[number] for number in nonempty], *blocks)
        return EventSet(self.headers.take(rows), events)


def read(
    executor: Executor, urls: Sequence[str], requests: Sequence[SelectionAndLimit], seed: int
) -> tuple[list[BlockedEvents], ReadCounts]:
    """Read events of several selections in one pass over the file slices, which are in random order.

    Returns:
        The events of each selection, fewer than the limit if the files hold fewer, and the counts of the rows read.

    Raises:
        FileNotFoundError: if there are no files.
        ValueError: if a file does not hold events.
    """
    remaining = [limit for _, limit in requests]
    headers: list[list[EventHeaders]] = [[] for _ in requests]
    blocks: list[Future[Block]] = []
    counts = ReadCounts()
    slices = permutation(cut_files(manifest.event_files(urls)), seed, 0)
    for block, summary in _read_blocks(executor, slices, requests, remaining):
        block_headers, block_counts = executor.get(summary)
        counts += block_counts
        blocks.append(block)
        for number, part in enumerate(block_headers):
            used = part.take(np.arange(min(len(part), remaining[number])))
            headers[number].append(used)
            remaining[number] -= len(used)
    return [
        BlockedEvents(EventHeaders.concat(parts), blocks, number, [len(part) for part in parts])
        for number, parts in enumerate(headers)
    ], counts


def concat_parts(*parts: EventArrays) -> EventArrays:
    """Join the events of several parts, in order. A task can take futures only as separate arguments, not in a list."""
    return concat(parts)


def _read_blocks(
    executor: Executor, slices: Sequence[FileSlice], requests: Sequence[SelectionAndLimit], remaining: list[int]
) -> Iterator[tuple[Future[Block], Future[tuple[list[EventHeaders], ReadCounts]]]]:
    """Submit the reading of file slices, some ahead, until nothing remains. The caller updates `remaining`."""
    reading: deque[Future[Block]] = deque()
    unread = iter(slices)
    while max(remaining) > 0:
        limits = [(selection, limit) for (selection, _), limit in zip(requests, remaining, strict=True)]
        for file_slice in itertools.islice(unread, executor.reads_ahead - len(reading)):
            reading.append(executor.submit(_read_block, file_slice, limits))
        if not reading:
            return
        block = reading.popleft()
        yield block, executor.submit(_summarise, block)


def _read_block(file_slice: FileSlice, requests: Sequence[SelectionAndLimit]) -> Block:
    events, counts = read_slice(file_slice, replace(requests[0][0], split="all"))
    rows = (np.flatnonzero(in_split(events.ids, selection))[: max(limit, 0)] for selection, limit in requests)
    return tuple(take(events, chosen) for chosen in rows), counts


def _summarise(block: Block) -> tuple[list[EventHeaders], ReadCounts]:
    selections, counts = block
    return [EventHeaders.of(events) for events in selections], counts


def _gather(index: int, rows: Sequence[Int64[np.ndarray, " rows"]], *blocks: Block) -> EventArrays:
    return concat([take(selections[index], chosen) for (selections, _), chosen in zip(blocks, rows, strict=True)])
