"""Find the training files of a run again when it continues, from their recorded sizes and digests.

A file is the same if its size and digest are the same, whatever its time stamp and its place. So data may be touched,
copied and moved, and other files are never read in their place.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePath

from crmuons.data.manifest import SUFFIX, HashRange, event_files
from crmuons.storage import files
from crmuons.storage.changed import ChangedError
from crmuons.storage.files import File, is_remote
from crmuons.storage.identity import REMEDY, check_listed, check_local, with_digests

MAX_NAMED = 3  # Files that a message names.
NOT_RECORDED = "not recorded"


@dataclass(frozen=True)
class FoundFiles:
    """The files of a run as they are now.

    Attributes:
        files: the files in the order of the record, on which the read plan depends; also files that are left out.
        moved: the present place of each moved file, by its place at the start.
        unusable: the reason for each file that cannot be used, by its recorded URL.
        new: files at the same places that the run does not read.
    """

    files: list[File]
    moved: dict[str, str] = field(default_factory=dict)
    unusable: dict[str, str] = field(default_factory=dict)
    new: list[str] = field(default_factory=list)


def find_again(
    recorded: Sequence[File], urls: Sequence[str], hash_range: HashRange = (0.0, 1.0), *, moved: bool
) -> FoundFiles:
    """Look for the files that a run began with among the present files.

    Args:
        recorded: the files.
        urls: data.train as it is now.
        hash_range: range of the split coordinate of the training events; see manifest.event_files.
        moved: look for each file among `urls`, by size and digest; otherwise look where it was.

    Raises:
        FileNotFoundError: if `moved` is set and nothing is at `urls`.
    """
    # If the files should be in place, a failed listing is no error yet: each recorded file is looked up by itself.
    present = _listed(urls, hash_range, needed=moved)
    if moved:
        found = _by_content(recorded, with_digests(list(present.values()), {file.size for file in recorded}))
    else:
        found = _in_place(recorded, present)
    return replace(found, new=sorted(present.keys() - {file.url for file in found.files}))


def refuse_unusable(found: FoundFiles, recorded: Sequence[File]) -> None:
    """Refuse files that cannot be used.

    Raises:
        ValueError: with the number of files and the first of them.
    """
    if found.unusable:
        named = "; ".join(list(found.unusable.values())[:MAX_NAMED])
        more = len(found.unusable) - MAX_NAMED
        msg = (
            f"{len(found.unusable)} of the {len(recorded)} files that the run began with cannot be used: {named}"
            f"{f'; and {more} more' if more > 0 else ''}: {REMEDY}"
        )
        raise ValueError(msg)


def _listed(urls: Sequence[str], hash_range: HashRange, *, needed: bool) -> dict[str, File]:
    try:
        return {file.url: file for file in event_files(urls, hash_range)}
    except (FileNotFoundError, ValueError):  # A damaged prepared data set has no usable manifest: list its files.
        try:
            return {file.url: file for file in files.list_files(urls, suffixes=(*files.PARQUET_SUFFIXES, SUFFIX))}
        except FileNotFoundError:  # Gone, or the paths start from another working directory now.
            if needed:
                raise
            return {}


def _in_place(recorded: Sequence[File], present: Mapping[str, File]) -> FoundFiles:
    found = FoundFiles([])
    for file in recorded:
        try:
            found.files.append(_found(file, present.get(file.url)))
        # The errors are collected, so that the user sees the number of missing files, not only the first.
        except (FileNotFoundError, ChangedError) as error:
            # Without a stamp the reader would not compare the file.
            found.files.append(file if file.stamp is not None else replace(file, stamp=NOT_RECORDED))
            found.unusable[file.url] = _reason(error)
    return found


def _found(file: File, listed: File | None) -> File:
    if is_remote(file.url):
        # With the present stamp, so that the reader's cheap check succeeds in later epochs.
        return replace(file, stamp=check_listed(file, listed).stamp)
    state = check_local(file)
    if state.st_size != file.size:  # Early versions recorded only the size.
        msg = f"{file.url} has changed: {file.size} bytes when it was listed, {state.st_size} bytes now: {REMEDY}"
        raise ChangedError(msg)
    return replace(file, stamp=str(state.st_mtime_ns))


def _by_content(recorded: Sequence[File], present: Sequence[File]) -> FoundFiles:
    candidates: dict[tuple[int, str | None], list[File]] = defaultdict(list)
    for file in present:
        candidates[file.size, file.digest].append(file)
    found = FoundFiles([])
    for file in recorded:
        # The name does not count: a move may rename everything.
        same = candidates[file.size, file.digest] if file.digest is not None else []
        if not same:
            found.files.append(file)
            found.unusable[file.url] = (
                f"data.train has no file with the {file.size} bytes and the digest {file.digest} of {file.url}"
                if file.digest is not None
                else f"{file.url} was not read before the run stopped, so its digest is not known and it must stay where it was"
            )
            continue
        # Copies have equal content; the file that did not move, or kept its name, is the one that was meant.
        best = max(same, key=lambda other: (other.url == file.url, _name(other) == _name(file)))
        # Each file is used once: two recorded copies of one content need two files.
        same.remove(best)
        found.files.append(replace(best, first_url=file.url))
        if best.url != file.url:
            found.moved[file.url] = best.url
    return found


def _name(file: File) -> str:
    return PurePath(file.url).name


def _reason(error: Exception) -> str:
    return str(error).partition(f": {REMEDY}")[0]


def overlap(train: Sequence[File], validation: Sequence[File]) -> list[File]:
    """Return the validation files that are also training files, under the same or another name."""
    # By place and by content: a copy under another name would make the validation too good as well.
    known = {key for file in train for key in _keys(file)}
    return [file for file in validation if not known.isdisjoint(_keys(file))]


def _keys(file: File) -> set[object]:
    place = file.url if is_remote(file.url) else str(Path(file.url).resolve())
    return {place} | ({(file.size, file.digest)} if file.digest is not None else set())
