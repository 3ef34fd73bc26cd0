"""Shuffle all events of a data set in two phases, in memory that does not grow with the data.

Phase 1, `scatter`: each task reads a group of slices, draws a random shard for each event, and writes the events sorted
by shard to the group's file. Phase 2, `gather`: each task collects the events of one shard from all group files and
shuffles them. Tasks run in the driver or as Ray tasks that share a directory. A finished file has its final name and is
not made again.
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

from crmuons.config.options import Seed, Share, Word, check
from crmuons.data import arrow, features, manifest, reader, shards
from crmuons.data.events import EventArrays, concat, shuffle_muons, take
from crmuons.data.manifest import HashRange, PreparedShard
from crmuons.data.quarantine import ReadCounts
from crmuons.data.sampler import FileSlice
from crmuons.data.selection import Selection, Split, split_coordinates
from crmuons.machine import keep_freed_memory
from crmuons.storage.atomic import atomic_file, write_text
from crmuons.storage.records import damage_named

SHARD_BYTES = 96 * 2**20  # Size of a finished shard; gathering it takes about four times this memory.
# Bytes in a shard for each byte in a raw file: 1.0 with 15 muons an event, 1.35 with 0.4. A wrong value only makes the
# shards larger or smaller.
FLAT_BYTES_PER_RAW_BYTE = 1.4
SCRATCH = ".scatter"
QUARANTINE = "quarantine"
SPLITS: tuple[Split, ...] = ("train", "validation", "test")
READ_COUNTS_KEY = b"crmuons.tally"
CHECKSUMS_KEY = b"crmuons.checksums"


@dataclass(frozen=True)
class PrepareSettings:
    """Settings of a preparation.

    Attributes:
        validation_share, test_share: shares of the showers.
        vertical_depth: whether the files' depth_m is the vertical depth; the shards hold the slant depth.
        seed: seed of the shuffle.
        features: numbers of a muon to keep beyond the first three; see features.parse.
    """

    validation_share: Share = 0.05
    test_share: Share = 0.05
    vertical_depth: bool = False
    seed: Seed = 0
    features: tuple[Word, ...] = ()

    def __post_init__(self) -> None:
        """Refuse shares that leave nothing to train on, and a seed that numpy does not take."""
        check(self)
        features.parse(self.features, "--features")
        if self.validation_share + self.test_share >= 1:
            msg = (
                f"a validation share of {self.validation_share:g} and a test share of {self.test_share:g} leave nothing to "
                "train on; each must be at least 0, and their sum less than 1"
            )
            raise ValueError(msg)

    def selection(self, split: Split) -> Selection:
        """Return the selection of the events of a split."""
        declared = features.parse(self.features, "--features")
        return Selection(split, self.validation_share, self.test_share, self.vertical_depth, features=declared)


@dataclass(frozen=True)
class ShardSpec:
    """A shard to make.

    Attributes:
        index: its number among all shards.
        split: its split.
        number: its number within the split.
        hash_range: range of the split coordinate of the split's showers.
    """

    index: int
    split: Split
    number: int
    hash_range: HashRange

    @property
    def file(self) -> str:
        """Return its path in the data set."""
        return f"{self.split}/shard-{self.number:05d}{manifest.SUFFIX}"


@dataclass(frozen=True)
class ShufflePlan:
    """What every task of a shuffle needs.

    Attributes:
        out: directory of the data set.
        settings: of the preparation.
        num_groups: number of groups of slices.
        shards: the shards to make.
    """

    out: Path
    settings: PrepareSettings
    num_groups: int
    shards: tuple[ShardSpec, ...]

    def group_file(self, group: int) -> Path:
        """Return the path of a group's events, sorted by shard."""
        return self.out / SCRATCH / f"group-{group:05d}{manifest.SUFFIX}"

    def receipt(self, shard: ShardSpec) -> Path:
        """Return the path of the manifest entry of a finished shard; a shard without it is made again."""
        return self.out / SCRATCH / f"shard-{shard.index:05d}.json"


def shard_specs(settings: PrepareSettings, raw_bytes: int) -> tuple[ShardSpec, ...]:
    """Return the shards to make. Their number in a split follows from its share of the data; it is 0 if the share is 0."""
    specs: list[ShardSpec] = []
    for split in SPLITS:
        low, high = settings.selection(split).bounds
        # At least one shard, so that a small split exists as a file.
        number = math.ceil(FLAT_BYTES_PER_RAW_BYTE * raw_bytes * (high - low) / SHARD_BYTES)
        specs += [ShardSpec(len(specs) + i, split, i, (low, high)) for i in range(max(number, int(high > low)))]
    return tuple(specs)


