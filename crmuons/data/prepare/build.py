"""`crmuons prepare`: raw files to a prepared data set, which is whole once its manifest is there.

The same command goes on from what is done, finds that there is nothing left to do, or says how its directory was made otherwise.
"""

import json
import logging
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol, TypeVar

from crmuons import provenance
from crmuons.data.events import EventArrays, concat, slice_events
from crmuons.data.manifest import CLAIM, FEATURES, MANIFEST, Manifest, PreparedShard, event_files, is_shard
from crmuons.data.prepare import shuffle
from crmuons.data.prepare.shuffle import QUARANTINE, SCRATCH, SPLITS, PrepareSettings, ShufflePlan
from crmuons.data.quarantine import QuarantineLimit, ReadCounts
from crmuons.data.sampler import FileSlice, cut_files
from crmuons.data.shards import read_shard_rows
from crmuons.progress import progress
from crmuons.storage.atomic import write_text
from crmuons.storage.files import File

logger = logging.getLogger(__name__)

GROUP_BYTES = 32 * 2**20  # Of raw files that one task reads: it takes about ten times as much memory.
GROUPS_IN_PROCESS = 8  # Starting Ray takes as long as one core needs for about so many.
FEATURE_EVENTS = 100_000  # Events on which the features are fitted, as before a run.

Task = TypeVar("Task")
Result = TypeVar("Result")
Fit = Callable[[EventArrays], bytes]


class TaskRunner(Protocol):
    """Does jobs, somewhere, and gives the results in any order."""

    def __call__(self, do: Callable[[Task], Result], jobs: Sequence[Task], /) -> Iterable[Result]: ...


def run_locally(do: Callable[[Task], Result], jobs: Sequence[Task]) -> Iterator[Result]:
    """Do jobs in this process, one after the other."""
    return map(do, jobs)


@dataclass(frozen=True)
class Preparation:
    """What is to be prepared, claimed in its directory."""

    work: ShufflePlan
    files: tuple[File, ...]
    groups: tuple[tuple[FileSlice, ...], ...]

    @property
    def is_large(self) -> bool:
        """Whether a cluster is done sooner than this process."""
        return len(self.groups) > GROUPS_IN_PROCESS


def claim_dataset(out: Path, urls: Sequence[str], settings: PrepareSettings) -> Preparation:
    """List the files, and claim a directory, or find what was begun or finished in it.

    Raises:
        FileNotFoundError: if there is nothing to read.
        ValueError: if the directory holds other things, or was made from other files or with other settings.
    """
    _check_apart(out, urls)
    found = event_files(urls)
    if shards := [file.url for file in found if is_shard(file)]:
        msg = f"{shards[0]} is prepared already; give the raw files that it was made from"
        raise ValueError(msg)
    request = {"settings": asdict(settings), "files": [[file.url, file.size, _changed(file)] for file in found]}
    claim = out / CLAIM
    if claim.is_file():
        _check_same(claim, request)
    elif out.exists() and (not out.is_dir() or any(out.iterdir())):
        msg = f"{out} is not a directory of `crmuons prepare`, and holds something; name a new directory with --out"
        raise ValueError(msg)
    else:
        out.mkdir(parents=True, exist_ok=True)
        write_text(claim, json.dumps(request, indent=1))
    groups = tuple(_groups(found))
    targets = shuffle.shard_specs(settings, sum(file.size for file in found))
    return Preparation(ShufflePlan(out, settings, len(groups), targets), tuple(found), groups)


def prepare_dataset(
    preparation: Preparation, fit: Fit, each: TaskRunner = run_locally, max_quarantined_share: float = 0.01
) -> Manifest:
    """Make what is not there yet.

    Args:
        preparation: see `begin`.
        fit: fits the features to training events; returns the content of their file.
        each: does the tasks; here, or ray_backend.tasks.each on a cluster.
        max_quarantined_share: of all rows.

    Raises:
        ValueError: if a file is not one of events, or more rows cannot be used.
        OSError: if something cannot be written. What is finished is kept.
    """
    work = preparation.work
    if (work.out / MANIFEST).is_file():
        logger.info("%s is prepared already; nothing is done", work.out)
        shutil.rmtree(work.out / SCRATCH, ignore_errors=True)
        return Manifest.read(str(work.out))
    for folder in (SCRATCH, *SPLITS):
        (work.out / folder).mkdir(exist_ok=True)
    tally = _scatter(preparation, each, max_quarantined_share)
    with progress(len(work.targets), unit="shards", what="shuffle") as bar:
        shards = []
        for shard in each(partial(shuffle.gather, work), work.targets):
            shards.append(shard)
            bar.update(1)
    return _finish(preparation, fit, tally, sorted(shards, key=lambda shard: shard.file))


