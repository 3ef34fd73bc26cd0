"""Describe a prepared data set by its manifest, and list the files that a data URL stands for.

The manifest is written last: without it there is no data set, only a preparation that was interrupted. `event_files` is
the one place where commands and runs list their data, raw or prepared; it compares the shards with the manifest without
opening them.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from pydantic import TypeAdapter

from crmuons.storage import files
from crmuons.storage.files import File
from crmuons.storage.filesystems import without_links
from crmuons.storage.inside import relative_name
from crmuons.storage.records import damage_named

MANIFEST = "manifest.json"
# The request of a preparation. It is written before the first shard; the manifest is written after the last shard.
CLAIM = "preparation.json"
FEATURES = "features.pt"  # Feature statistics, fitted on training events.
SUFFIX = ".arrow"

HashRange = tuple[float, float]  # Range [low, high) of the split coordinate, see selection.split_coordinates.


@dataclass(frozen=True)
class PreparedShard:
    """The manifest's entry of a shard. The field names are the keys in the file.

    Attributes:
        file: its path in the data set.
        places: range of the split coordinate of its showers.
        events, muons: numbers of its events and muons.
        size: size in bytes.
        sha256: digest of the file.
    """

    file: str
    places: HashRange
    events: int
    muons: int
    size: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """What a prepared data set holds, and what it was made from. The field names are the keys in the file.

    Attributes:
        shards: the shards, in order.
        rows, quarantined: number of rows of the raw files, and of the rows that cannot be used.
        settings: settings of the preparation.
        sources: URLs and sizes of the raw files.
        code: versions, and the commit if it is known.
    """

    shards: list[PreparedShard]
    rows: int
    quarantined: int
    settings: dict[str, Any]
    sources: list[tuple[str, int]]
    code: dict[str, Any]

    def to_json(self) -> str:
        """Return the manifest as text, always the same for the same data set."""
        return json.dumps(asdict(self), indent=1, sort_keys=True)

    def describe(self) -> str:
        """Return the numbers of events and muons of each split as one line of text."""
        parts = []
        for split in dict.fromkeys(shard.file.partition("/")[0] for shard in self.shards):
            shards = [shard for shard in self.shards if shard.file.startswith(f"{split}/")]
            num_events, num_muons = sum(shard.events for shard in shards), sum(shard.muons for shard in shards)
            parts.append(f"{split} {num_events:,} ({num_muons:,} muons)")
        return f"{len(self.shards)} shards of events: {', '.join(parts)}"

    @classmethod
    def read(cls, root: str) -> "Manifest":
        """Read the manifest of a directory or URL.

        Raises:
            ValueError: if it is damaged.
        """
        with damage_named(f"{root}/{MANIFEST}", "prepare the data again"):
            manifest: Manifest = TypeAdapter(cls).validate_json(files.read_bytes(f"{root}/{MANIFEST}"))
            for shard in manifest.shards:
                relative_name(shard.file, "its entry")
            return manifest


def event_files(
    urls: str | Sequence[str], hash_range: HashRange = (0.0, 1.0), broken: dict[str, str] | None = None
) -> list[File]:
    """List the event files at paths, directories, globs or URLs: the shards of prepared data sets, and all other files.

    Args:
        urls: see files.list_files.
        hash_range: shards without a shower in this range of the split coordinate are left out.
        broken: receives the reason for each shard that is missing or has another size, instead of an error.

    Raises:
        FileNotFoundError: if there is nothing to read, or a shard is missing.
        ValueError: if a data set is not fully prepared, or a shard does not have the size in the manifest.
    """
    try:
        found = files.list_files(urls, suffixes=(*files.PARQUET_SUFFIXES, SUFFIX, f"/{MANIFEST}", f"/{CLAIM}"))
    except FileNotFoundError:
        return files.list_files(urls)  # The error of this call names only the Parquet suffixes, which most users need.
    begun, complete = (_folders_with(name, found) for name in (CLAIM, MANIFEST))
    for root in sorted(begun - complete):
        msg = (
            f"{root} is not fully prepared; run the same `crmuons prepare` again, and it continues with what is missing"
        )
        raise ValueError(msg)
    # Links are resolved: a shard that is found through a link to its folder belongs to the manifest too.
    within = tuple(f"{without_links(root)}/" for root in complete)
    raw = [file for file in found if not (within and without_links(file.url).startswith(within))]
    return sorted([*raw, *(file for root in sorted(complete) for file in _shards(root, hash_range, broken))])


def origins(urls: str | Sequence[str]) -> list[File]:
    """List the files of `event_files`, and the raw files that the prepared data sets among them were made from."""
    found = event_files(urls)
    return [*found, *sources_of(found)]


def sources_of(found: Sequence[File]) -> list[File]:
    """Return the raw files that the prepared data sets of some shards were made from."""
    roots = {_root(file) for file in found if is_shard(file)}
    return [
        File(*source)
        for root in sorted(roots)
        if files.exists(f"{root}/{MANIFEST}")
        for source in Manifest.read(root).sources
    ]


def _root(shard: File) -> str:
    return shard.url.rsplit("/", 2)[0]


def _folders_with(name: str, found: list[File]) -> set[str]:
    return {file.url.removesuffix(f"/{name}") for file in found if file.url.endswith(f"/{name}")}


def _shards(root: str, hash_range: HashRange, broken: dict[str, str] | None) -> Iterator[File]:
    present = {file.url: file for file in files.list_files(root, suffixes=("",))}
    for shard in Manifest.read(root).shards:
        file = present.get(f"{root}/{shard.file}")
        if file is None:
            msg = f"{root}/{shard.file} is in the manifest but missing; copy it again, or prepare the data again"
            if broken is None:
                raise FileNotFoundError(msg)
            broken[f"{root}/{shard.file}"] = msg
            continue
        if file.size != shard.size:
            msg = (
                f"{file.url} has {file.size} bytes, but was written with {shard.size}: it is damaged or cut short; copy "
                "it again, or prepare the data again"
            )
            if broken is None:
                raise ValueError(msg)
            broken[file.url] = msg
            continue
        if shard.places[0] < hash_range[1] and hash_range[0] < shard.places[1]:
            yield file


def features_of(listed: Sequence[File], hash_range: HashRange) -> bytes | None:
    """Return the feature file that was fitted on exactly these training events; None if there is none.

    Args:
        listed: the files that `event_files` gave for `hash_range`.
        hash_range: range of the split coordinate of the events to train on.
    """
    roots = {_root(file) for file in listed if is_shard(file)}
    if len(roots) != 1 or not all(map(is_shard, listed)) or not files.exists(f"{min(roots)}/{MANIFEST}"):
        return None
    (root,) = roots
    of_training = {shard.places for shard in Manifest.read(root).shards if shard.file.startswith("train/")}
    return files.read_bytes(f"{root}/{FEATURES}") if of_training == {hash_range} else None


def is_shard(file: File) -> bool:
    """Return whether a file is a prepared shard; every other file is Parquet."""
    return file.url.endswith(SUFFIX)