def scatter_group(plan: ShufflePlan, task: tuple[int, Sequence[FileSlice]]) -> ReadCounts:
    """Read a group of slices, and write its events sorted by shard.

    Args:
        plan: the shuffle.
        task: number of the group, and its slices.

    Returns:
        The counts of its rows.

    Raises:
        ValueError: if a file does not hold events.
    """
    group, slices = task
    path = plan.group_file(group)
    # A file gets its name only when it is complete, so it is not checked again.
    if path.is_file():
        return ReadCounts(*json.loads(_open(path).schema.metadata[READ_COUNTS_KEY]))
    keep_freed_memory()
    selection = replace(plan.settings.selection("all"), quarantine=str(plan.out / QUARANTINE))
    # All splits in one pass over the raw files; the drawn shard of an event belongs to its split.
    parts = list(reader.read_ordered(reader.read_slice, slices, selection))
    read_counts = sum((counts for _, counts in parts), ReadCounts())
    _write_group(plan, group, concat([events for events, _ in parts]), read_counts)
    return read_counts


def gather_shard(plan: ShufflePlan, spec: ShardSpec) -> PreparedShard:
    """Collect the events of a shard from all groups, shuffle them, and write the shard.

    Returns:
        The shard's entry in the manifest.
    """
    path, receipt = plan.out / spec.file, plan.receipt(spec)
    # Both are needed: a kill between the two writes leaves a shard without a record of its counts and digest.
    if path.is_file() and receipt.is_file():
        with damage_named(receipt, "remove it, and run the same command again"):
            return PreparedShard(**json.loads(receipt.read_bytes()) | {"places": spec.hash_range})
    keep_freed_memory()
    # In the order of the groups, not of the tasks' ends, so that the same input gives the same bytes.
    events = concat([_events_of(spec, plan.group_file(group)) for group in range(plan.num_groups)])
    # 1 is the phase: a group and a shard of the same number draw independently.
    random = np.random.default_rng([plan.settings.seed, 1, spec.index])
    events = shuffle_muons(take(events, random.permutation(len(events.counts))), random)
    path.unlink(missing_ok=True)  # A shard without its receipt, from a run that was killed.
    shards.write_shard(path, events, spec.hash_range, plan.settings.selection("all").muon_features)
    # The digest is computed from the written file.
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    size = path.stat().st_size
    shard = PreparedShard(spec.file, spec.hash_range, len(events.counts), len(events.muons), size, digest)
    # The receipt is written last: it says that the shard is complete.
    write_text(receipt, json.dumps(asdict(shard)))
    return shard


def _write_group(plan: ShufflePlan, group: int, events: EventArrays, read_counts: ReadCounts) -> None:
    """Write the events of a group: one record batch for each shard, in the order of the shards."""
    # The seed depends on the number of the group: a task that is repeated in another process writes the same bytes.
    random = np.random.default_rng([plan.settings.seed, 0, group])
    index = _draw_shards(events, plan, random)
    # A stable sort, so that the file does not depend on numpy's sorting algorithm.
    order = np.argsort(index, kind="stable")
    events = take(events, order)
    bounds = np.searchsorted(index[order], np.arange(len(plan.shards) + 1))
    batch = arrow.to_flat(events)
    batches = [batch.slice(low, high - low) for low, high in pairwise(bounds.tolist())]
    metadata = {
        READ_COUNTS_KEY: json.dumps(astuple(read_counts)),
        CHECKSUMS_KEY: json.dumps([shards.checksum(batch) for batch in batches]),
    }
    schema = arrow.flat_schema(events.muons.shape[1]).with_metadata(metadata)
    with (
        atomic_file(plan.group_file(group)) as partial,
        pa.ipc.new_file(str(partial), schema) as writer,
    ):
        for batch in batches:
            writer.write_batch(batch)


def _draw_shards(events: EventArrays, plan: ShufflePlan, random: np.random.Generator) -> Int64[np.ndarray, " events"]:
    """Draw the index of a shard for each event, among the shards of its shower's split."""
    # Numbers are drawn for all events at once, whatever their split.
    coordinate, drawn = split_coordinates(events.ids), random.random(len(events.ids))
    index = np.zeros(len(coordinate), np.int64)
    for split in SPLITS:
        # Shards of a split have consecutive indices, so a uniform number chooses one.
        specs = [spec for spec in plan.shards if spec.split == split]
        if specs:
            low, high = specs[0].hash_range
            # The shower decides: a shower in two splits, at two depths, would make the test too easy.
            in_split = (coordinate >= low) & (coordinate < high)
            index[in_split] = specs[0].index + (drawn[in_split] * len(specs)).astype(np.int64)
    return index


def _events_of(spec: ShardSpec, path: Path) -> EventArrays:
    """Read the events that a group has for a shard."""
    group = _open(path)
    batch, checksums = group.get_batch(spec.index), group.schema.metadata.get(CHECKSUMS_KEY)
    # Files of earlier versions have no checksums; a preparation may have been interrupted before an update.
    if checksums is not None and shards.checksum(batch) != json.loads(checksums)[spec.index]:
        msg = f"{path} is damaged (record batch {spec.index}); remove it, and run the same `crmuons prepare` again"
        raise ValueError(msg)
    return arrow.from_flat(batch)


def _open(path: Path) -> pa.RecordBatchFileReader:
    return pa.ipc.open_file(pa.memory_map(str(path)))
