"""True, generated and training events, read in blocks where the pieces run."""

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

Wanted = tuple[Selection, int]  # Events of a selection, at most so many.
Block = tuple[
    tuple[EventArrays, ...], ReadCounts
]  # Of each selection what is wanted, and what became of the rows read.


@dataclass(frozen=True)
class EventSet:
    """A set of events: their outline here, and the events where the pieces run."""

    outline: EventHeaders
    events: Future[EventArrays]

    def __len__(self) -> int:
        return len(self.outline)


@dataclass(frozen=True)
class BlockedEvents:
    """Events in blocks.

    Attributes:
        outline: of all events, block after block.
        blocks: what was read.
        which: the set of events in each block that these are.
        sizes: how many events of each block belong to these; any after them do not.
    """

    outline: EventHeaders
    blocks: list[Future[Block]]
    which: int
    sizes: list[int]

    def __len__(self) -> int:
        return len(self.outline)

    @classmethod
    def of(cls, pieces: Executor, events: EventArrays) -> "BlockedEvents":
        """Events that are at hand, as one block."""
        return cls(EventHeaders.of(events), [pieces.given(((events,), ReadCounts()))], 0, [len(events.counts)])

    def gather(self, pieces: Executor, rows: Int64[np.ndarray, " rows"]) -> EventSet:
        """Some of the events, in ascending order, as one set."""
        rows = np.sort(rows)
        starts = np.cumsum([0, *self.sizes])
        parts = [rows[(rows >= low) & (rows < high)] - low for low, high in itertools.pairwise(starts)]
        chosen = [number for number, part in enumerate(parts) if len(part)]
        blocks = (self.blocks[number] for number in chosen)
        events = pieces.later(_gather, self.which, [parts[number] for number in chosen], *blocks)
        return EventSet(self.outline.take(rows), events)


def read(
    pieces: Executor, urls: Sequence[str], wanted: Sequence[Wanted], seed: int
) -> tuple[list[BlockedEvents], ReadCounts]:
    """Up to so many events of several selections, in one pass over the files' units in random order.

    Returns:
        The events of each selection, fewer where the files hold fewer, and what became of the rows read.

    Raises:
        FileNotFoundError: if there is nothing to read.
        ValueError: if a file is not one of events.
    """
    missing = [limit for _, limit in wanted]
    outlines: list[list[EventHeaders]] = [[] for _ in wanted]
    blocks: list[Future[Block]] = []
    tally = ReadCounts()
    for block, looked in _reads(pieces, permutation(cut_files(manifest.event_files(urls)), seed, 0), wanted, missing):
        found, read_here = pieces.get(looked)
        tally += read_here
        blocks.append(block)
        for number, outline in enumerate(found):
            outlines[number].append(outline.take(np.arange(min(len(outline), missing[number]))))
            missing[number] -= len(outlines[number][-1])
    sets = enumerate(outlines)
    return [
        BlockedEvents(EventHeaders.concat(parts), blocks, number, [len(part) for part in parts])
        for number, parts in sets
    ], tally


def _reads(
    pieces: Executor, units: Sequence[FileSlice], wanted: Sequence[Wanted], missing: list[int]
) -> Iterator[tuple[Future[Block], Future[tuple[list[EventHeaders], ReadCounts]]]]:
    """Units being read, some ahead, until nothing is missing any more, of which the caller keeps account."""
    waiting: deque[Future[Block]] = deque()
    coming = iter(units)
    while max(missing) > 0:
        limits = [(selection, left) for (selection, _), left in zip(wanted, missing, strict=True)]
        for unit in itertools.islice(coming, pieces.ahead - len(waiting)):
            waiting.append(pieces.later(_read_block, unit, limits))
        if not waiting:
            return
        block = waiting.popleft()
        yield block, pieces.later(_look, block)


def _read_block(unit: FileSlice, wanted: Sequence[Wanted]) -> Block:
    events, tally = read_slice(unit, replace(wanted[0][0], split="all"))
    rows = (np.flatnonzero(in_split(events.ids, selection))[: max(limit, 0)] for selection, limit in wanted)
    return tuple(take(events, each) for each in rows), tally


def _look(block: Block) -> tuple[list[EventHeaders], ReadCounts]:
    sets, tally = block
    return [EventHeaders.of(events) for events in sets], tally


def _gather(which: int, rows: Sequence[Int64[np.ndarray, " rows"]], *blocks: Block) -> EventArrays:
    return concat([take(sets[which], chosen) for (sets, _), chosen in zip(blocks, rows, strict=True)])
