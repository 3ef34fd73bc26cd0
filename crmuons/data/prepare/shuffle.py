"""A global shuffle in two phases, whose memory does not grow with the data.

First each group of units is read, and its events are scattered to the shards at random; what goes to one shard lies together in
the group's file. Then each shard is gathered from all groups and shuffled. What is finished bears its name and is not made again.
"""

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, astuple, dataclass, replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
from jaxtyping import Int64

from crmuons import allocator
from crmuons.data import arrow, manifest, reader, shards
from crmuons.data.events import EventArrays, concat, shuffle_muons, take
from crmuons.data.manifest import HashRange, PreparedShard
from crmuons.data.quarantine import ReadCounts
from crmuons.data.sampler import FileSlice
from crmuons.data.selection import Selection, Split, split_coordinates
from crmuons.storage.atomic import atomic_file, write_text

SHARD_BYTES = 96 * 2**20  # Of a finished shard: gathering it takes about four times as much memory.
FLAT_BYTES_PER_RAW_BYTE = (
    1.4  # 1.0 with 15 muons an event, 1.35 with 0.4: more or less makes the shards larger or smaller.
)
SCRATCH = ".scatter"
QUARANTINE = "quarantine"
SPLITS: tuple[Split, ...] = ("train", "validation", "test")
TALLY_KEY = b"crmuons.tally"


@dataclass(frozen=True)
class PrepareSettings:
    """How data are prepared.

    Attributes:
        validation_share, test_share: of the showers.
        vertical_depth: the files' depth_m is the vertical depth; the shards' is the slant one.
        seed: of the shuffle.
    """

    validation_share: float = 0.05
    test_share: float = 0.05
    vertical_depth: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse shares that leave nothing to train on, and a seed that numpy does not take."""
        if min(self.validation_share, self.test_share) < 0 or self.validation_share + self.test_share >= 1:
            msg = (
                f"a validation share of {self.validation_share:g} and a test share of {self.test_share:g} leave nothing to train "
                "on; both are at least 0, and less than 1 together"
            )
            raise ValueError(msg)
        if self.seed < 0:
            msg = f"the seed is {self.seed}; it is at least 0"
            raise ValueError(msg)

    def selection(self, split: Split) -> Selection:
        """The events of a split."""
        return Selection(split, self.validation_share, self.test_share, self.vertical_depth)


@dataclass(frozen=True)
class ShardSpec:
    """A shard to be made.

    Attributes:
        index: its number among all shards.
        split, number: its number in its split.
        places: of the split's showers.
    """

    index: int
    split: Split
    number: int
    places: HashRange

    @property
    def file(self) -> str:
        """Its path in the data set."""
        return f"{self.split}/shard-{self.number:05d}{manifest.SUFFIX}"


@dataclass(frozen=True)
class ShufflePlan:
    """What all tasks of a shuffle know: where it goes, how, from how many groups, to which shards."""

    out: Path
    settings: PrepareSettings
    num_groups: int
    targets: tuple[ShardSpec, ...]

    def group_file(self, group: int) -> Path:
        """What a group leaves for the shards."""
        return self.out / SCRATCH / f"group-{group:05d}{manifest.SUFFIX}"

    def note(self, target: ShardSpec) -> Path:
        """What the manifest will say of a finished shard."""
        return self.out / SCRATCH / f"shard-{target.index:05d}.json"


def shard_specs(settings: PrepareSettings, raw_bytes: int) -> tuple[ShardSpec, ...]:
    """The shards to be made: of each split as many as its share of the data fills, none of an empty share."""
    found: list[ShardSpec] = []
    for split in SPLITS:
        low, high = settings.selection(split).bounds
        number = math.ceil(FLAT_BYTES_PER_RAW_BYTE * raw_bytes * (high - low) / SHARD_BYTES)
        found += [ShardSpec(len(found) + i, split, i, (low, high)) for i in range(max(number, int(high > low)))]
    return tuple(found)


def scatter(work: ShufflePlan, job: tuple[int, Sequence[FileSlice]]) -> ReadCounts:
    """Read a group of units and write its events, those of each shard together.

    Returns:
        What became of its rows.

    Raises:
        ValueError: if a file is not one of events.
    """
    group, units = job
    path = work.group_file(group)
    if path.is_file():
        return ReadCounts(*json.loads(_open(path).schema.metadata[TALLY_KEY]))
    allocator.keep_freed_memory()
    selection = replace(work.settings.selection("all"), quarantine=str(work.out / QUARANTINE))
    parts = list(reader.read_ordered(reader.read_slice, units, selection))
    tally = sum((tally for _, tally in parts), ReadCounts())
    _write_group(work, group, concat([events for events, _ in parts]), tally)
    return tally


def gather(work: ShufflePlan, target: ShardSpec) -> PreparedShard:
    """Put a shard together from all groups, shuffle it and write it.

    Returns:
        What the manifest says of it.
    """
    path, note = work.out / target.file, work.note(target)
    if path.is_file() and note.is_file():
        said = json.loads(note.read_text())
        return PreparedShard(**said | {"places": target.places})
    allocator.keep_freed_memory()
    events = concat([_slice(work.group_file(group), target) for group in range(work.num_groups)])
    random = np.random.default_rng([work.settings.seed, 1, target.index])
    events = shuffle_muons(take(events, random.permutation(len(events.counts))), random)
    path.unlink(missing_ok=True)  # Its note, without which it does not count, was never written.
    shards.write_shard(path, events, target.places)
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    size = path.stat().st_size
    shard = PreparedShard(target.file, target.places, len(events.counts), len(events.muons), size, digest)
    write_text(note, json.dumps(asdict(shard)))
    return shard


def _write_group(work: ShufflePlan, group: int, events: EventArrays, tally: ReadCounts) -> None:
    random = np.random.default_rng([work.settings.seed, 0, group])
    index = _indices(events, work, random)
    order = np.argsort(index, kind="stable")
    events = take(events, order)
    bounds = np.searchsorted(index[order], np.arange(len(work.targets) + 1))
    metadata = {TALLY_KEY: json.dumps(astuple(tally))}
    path = work.group_file(group)
    schema = arrow.FLAT_SCHEMA.with_metadata(metadata)
    with atomic_file(path, shared=True) as partial, pa.ipc.new_file(str(partial), schema) as writer:
        whole = arrow.to_flat(events)
        for low, high in pairwise(bounds.tolist()):
            writer.write_batch(whole.slice(low, high - low))


def _indices(events: EventArrays, work: ShufflePlan, random: np.random.Generator) -> Int64[np.ndarray, " events"]:
    """The shard of each event: of its shower's split, and drawn among these."""
    place, drawn = split_coordinates(events.ids), random.random(len(events.ids))
    index = np.zeros(len(place), np.int64)
    for split in SPLITS:
        mine = [target for target in work.targets if target.split == split]
        if mine:
            low, high = mine[0].places
            here = (place >= low) & (place < high)
            index[here] = mine[0].index + (drawn[here] * len(mine)).astype(np.int64)
    return index


def _slice(path: Path, target: ShardSpec) -> EventArrays:
    """What a group has for a shard."""
    return arrow.from_flat(_open(path).get_batch(target.index))


def _open(path: Path) -> pa.RecordBatchFileReader:
    return pa.ipc.open_file(pa.memory_map(str(path)))
