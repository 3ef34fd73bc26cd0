"""The manifest of a prepared data set, and the shards that it lists."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from crmuons.storage import files
from crmuons.storage.files import File

MANIFEST = "manifest.json"


CLAIM = "preparation.json"  # What is being prepared; it is there before the first shard, the manifest after the last.


FEATURES = "features.pt"  # Fitted on training events.


SUFFIX = ".arrow"


HashRange = tuple[float, float]  # From the first up to but not including the second.


@dataclass(frozen=True)
class PreparedShard:
    """What the manifest says of a shard.

    Attributes:
        file: its path in the data set.
        places: of its showers.
        events, muons: how many it holds.
        size: in bytes.
        sha256: of the file.
    """

    file: str
    places: HashRange
    events: int
    muons: int
    size: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """What a prepared data set holds, and where it comes from.

    Attributes:
        shards: in order.
        rows, quarantined: of the files that it was made from.
        settings: of the preparation.
        sources: URLs and sizes of the files that it was made from.
        code: versions, and the commit where there is one.
    """

    shards: list[PreparedShard]
    rows: int
    quarantined: int
    settings: dict[str, Any]
    sources: list[tuple[str, int]]
    code: dict[str, str]

    def to_json(self) -> str:
        """The manifest as text, the same for the same data set."""
        return json.dumps(asdict(self), indent=1, sort_keys=True)

    def describe(self) -> str:
        """Events and muons of each split."""
        said = []
        for split in dict.fromkeys(shard.file.partition("/")[0] for shard in self.shards):
            mine = [shard for shard in self.shards if shard.file.startswith(f"{split}/")]
            said.append(
                f"{split} {sum(shard.events for shard in mine):,} ({sum(shard.muons for shard in mine):,} muons)"
            )
        return f"{len(self.shards)} shards of events: {', '.join(said)}"

    @classmethod
    def read(cls, root: str) -> "Manifest":
        """The manifest of a directory or URL.

        Raises:
            ValueError: if it is damaged.
        """
        try:
            found = json.loads(files.read_bytes(f"{root}/{MANIFEST}"))
            shards = [PreparedShard(**shard | {"places": tuple(shard["places"])}) for shard in found.pop("shards")]
            sources = [(url, size) for url, size in found.pop("sources")]
            return cls(shards=shards, sources=sources, **found)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            msg = f"{root}/{MANIFEST} is not the manifest of a prepared data set, or is damaged ({error}); prepare it again"
            raise ValueError(msg) from error


def event_files(urls: str | Sequence[str], places: HashRange = (0.0, 1.0)) -> list[File]:
    """The files that hold the events of paths, directories, globs or URLs: of prepared data sets the shards, others as they are.

    Args:
        urls: see files.list_files.
        places: shards without a shower among these are left out.

    Raises:
        FileNotFoundError: if there is nothing, or a shard is missing.
        ValueError: if a data set is not prepared to its end, or a shard has not the size that it was written with.
    """
    try:
        found = files.list_files(urls, suffixes=(*files.PARQUET_SUFFIXES, SUFFIX, f"/{MANIFEST}", f"/{CLAIM}"))
    except FileNotFoundError:
        return files.list_files(urls)  # It says what is missing in the words of who gives raw files.
    begun, whole = (_folders_of(name, found) for name in (CLAIM, MANIFEST))
    for root in sorted(begun - whole):
        msg = f"{root} is not prepared to its end; the `crmuons prepare` that made it, once more, goes on from what is done"
        raise ValueError(msg)
    raw = [file for file in found if not any(file.url.startswith(f"{root}/") for root in whole)]
    return sorted([*raw, *(file for root in sorted(whole) for file in _shards(root, places))])


def origins(urls: str | Sequence[str]) -> list[File]:
    """The files of `event_files`, and those that prepared data sets among them were made from."""
    found = event_files(urls)
    roots = {_root(file) for file in found if is_shard(file)}
    sources = [
        File(*source)
        for root in sorted(roots)
        if files.exists(f"{root}/{MANIFEST}")
        for source in Manifest.read(root).sources
    ]
    return [*found, *sources]


def _root(shard: File) -> str:
    return shard.url.rsplit("/", 2)[0]


def _folders_of(name: str, found: list[File]) -> set[str]:
    return {file.url.removesuffix(f"/{name}") for file in found if file.url.endswith(f"/{name}")}


def _shards(root: str, places: HashRange) -> Iterator[File]:
    there = {file.url: file for file in files.list_files(root, suffixes=(SUFFIX,))}
    for shard in Manifest.read(root).shards:
        file = there.get(f"{root}/{shard.file}")
        if file is None:
            msg = f"{root}/{shard.file} is missing, and the manifest names it; copy it there again, or prepare the data again"
            raise FileNotFoundError(msg)
        if file.size != shard.size:
            msg = (
                f"{file.url} has {file.size} bytes, and was written with {shard.size}: it is damaged or cut short; copy it "
                "there again, or prepare the data again"
            )
            raise ValueError(msg)
        if shard.places[0] < places[1] and places[0] < shard.places[1]:
            yield file


def features_of(listed: Sequence[File], places: HashRange) -> bytes | None:
    """The content of the file of features fitted on the events of some files and places; None if there is none.

    Args:
        listed: as `event_files` gave them for these places.
        places: of the events to train on.
    """
    roots = {_root(file) for file in listed if is_shard(file)}
    if len(roots) != 1 or not all(map(is_shard, listed)) or not files.exists(f"{min(roots)}/{MANIFEST}"):
        return None
    (root,) = roots
    of_training = {shard.places for shard in Manifest.read(root).shards if shard.file.startswith("train/")}
    return files.read_bytes(f"{root}/{FEATURES}") if of_training == {places} else None


def is_shard(file: File) -> bool:
    """Whether a file is a prepared shard; everything else is Parquet."""
    return file.url.endswith(SUFFIX)
