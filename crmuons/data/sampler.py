"""Decide which rank reads which part of the data, and when.

Files are cut into FileSlices (shares of a file's rows). An epoch is a seeded permutation of all slices, cut into
Segments. The slices of a segment are read and their events shuffled together. Segments do not depend on the number of
ranks; ranks take them in turn. Each rank therefore has an endless list of segments, and its position is an index in
this list and a number of events taken.

Everything here is arithmetic on file sizes and seeds. Every rank computes the same ReadPlan and needs no messages; a
resumed run computes it again. Nothing in this module reads a file.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import count, pairwise
from typing import Any

import numpy as np

from crmuons.storage.files import File

MIN_SLICES = 64  # A few files are cut into at least this many slices, so that every rank gets some of each epoch.
MIN_SLICE_BYTES = 4 * 2**20  # Slices are not cut smaller than this: a slice decodes every row group that it touches.
# With a single segment an epoch, one rank would read everything and the other ranks nothing.
MIN_SEGMENTS = 8
# Largest part of a file that is decoded at once. The decoded part takes a few times more memory.
MAX_SLICE_BYTES = 64 * 2**20


@dataclass(frozen=True)
class FileSlice:
    """One of `parts` equal shares of a file's rows: rows n * part / parts to n * (part + 1) / parts of n rows."""

    file: File
    part: int
    parts: int

    def rows(self, number: int) -> range:
        """Return the slice's rows if the file has `number` rows."""
        # With integers, the shares meet without a gap or an overlap, whatever the number of rows.
        return range(number * self.part // self.parts, number * (self.part + 1) // self.parts)

    @property
    def size(self) -> int:
        """Return about how many bytes of the file the slice takes."""
        return self.file.size // self.parts


@dataclass(frozen=True)
class Segment:
    """Slices that are read and shuffled together.

    Attributes:
        epoch: its epoch.
        number: its number within the epoch.
        start: number of its shuffled events that were taken before; reading leaves them out.
        seed: seed of its shuffle, together with `epoch` and `number`.
        slices: what to read.
    """

    epoch: int
    number: int
    start: int
    seed: int
    slices: tuple[FileSlice, ...]


def cut_files(files: Sequence[File], max_bytes: int = MAX_SLICE_BYTES) -> list[FileSlice]:
    """Cut files into MIN_SLICES slices or more, of MIN_SLICE_BYTES to `max_bytes` bytes; smaller files stay whole."""
    return [
        FileSlice(file, part, parts)
        for file in files
        for parts in [_num_parts(file, len(files), max_bytes)]
        for part in range(parts)
    ]


def _num_parts(file: File, num_files: int, max_bytes: int) -> int:
    desired = math.ceil(MIN_SLICES / num_files) if num_files < MIN_SLICES else 1
    # The memory limit is more important than the limits on the number and the size of slices.
    least = math.ceil(file.size / max_bytes)
    return max(min(desired, file.size // MIN_SLICE_BYTES), least, 1)


def permutation(slices: Sequence[FileSlice], seed: int, epoch: int) -> list[FileSlice]:
    """Return the slices in the order of an epoch."""
    # The order is a function of seed and epoch, so every rank and a resumed run draw the same order without a message.
    order = np.random.default_rng([seed, epoch]).permutation(len(slices))
    return [slices[index] for index in order]


@dataclass(frozen=True)
class ReadPlan:
    """What all ranks read, from the start of a run or from where an earlier part of the run stopped.

    Attributes:
        slices: the slices of all files.
        seed: seed of the permutations.
        segment_bytes: about how many bytes are read and shuffled together.
        world: number of ranks.
        base_epoch: the first epoch that is read whole.
        backlog: (epoch, segment, start) of segments left over from earlier epochs; they are read first.
    """

    slices: tuple[FileSlice, ...]
    seed: int
    segment_bytes: int
    world: int
    base_epoch: int = 0
    backlog: tuple[tuple[int, int, int], ...] = field(default=())

    def segments(self, epoch: int) -> list[tuple[FileSlice, ...]]:
        """Return the slices of each segment of an epoch. Every slice is in exactly one segment."""
        total = sum(part.size for part in self.slices)
        # Each segment has about segment_bytes, which are shuffled in memory. No segment is without a slice.
        number = min(len(self.slices), max(MIN_SEGMENTS, math.ceil(total / self.segment_bytes)))
        order = permutation(self.slices, self.seed, epoch)
        # With integers, as in FileSlice.rows, each slice is in exactly one segment.
        bounds = [len(order) * i // number for i in range(number + 1)]
        return [tuple(order[low:high]) for low, high in pairwise(bounds)]

    def segments_of_rank(self, rank: int) -> Iterator[Segment]:
        """Yield every segment that a rank reads, without end."""
        cache: dict[int, list[tuple[FileSlice, ...]]] = {}
        # Ranks take the backlog in turns, so that they finish the old epochs at about the same time.
        for epoch, number, start in self.backlog[rank :: self.world]:
            if epoch not in cache:
                cache[epoch] = self.segments(epoch)
            yield Segment(epoch, number, start, self.seed, cache[epoch][number])
        for epoch in count(self.base_epoch):
            # Every rank walks through all segments, so that all agree on who reads what without a message.
            for number, slices in enumerate(self.segments(epoch)):
                if self._reader(epoch, number) == rank:
                    yield Segment(epoch, number, 0, self.seed, slices)

    def continued(self, world: int, positions: Sequence[tuple[int, int]]) -> tuple["ReadPlan", list[tuple[int, int]]]:
        """Return the plan and the positions with which `world` ranks continue after this plan's ranks stopped.

        Args:
            world: number of ranks that continue.
            positions: (index of the segment being read, events taken from it) of each rank that stopped.

        Returns:
            This plan and these positions if the number of ranks is the same. Otherwise a plan whose backlog is the rest
            of all epochs that were begun, and positions at its start: no event of these epochs is read twice or left
            out.
        """
        # Each rank continues exactly where it stopped: the run is the same to the last bit.
        if world == self.world:
            return self, list(positions)
        current = [self._event_position(rank, *position) for rank, position in enumerate(positions)]
        # An epoch of the backlog has begun, even if no rank has reached it yet: it must not be read whole again.
        last = max(self.base_epoch - 1, *(epoch for epoch, _, _ in current))
        # The oldest epochs come first, and every rank computes the same list.
        left = sorted(
            entry for rank, (index, taken) in enumerate(positions) for entry in self._left(rank, index, taken, last)
        )
        plan = ReadPlan(self.slices, self.seed, self.segment_bytes, world, last + 1, tuple(left))
        return plan, [(0, 0)] * world

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint stores of the plan. The files and the settings give the rest."""
        return self._shape(self.slices, self.segment_bytes) | {
            "world": self.world,
            "base_epoch": self.base_epoch,
            "backlog": [list(entry) for entry in self.backlog],
        }

    @classmethod
    def from_state(
        cls, slices: Sequence[FileSlice], seed: int, segment_bytes: int, state: dict[str, Any]
    ) -> "ReadPlan":
        """Return the plan whose `state` was saved.

        Raises:
            ValueError: if these slices make other segments, so that a saved position would mean other events.
        """
        shape = cls._shape(slices, segment_bytes)
        # Checkpoints of early versions do not hold the shape; they are trusted.
        saved = {name: state.get(name, value) for name, value in shape.items()}
        if saved != shape:
            msg = (
                f"the checkpoint's position in the data belongs to {saved}, but the data are now cut into {shape}: "
                "continue with the version of crmuons that began the run"
            )
            raise ValueError(msg)
        backlog = tuple((int(epoch), int(number), int(start)) for epoch, number, start in state["backlog"])
        return cls(tuple(slices), seed, segment_bytes, state["world"], state["base_epoch"], backlog)

    @staticmethod
    def _shape(slices: Sequence[FileSlice], segment_bytes: int) -> dict[str, int]:
        return {"units": len(slices), "segment_bytes": segment_bytes}  # "units": the key in all checkpoints.

    def _reader(self, epoch: int, number: int) -> int:
        """Return the rank that reads a segment.

        The first rank changes with the epoch: with fewer segments than ranks, every rank still gets some.
        """
        return (number + epoch) % self.world

    def _event_position(self, rank: int, index: int, taken: int) -> tuple[int, int, int]:
        # The segments are counted one by one, because a position counts the backlog and all epochs in between.
        segment = next(segment for i, segment in enumerate(self.segments_of_rank(rank)) if i == index)
        return segment.epoch, segment.number, segment.start + taken

    def _left(self, rank: int, index: int, taken: int, last_epoch: int) -> Iterator[tuple[int, int, int]]:
        """Yield the backlog entries of what a rank has not read of the epochs up to `last_epoch`."""
        # Entries of the backlog may belong to any epoch, also to an epoch after `last_epoch`.
        own_backlog = len(self.backlog[rank :: self.world])
        for i, segment in enumerate(self.segments_of_rank(rank)):
            if segment.epoch > last_epoch and i >= own_backlog:
                return
            if i >= index:
                yield segment.epoch, segment.number, segment.start + (taken if i == index else 0)
