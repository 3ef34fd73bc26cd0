"""Whole copies of files whose server sends no ranges, in unnamed files that vanish with the process."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

from crmuons.storage.http.sources import FinalError

MAX_BYTES = 4 * 2**30  # Size of all copies of one process; data.staging.dir keeps more, for all processes of a node.
INFLATED_BYTES = 2**20  # Bytes that are decompressed at once from an answer that the server compresses.


class Copy:
    """A copy that grows: its size in bytes, and the descriptor of its unnamed file.

    Args:
        url: the URL of the file.
        most: its size in bytes, or a limit for a file of unknown size, because an endless answer would fill the disk.
    """

    def __init__(self, url: str, most: int) -> None:
        self._url, self._most = url, most
        # The file has no name: the kernel removes it with the last descriptor, also after a kill.
        with tempfile.TemporaryFile() as file:
            self.descriptor = os.dup(file.fileno())
        self.size = 0

    def __del__(self) -> None:
        """Close the file once nobody reads it; it vanishes then."""
        os.close(self.descriptor)

    def write(self, piece: bytes) -> int:
        """Append bytes, and return the size.

        Raises:
            FinalError: if there are more than `most` bytes, or if the disk is full or cannot be written.
        """
        if self.size + len(piece) > self._most:
            msg = (
                f"{self._url}: the server sends more than {self._most} bytes, which is the size of the file, or the limit for "
                "a file of unknown size; copy it to a disk, look at it, and give the copy"
            )
            raise FinalError(msg)
        left = memoryview(piece)
        try:
            while left:
                # write(2) may write fewer bytes than given.
                left = left[os.write(self.descriptor, left) :]
        except OSError as error:
            msg = f"{tempfile.gettempdir()} cannot take a file whose server sends no ranges ({error.strerror}); free space there, or set TMPDIR"
            raise FinalError(msg) from error
        self.size += len(piece)
        return self.size


class WholeFiles:
    """Complete copies of files by URL. The oldest are removed when all together are larger than MAX_BYTES."""

    def __init__(self) -> None:
        self._copies: dict[str, Copy] = {}

    def holds(self, url: str) -> bool:
        """Return whether there is a complete copy of a file."""
        return url in self._copies

    def size(self, url: str) -> int:
        """Return the size of a copy in bytes."""
        return self._copies[url].size

    def read(self, url: str, start: int, end: int) -> bytes:
        """Return bytes start .. end - 1 of a copy."""
        copy = self._copies[url]  # This reference keeps it open while it is read.
        pieces = []
        while piece := os.pread(copy.descriptor, end - start, start):  # One call gives 2 GiB at most.
            pieces.append(piece)
            start += len(piece)
        return b"".join(pieces)

    def drop(self, url: str) -> None:
        """Remove a copy, if there is one. The file stays until reads that have begun are finished."""
        self._copies.pop(url, None)

    @contextmanager
    def writing(self, url: str, size: int | None) -> Iterator[Copy]:
        """Yield a new copy to write to; it counts as complete when the block ends without an error.

        Args:
            url: the URL of the file.
            size: its size in bytes, if it is known.
        """
        copy = Copy(url, MAX_BYTES if size is None else size)
        yield copy
        self._copies[url] = copy
        # The newest copy stays even if it alone is larger, because a reader waits for it.
        while sum(kept.size for kept in self._copies.values()) > MAX_BYTES and len(self._copies) > 1:
            self.drop(next(iter(self._copies)))
