"""Build a prepared data set from raw files: the work of `crmuons prepare`.

One driver process claims the output directory, runs the tasks of the two shuffle phases (prepare.shuffle) itself or on
a Ray cluster, and writes the manifest at the end. The data set exists once its manifest exists. The same command, run
again, continues with the missing parts, finds nothing to do, or reports how the earlier request differs.
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
from crmuons.config.options import Share, check_value
from crmuons.data.events import EventArrays, concat, slice_events
from crmuons.data.manifest import CLAIM, FEATURES, MANIFEST, Manifest, PreparedShard, event_files, is_shard
from crmuons.data.prepare import shuffle
from crmuons.data.prepare.shuffle import QUARANTINE, SCRATCH, SPLITS, PrepareSettings, ShufflePlan
from crmuons.data.quarantine import QuarantineLimit, ReadCounts
from crmuons.data.sampler import FileSlice, cut_files
from crmuons.data.shards import read_shard_rows
from crmuons.progress import progress
from crmuons.storage.atomic import write_text
from crmuons.storage.claims import names_in
from crmuons.storage.differences import differences
from crmuons.storage.files import File
from crmuons.storage.identity import is_same, with_digests
from crmuons.storage.output import check_apart
from crmuons.storage.records import damage_named

logger = logging.getLogger(__name__)

GROUP_BYTES = 32 * 2**20  # Bytes of raw files that one task reads; the task takes about ten times this memory.
GROUPS_IN_PROCESS = 8  # One core reads about this many groups in the time that Ray takes to start.
FEATURE_EVENTS = 100_000  # Events for the fit of the features; a run on raw files takes the same number.

Task = TypeVar("Task")
Result = TypeVar("Result")
Fit = Callable[[EventArrays], bytes]


class TaskRunner(Protocol):
    """Runs a function on each of some tasks, anywhere, and yields the results in any order."""

    def __call__(self, do: Callable[[Task], Result], jobs: Sequence[Task], /) -> Iterable[Result]: ...


def run_locally(do: Callable[[Task], Result], jobs: Sequence[Task]) -> Iterator[Result]:
    """Run the tasks in this process, one after the other."""
    return map(do, jobs)


@dataclass(frozen=True)
class Preparation:
    """A preparation whose output directory is claimed.

    Attributes:
        plan: what all tasks of the shuffle need.
        files: the raw files.
        groups: the slices that each task of the first phase reads.
    """

    plan: ShufflePlan
    files: tuple[File, ...]
    groups: tuple[tuple[FileSlice, ...], ...]

    @property
    def is_large(self) -> bool:
        """Return whether a cluster would finish sooner than this process."""
        return len(self.groups) > GROUPS_IN_PROCESS


def claim_dataset(out: Path, urls: Sequence[str], settings: PrepareSettings) -> Preparation:
    """List the raw files and claim the output directory, or find what was begun or finished in it.

    Raises:
        FileNotFoundError: if there is nothing to read.
        ValueError: if the directory holds other things, or was made from other files or with other settings.
    """
    raw_files = event_files(urls)
    check_apart(out, urls)
    # With digests, so that the work does not begin again if inputs were touched or copied.
    raw_files = with_digests(raw_files, {file.size for file in raw_files})
    if shards := [file.url for file in raw_files if is_shard(file)]:
        msg = f"{shards[0]} is already prepared; name the raw files that it was made from"
        raise ValueError(msg)
    request = {
        "settings": _recorded(settings),
        "files": [[file.url, file.size, file.stamp, file.digest] for file in raw_files],
    }
    claim = out / CLAIM
    if claim.is_file():
        _check_same(claim, request, raw_files)
    elif out.exists() and (not out.is_dir() or names_in(out) - {path.name for path in _interrupted(claim)}):
        msg = f"{out} is not empty and was not made by `crmuons prepare`; name a new directory with --out"
        raise ValueError(msg)
    else:
        out.mkdir(parents=True, exist_ok=True)
        for partial_claim in _interrupted(claim):
            partial_claim.unlink(missing_ok=True)
        # The claim holds the request, so a second command with another request finds the differences.
        write_text(claim, json.dumps(request, indent=1))
    groups = tuple(_groups(raw_files))
    shard_specs = shuffle.shard_specs(settings, sum(file.size for file in raw_files))
    return Preparation(ShufflePlan(out, settings, len(groups), shard_specs), tuple(raw_files), groups)


def _recorded(settings: PrepareSettings) -> dict[str, Any]:
    """Return the settings as the claim holds them. Without features they are the same as in earlier versions."""
    values: dict[str, Any] = json.loads(json.dumps(asdict(settings)))
    return {name: value for name, value in values.items() if name != "features" or value}


def prepare_dataset(
    preparation: Preparation, fit: Fit, run_tasks: TaskRunner = run_locally, max_quarantined_share: Share = 0.01
) -> Manifest:
    """Make the parts of the data set that are missing.

    Args:
        preparation: see `claim_dataset`.
        fit: fits the features to training events, and returns the content of the feature file.
        run_tasks: runs the tasks: here, or ray_backend.tasks.run_tasks on a cluster.
        max_quarantined_share: limit on the share of rows that cannot be used.

    Raises:
        ValueError: if a file does not hold events, or too many rows cannot be used.
        OSError: if something cannot be written. Finished parts are kept.
    """
    check_value("--max-quarantined-share", Share, max_quarantined_share)
    plan = preparation.plan
    # The manifest is written last, so the data set is complete if it exists.
    if (plan.out / MANIFEST).is_file():
        logger.info("%s is already prepared; nothing to do", plan.out)
        shutil.rmtree(plan.out / SCRATCH, ignore_errors=True)
        return Manifest.read(str(plan.out))
    for folder in (SCRATCH, *SPLITS):
        (plan.out / folder).mkdir(exist_ok=True)
    read_counts = _scatter(preparation, run_tasks, max_quarantined_share)
    with progress(len(plan.shards), unit="shards", what="shuffle") as bar:
        shards = []
        for shard in run_tasks(partial(shuffle.gather_shard, plan), plan.shards):
            shards.append(shard)
            bar.update(1)
    return _finish(preparation, fit, read_counts, sorted(shards, key=lambda shard: shard.file))


def _scatter(preparation: Preparation, run_tasks: TaskRunner, max_quarantined_share: float) -> ReadCounts:
    """Run the first phase, and return the counts of all rows."""
    group_bytes = [sum(part.size for part in group) for group in preparation.groups]
    limit = QuarantineLimit(max_quarantined_share, sum(group_bytes))
    total = ReadCounts()
    with progress(None, unit="rows", what="read") as bar:
        tasks = list(enumerate(preparation.groups))
        for group, read_counts in run_tasks(partial(_scatter_one, preparation.plan), tasks):
            total += read_counts
            limit.count(read_counts.rows, group_bytes[group])
            bar.update(read_counts.rows)
            # Checked after each task, so that data in wrong units fail early.
            if limit.is_exceeded(total):
                msg = (
                    f"{total.quarantined} of the first {total.rows} rows read cannot be used, more than "
                    f"--max-quarantined-share {max_quarantined_share:g} of all rows; the rows and the reasons are in "
                    f"{preparation.plan.out / QUARANTINE}. With a larger share, the command continues from here"
                )
                raise ValueError(msg)
    return total


def _scatter_one(plan: ShufflePlan, task: tuple[int, Sequence[FileSlice]]) -> tuple[int, ReadCounts]:
    return task[0], shuffle.scatter_group(plan, task)


def _finish(preparation: Preparation, fit: Fit, read_counts: ReadCounts, shards: list[PreparedShard]) -> Manifest:
    """Fit the features, write the manifest, and remove the intermediate files."""
    plan = preparation.plan
    events = _first_training_events(plan.out, shards)
    partial_file = plan.out / SCRATCH / FEATURES
    # Written elsewhere, then renamed, before the manifest: whoever sees the manifest finds the features.
    partial_file.write_bytes(fit(events))
    partial_file.replace(plan.out / FEATURES)
    sources = [(file.url, file.size) for file in preparation.files]
    settings = asdict(plan.settings)
    manifest = Manifest(shards, read_counts.rows, read_counts.quarantined, settings, sources, provenance.code_tags())
    write_text(plan.out / MANIFEST, manifest.to_json())
    shutil.rmtree(plan.out / SCRATCH)
    return manifest


def _first_training_events(out: Path, shards: list[PreparedShard]) -> EventArrays:
    """Read up to FEATURE_EVENTS of the training events; they are in random order already."""
    parts: list[EventArrays] = []
    for shard in (shard for shard in shards if shard.file.startswith("train/")):
        missing = FEATURE_EVENTS - sum(len(part.counts) for part in parts)
        if missing > 0:
            batches, _ = read_shard_rows(FileSlice(File(str(out / shard.file), shard.size), 0, 1))
            parts.append(slice_events(concat(batches), 0, missing))
    return concat(parts)


def _interrupted(claim: Path) -> set[Path]:
    """Return the partial files of a claim whose process was killed before the claim had its name."""
    return set(claim.parent.glob(f".{claim.name}.*partial"))


def _groups(raw_files: list[File]) -> Iterator[tuple[FileSlice, ...]]:
    """Yield the slices that one task reads, in the order of the files."""
    group: list[FileSlice] = []
    for file_slice in cut_files(raw_files):
        group.append(file_slice)
        if sum(part.size for part in group) >= GROUP_BYTES:
            yield tuple(group)
            group = []
    if group:
        yield tuple(group)


def _check_same(claim: Path, request: dict[str, Any], raw_files: Sequence[File]) -> None:
    """Refuse a directory that was claimed with other settings or for other files."""
    with damage_named(claim, f"remove {claim.parent}, or name another directory with --out"):
        previous = json.loads(claim.read_bytes())
        # Early versions have no digest, and their time stamp is a number.
        sources = {
            url: File(url, size, None if stamp is None else str(stamp), *digest)
            for url, size, stamp, *digest in previous["files"]
        }
        settings = dict(previous["settings"])
    current = {file.url: file for file in raw_files}
    changes = differences(settings, request["settings"])
    for change, urls in (
        ("new", current.keys() - sources.keys()),
        ("missing", sources.keys() - current.keys()),
        ("changed", {url for url in current.keys() & sources.keys() if not is_same(sources[url], current[url])}),
    ):
        if urls:
            changes.append(f"{len(urls)} {change} {'file' if len(urls) == 1 else 'files'}, the first is {min(urls)}")
    if changes:
        msg = (
            f"{claim.parent} was prepared from other files or with other settings: {'; '.join(changes)}. Name "
            "another directory with --out, or remove this one"
        )
        raise ValueError(msg)
