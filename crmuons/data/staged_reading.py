"""Connect the reading of segments to the staging of remote files (crmuons.storage.staging).

The stager downloads files to a local directory before they are read. This module tells it, segment by segment, which
files come next and which were read, and opens a slice's file from that directory. It runs in the Loader's thread, which
starts its own stager (`with_own_stager`), or in a worker that reads with Ray tasks and uses its node's stager
(`with_stager`). Without staging, the functions pass segments on unchanged.
"""

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from itertools import chain, islice
from typing import IO

from crmuons.data.sampler import FileSlice, Segment, cut_files
from crmuons.storage.files import File
from crmuons.storage.identity import Digests, open_listed
from crmuons.storage.staging.download import Staging
from crmuons.storage.staging.stager import FileUse, Stager, StagerClient


@dataclass(frozen=True)
class ReadNotifier:
    """Tells the stager about the progress of reading a segment; a Staging carries it to the reader.

    Attributes:
        stager: the stager, or a client of it in another process.
        epoch: the segment's epoch.
        window: the segment's files to stage, and the files that come next.
    """

    stager: StagerClient
    epoch: int
    window: list[FileUse]

    def begin(self) -> None:
        """Tell the stager that the reading of the segment begins."""
        self.stager.ahead(self.window)

    def used(self, file: File, *, whole: bool, staged: bool) -> bool:
        """Tell the stager that a file was read; return whether the stager decides now if the file is kept."""
        return self.stager.used(FileUse(self.epoch, file, whole), staged)


def with_stager(
    segments: Iterable[Segment], staging: Staging, stager: StagerClient
) -> Iterator[tuple[Segment, Staging]]:
    """Yield each segment with the Staging for its reading, and let the stager download the files that come next."""
    for number, (segment, window) in enumerate(with_windows(segments, staging)):
        if number == 0:  # The reading may take seconds to start, so the downloads begin before it.
            stager.ahead(window)
        yield segment, replace(staging, helper=ReadNotifier(stager, segment.epoch, window))


def with_own_stager(segments: Iterable[Segment], staging: Staging | None) -> Iterator[tuple[Segment, Staging | None]]:
    """Do the same as `with_stager` with a stager in this process; without staging, yield the segments with None."""
    if staging is None:
        yield from ((segment, None) for segment in segments)
        return
    with Stager(staging) as stager:
        yield from with_stager(segments, staging, stager)


def with_windows(segments: Iterable[Segment], staging: Staging) -> Iterator[tuple[Segment, list[FileUse]]]:
    """Yield each segment with its files to stage and the next `staging.files_ahead` files (fewer at the end)."""
    source, queue, num_ahead = iter(segments), deque[tuple[Segment, list[FileUse]]](), staging.files_ahead
    while True:
        # The number of segments is limited too: segments of local files have nothing to stage and never fill the window.
        while len(queue) <= num_ahead and sum(len(uses) for _, uses in islice(queue, 1, None)) < num_ahead:
            if (segment := next(source, None)) is None:
                break
            queue.append((segment, _uses(segment, staging)))
        if not queue:
            return
        segment, own = queue.popleft()
        later = islice(chain.from_iterable(uses for _, uses in queue), num_ahead)
        yield segment, list(dict.fromkeys(chain(own, later)))


def _uses(segment: Segment, staging: Staging) -> list[FileUse]:
    """Return the segment's files to stage, each once and in order."""
    uses = (
        FileUse(segment.epoch, part.file, part.parts == 1)
        for part in segment.slices
        if staging.should_stage(part.file, whole=part.parts == 1)
    )
    return list(dict.fromkeys(uses))


def open_slice(
    file_slice: FileSlice, staging: Staging | None, digests: Digests | None = None
) -> AbstractContextManager[IO[bytes]]:
    """Open a slice's file: from the staging directory, or at its URL if `staging` is None; compare it with `digests`.

    Raises:
        FileNotFoundError, ChangedError: if the file is gone, or is not the one that was listed.
    """
    if staging is None:
        return open_listed(file_slice.file, digests)
    return staging.open(file_slice.file, whole=file_slice.parts == 1, digests=digests)


def read_in_parts(data: Sequence[File]) -> set[File]:
    """Return the files that are read in several slices, because they are large."""
    return {part.file for part in cut_files(data) if part.parts > 1}
