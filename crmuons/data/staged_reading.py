"""Reading files through a staging directory."""

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from itertools import chain, islice
from typing import IO

from crmuons.data.sampler import FileSlice, Segment, cut_files
from crmuons.storage import files
from crmuons.storage.files import File
from crmuons.storage.staging.download import Staging
from crmuons.storage.staging.stager import FileUse, Stager, StagerClient


@dataclass(frozen=True)
class ReadNotifier:
    """Tells a stager how the reading of an item gets on (a Staging's helper)."""

    stager: StagerClient
    epoch: int
    window: list[FileUse]

    def begin(self) -> None:
        """The item is read now."""
        self.stager.ahead(self.window)

    def used(self, file: File, *, whole: bool, staged: bool) -> bool:
        """Pass on that a file was read; returns whether the stager decides what becomes of it now."""
        return self.stager.used(FileUse(self.epoch, file, whole), staged)


def with_stager(items: Iterable[Segment], staging: Staging, stager: StagerClient) -> Iterator[tuple[Segment, Staging]]:
    """Each item with the staging to read it by, so that the stager brings its files, and those that come next, before."""
    for number, (item, window) in enumerate(with_windows(items, staging)):
        if number == 0:  # Whoever reads may need seconds to start.
            stager.ahead(window)
        yield item, replace(staging, helper=ReadNotifier(stager, item.epoch, window))


def with_own_stager(items: Iterable[Segment], staging: Staging | None) -> Iterator[tuple[Segment, Staging | None]]:
    """Like `with_stager`, with a stager in this process; without staging the items alone."""
    if staging is None:
        yield from ((item, None) for item in items)
        return
    with Stager(staging) as stager:
        yield from with_stager(items, staging, stager)


def with_windows(items: Iterable[Segment], staging: Staging) -> Iterator[tuple[Segment, list[FileUse]]]:
    """Each item with its files to stage and, after them, `files_ahead` that come next (fewer at the end)."""
    source, coming, wanted = iter(items), deque[tuple[Segment, list[FileUse]]](), staging.files_ahead
    while True:
        # So many items at most: those of local files have nothing to stage.
        while len(coming) <= wanted and sum(len(uses) for _, uses in islice(coming, 1, None)) < wanted:
            if (item := next(source, None)) is None:
                break
            coming.append((item, _uses(item, staging)))
        if not coming:
            return
        item, own = coming.popleft()
        later = islice(chain.from_iterable(uses for _, uses in coming), wanted)
        yield item, list(dict.fromkeys(chain(own, later)))


def _uses(item: Segment, staging: Staging) -> list[FileUse]:
    return list(
        dict.fromkeys(
            _use(item.epoch, unit) for unit in item.units if staging.should_stage(unit.file, whole=unit.parts == 1)
        )
    )


def _use(epoch: int, unit: FileSlice) -> FileUse:
    return FileUse(epoch, unit.file, unit.parts == 1)


def open_unit(unit: FileSlice, staging: Staging | None) -> AbstractContextManager[IO[bytes]]:
    """Open a unit's file: by way of a staging directory, or where it lies."""
    return (
        files.open_file(unit.file.url, unit.file.size)
        if staging is None
        else staging.open(unit.file, whole=unit.parts == 1)
    )


def read_in_parts(data: Sequence[File]) -> set[File]:
    """Return the files that are so large that each is read in several units."""
    return {unit.file for unit in cut_files(data) if unit.parts > 1}