def _scatter(preparation: Preparation, each: TaskRunner, max_quarantined_share: float) -> ReadCounts:
    limit = QuarantineLimit(max_quarantined_share, sum(unit.size for group in preparation.groups for unit in group))
    tally = ReadCounts()
    with progress(None, unit="rows", what="read") as bar:
        jobs = list(enumerate(preparation.groups))
        for group, read in each(partial(_scatter_one, preparation.work), jobs):
            tally += read
            limit.count(read.rows, sum(unit.size for unit in preparation.groups[group]))
            bar.update(read.rows)
            if limit.is_exceeded(tally):
                msg = (
                    f"{tally.quarantined} of the first {tally.rows} rows read cannot be used, more than --max-quarantined-share "
                    f"{max_quarantined_share:g} of all rows; they are in {preparation.work.out / QUARANTINE} with the reasons. "
                    "A larger share goes on from what is done"
                )
                raise ValueError(msg)
    return tally


def _scatter_one(work: ShufflePlan, job: tuple[int, Sequence[FileSlice]]) -> tuple[int, ReadCounts]:
    return job[0], shuffle.scatter(work, job)


def _finish(preparation: Preparation, fit: Fit, tally: ReadCounts, shards: list[PreparedShard]) -> Manifest:
    """Fit the features, write the manifest, remove what only the making needed."""
    work = preparation.work
    events = _first_training_events(work.out, shards)
    unfinished = work.out / SCRATCH / FEATURES
    unfinished.write_bytes(fit(events))
    unfinished.replace(work.out / FEATURES)
    sources = [(file.url, file.size) for file in preparation.files]
    settings = asdict(work.settings)
    manifest = Manifest(shards, tally.rows, tally.quarantined, settings, sources, provenance.code_tags())
    write_text(work.out / MANIFEST, manifest.to_json())
    shutil.rmtree(work.out / SCRATCH)
    return manifest


def _first_training_events(out: Path, shards: list[PreparedShard]) -> EventArrays:
    """Some of the shuffled training events."""
    parts: list[EventArrays] = []
    for shard in (shard for shard in shards if shard.file.startswith("train/")):
        wanted = FEATURE_EVENTS - sum(len(part.counts) for part in parts)
        if wanted > 0:
            pieces, _ = read_shard_rows(FileSlice(File(str(out / shard.file), shard.size), 0, 1))
            parts.append(slice_events(concat(pieces), 0, wanted))
    return concat(parts)


def _check_apart(out: Path, urls: Sequence[str]) -> None:
    """The next listing of the data would find what was written among them."""
    for url in urls:
        if "://" not in url and out.is_relative_to(Path(url).absolute()):
            msg = f"{out} lies in {url}, which holds the data; name a directory beside it with --out"
            raise ValueError(msg)


def _groups(found: list[File]) -> Iterator[tuple[FileSlice, ...]]:
    """Units that one task reads, in the order of the files."""
    group: list[FileSlice] = []
    for unit in cut_files(found):
        group.append(unit)
        if sum(each.size for each in group) >= GROUP_BYTES:
            yield tuple(group)
            group = []
    if group:
        yield tuple(group)


def _changed(file: File) -> int | None:
    """When a local file was changed last, in ns; files elsewhere are told apart by their sizes alone."""
    return None if "://" in file.url else Path(file.url).stat().st_mtime_ns


def _check_same(claim: Path, request: dict[str, Any]) -> None:
    try:
        before = json.loads(claim.read_text())
        settings, sources = before["settings"], {url: rest for url, *rest in before["files"]}
    except (ValueError, KeyError, TypeError) as error:
        msg = f"{claim} is damaged ({error}); remove {claim.parent}, or name another directory with --out"
        raise ValueError(msg) from error
    now = {url: rest for url, *rest in request["files"]}
    differing = [
        f"{key} was {settings.get(key)}, is {value}"
        for key, value in request["settings"].items()
        if settings.get(key) != value
    ]
    for what, urls in (
        ("new", now.keys() - sources.keys()),
        ("gone", sources.keys() - now.keys()),
        ("changed", {url for url in now.keys() & sources.keys() if now[url] != sources[url]}),
    ):
        if urls:
            differing.append(
                f"{len(urls)} of the files {'is' if len(urls) == 1 else 'are'} {what}, {min(urls)} the first"
            )
    if differing:
        msg = (
            f"{claim.parent} was prepared otherwise: {'; '.join(differing)}. Name another directory with --out, or remove "
            "this one"
        )
        raise ValueError(msg)
