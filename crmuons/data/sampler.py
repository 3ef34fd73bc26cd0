"""Which rank reads which part of the data when: pure arithmetic, so that it can be repeated and resumed.

Files are cut into units (shares of a file's rows). An epoch is a seeded permutation of the units, cut into segments that are
read and shuffled together. Segments do not depend on the number of ranks; ranks take them in turn. A rank's reading is then an
endless list of items (segments), and its position is an item's number and the events taken from it.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import count, pairwise
from typing import Any

import numpy as np

from crmuons.storage.files import File

MIN_SLICES = 64  # Few files are cut, so that there is something to permute and every rank gets a share,
MIN_SLICE_BYTES = 4 * 2**20  # but not into crumbs: a unit decodes every row group that it touches.
MIN_SEGMENTS = 8
MAX_SLICE_BYTES = 64 * 2**20


@dataclass(frozen=True)
class FileSlice:
    """Rows number * part / parts up to number * (part + 1) / parts of a file with `number` rows."""

    file: File
    part: int
    parts: int

    def rows(self, number: int) -> range:
        """The unit's rows of a file with that many."""
        return range(number * self.part // self.parts, number * (self.part + 1) // self.parts)

    @property
    def size(self) -> int:
        """About how many bytes it takes to read."""
        return self.file.size // self.parts


@dataclass(frozen=True)
class Segment:
    """A segment to read: its units, the seed of its order, and how many of its events were taken before."""

    epoch: int
    segment: int
    start: int
    seed: int
    units: tuple[FileSlice, ...]


def cut_files(files: Sequence[File], most: int = MAX_SLICE_BYTES) -> list[FileSlice]:
    """Cut files into MIN_UNITS units or more, of MIN_UNIT_BYTES to `most` bytes; smaller files stay whole."""
    return [
        FileSlice(file, part, parts)
        for file in files
        for parts in [_parts(file, len(files), most)]
        for part in range(parts)
    ]


def _parts(file: File, num_files: int, most: int) -> int:
    wanted = math.ceil(MIN_SLICES / num_files) if num_files < MIN_SLICES else 1
    least = math.ceil(file.size / most)
    return max(min(wanted, file.size // MIN_SLICE_BYTES), least, 1)


def permutation(units: Sequence[FileSlice], seed: int, epoch: int) -> list[FileSlice]:
    """The order of the units in an epoch."""
    order = np.random.default_rng([seed, epoch]).permutation(len(units))
    return [units[index] for index in order]


@dataclass(frozen=True)
class ReadPlan:
    """The reading of all ranks, from the start or from where earlier ranks, possibly another number of them, stopped.

    Attributes:
        units: of all files.
        seed: of the permutations.
        segment_bytes: about how much is read and shuffled together.
        world: number of ranks.
        base_epoch: the first epoch that is read whole.
        backlog: (epoch, segment, start) left over from the epochs before, taken first.
    """

    units: tuple[FileSlice, ...]
    seed: int
    segment_bytes: int
    world: int
    base_epoch: int = 0
    backlog: tuple[tuple[int, int, int], ...] = field(default=())

    def segments(self, epoch: int) -> list[tuple[FileSlice, ...]]:
        """The segments of an epoch: every unit in exactly one of them."""
        total = sum(unit.size for unit in self.units)
        number = min(len(self.units), max(MIN_SEGMENTS, math.ceil(total / self.segment_bytes)))
        order = permutation(self.units, self.seed, epoch)
        bounds = [len(order) * i // number for i in range(number + 1)]
        return [tuple(order[low:high]) for low, high in pairwise(bounds)]

    def items(self, rank: int) -> Iterator[Segment]:
        """Everything that a rank reads, without end."""
        cache: dict[int, list[tuple[FileSlice, ...]]] = {}
        for epoch, segment, start in self.backlog[rank :: self.world]:
            if epoch not in cache:
                cache[epoch] = self.segments(epoch)
            yield self._item(epoch, segment, start, cache[epoch][segment])
        for epoch in count(self.base_epoch):
            for segment, units in enumerate(self.segments(epoch)):
                if self._reader(epoch, segment) == rank:
                    yield self._item(epoch, segment, 0, units)

    def continued(self, world: int, positions: Sequence[tuple[int, int]]) -> tuple["ReadPlan", list[tuple[int, int]]]:
        """The plan and the positions of ranks that go on where others stopped.

        Args:
            world: how many ranks go on.
            positions: of the ranks that stopped: number of the item being read, events taken from it.

        Returns:
            The same plan and positions for the same number of ranks. Otherwise a plan whose backlog is all that is left of
            the epochs begun, so that no event is read twice or left out in them, and positions at its start.
        """
        if world == self.world:
            return self, list(positions)
        current = [self._at(rank, *position) for rank, position in enumerate(positions)]
        # Epochs of the backlog have begun even where no rank has come to them: they are not read whole again.
        last = max(self.base_epoch - 1, *(epoch for epoch, _, _ in current))
        left = sorted(
            item for rank, (number, taken) in enumerate(positions) for item in self._left(rank, number, taken, last)
        )
        plan = ReadPlan(self.units, self.seed, self.segment_bytes, world, last + 1, tuple(left))
        return plan, [(0, 0)] * world

    def state(self) -> dict[str, Any]:
        """What resume needs beside the files and the settings."""
        shape = {"units": len(self.units), "segment_bytes": self.segment_bytes}
        return shape | {
            "world": self.world,
            "base_epoch": self.base_epoch,
            "backlog": [list(item) for item in self.backlog],
        }

    @classmethod
    def from_state(cls, units: Sequence[FileSlice], seed: int, segment_bytes: int, state: dict[str, Any]) -> "ReadPlan":
        """The plan whose `state` was saved.

        Raises:
            ValueError: if its segments were others, so that a position in them would mean other events.
        """
        shape = {"units": len(units), "segment_bytes": segment_bytes}
        saved = {name: state.get(name, now) for name, now in shape.items()}  # Runs begun before it was kept have none.
        if saved != shape:
            msg = f"the checkpoint's position is one of {saved}, and the data make {shape}: go on with the version that began the run"
            raise ValueError(msg)
        backlog = tuple((int(epoch), int(segment), int(start)) for epoch, segment, start in state["backlog"])
        return cls(tuple(units), seed, segment_bytes, state["world"], state["base_epoch"], backlog)

    def _item(self, epoch: int, segment: int, start: int, units: tuple[FileSlice, ...]) -> Segment:
        return Segment(epoch, segment, start, self.seed, units)

    def _reader(self, epoch: int, segment: int) -> int:
        """Ranks take turns, beginning with another one each epoch: fewer segments than ranks still reach all ranks."""
        return (segment + epoch) % self.world

    def _at(self, rank: int, number: int, taken: int) -> tuple[int, int, int]:
        item = next(item for i, item in enumerate(self.items(rank)) if i == number)
        return item.epoch, item.segment, item.start + taken

    def _left(self, rank: int, number: int, taken: int, last_epoch: int) -> Iterator[tuple[int, int, int]]:
        own_backlog = len(self.backlog[rank :: self.world])
        for i, item in enumerate(self.items(rank)):
            if item.epoch > last_epoch and i >= own_backlog:
                return
            if i >= number:
                yield item.epoch, item.segment, item.start + (taken if i == number else 0)
