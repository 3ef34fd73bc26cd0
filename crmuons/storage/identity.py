"""Check whether a file is still the file that was listed, by its size, its time stamp and a digest of its end.

The end of a Parquet file or of a shard is its footer: it holds the places and sizes of all columns, or the checksums of all
record batches. A new time stamp alone is no change, because data are touched, copied and moved: then the digest decides.
"""

import hashlib
import io
import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import IO

from crmuons.storage.changed import ChangedError
from crmuons.storage.files import File, is_remote, open_file

# Arrow reads the same number of bytes first to find a footer, so the digest at an opening costs no extra request.
TAIL_BYTES = 64 * 2**10
# Each read waits for a disk or a server, not for a CPU.
READS_AT_ONCE = 16
MAX_REMOTE_DIGESTS = 2_000  # Reading the end of more files would hold up the start of a run for minutes.
REMEDY = (
    "put the original file back, or list the data again with a new command; a run continues without it with "
    "data.skip_missing=true, and from another place with data.train"
)


class Digests:
    """Digests of the ends of remote files, by URL. The first opening of a file gives its digest; later openings must agree.

    A run keeps them in its checkpoints. So no request is made only for a digest, and a file is the same in the whole run.

    Args:
        known: the digests so far, by the URL at which a file was listed first.
    """

    def __init__(self, known: Mapping[str, str] | None = None) -> None:
        self.known = dict(known or {})

    def of(self, file: File) -> File:
        """Return a file with its digest, if the digest is known."""
        return file if file.digest is not None else replace(file, digest=self.known.get(_first_url(file)))

    def part(self, files: Iterable[File]) -> "Digests":
        """Return only the digests of some files, to send them to the process that reads these files."""
        names = {_first_url(file) for file in files}
        return Digests({name: self.known[name] for name in names & self.known.keys()})

    def note(self, url: str, digest: str) -> None:
        """Record the digest of an opening.

        Raises:
            ChangedError: if an earlier opening gave another digest.
        """
        if (before := self.known.setdefault(url, digest)) != digest:  # One operation, because several threads read.
            msg = f"{url} has changed: end {before} when it was first opened, end {digest} now: {REMEDY}"
            raise ChangedError(msg)


def _first_url(file: File) -> str:
    return file.first_url or file.url


def with_digests(files: Sequence[File], remote_sizes: Collection[int] = ()) -> list[File]:
    """Return files with the digests of their ends. Remote files get a digest only if it is worth a request.

    Args:
        files: the files.
        remote_sizes: remote files of these sizes get a digest, unless they are more than MAX_REMOTE_DIGESTS.

    Raises:
        OSError: if a file cannot be read.
    """
    asked = {file for file in files if is_remote(file.url) and file.size in remote_sizes and file.digest is None}
    with ThreadPoolExecutor(READS_AT_ONCE) as pool:
        wanted = [
            file.digest is None and (not is_remote(file.url) or (file in asked and len(asked) <= MAX_REMOTE_DIGESTS))
            for file in files
        ]
        # The results have the order of the files, so that the next line can assign them.
        read = pool.map(_with_digest, (file for file, is_wanted in zip(files, wanted, strict=True) if is_wanted))
        return [next(read) if is_wanted else file for file, is_wanted in zip(files, wanted, strict=True)]


def open_listed(file: File, digests: Digests | None = None) -> IO[bytes]:
    """Open a file for reading in binary, and check that it is the file that was listed.

    Args:
        file: the file.
        digests: digests of earlier openings of remote files. This opening must agree with them; a first opening is added.

    Raises:
        FileNotFoundError: if it is gone.
        ChangedError: if its content has changed.
    """
    try:
        # The size is passed, so that a remote file system need not ask for it.
        opened = open_file(file.url, file.size)
    except FileNotFoundError as error:
        raise _gone(file) from error
    try:
        return _checked(opened, file, digests)
    except BaseException:  # Ctrl-C too must close the file.
        opened.close()
        raise


def check_local(file: File, path: Path | None = None) -> os.stat_result:
    """Check that a local file is the file that was listed; return its state.

    Args:
        file: the file as it was listed.
        path: a copy of it, whose time stamp means nothing; None for the file itself.

    Raises:
        FileNotFoundError: if it is gone.
        ChangedError: if its content has changed.
    """
    try:
        state = (path or Path(file.url)).stat()
    except FileNotFoundError as error:
        raise _gone(file) from error
    # A staged copy has the time of its download.
    stamp = None if path else str(state.st_mtime_ns)
    if not _is_same(file, state.st_size, stamp):
        # Size and stamp are not enough, for example for a file that was touched or copied: read 64 KiB.
        with (path or Path(file.url)).open("rb") as opened:
            _compare(file, state.st_size, stamp, _digest(_read_tail(opened, state.st_size)))
    return state


def check_listed(file: File, listed: File | None) -> File:
    """Check, by its entry in a new listing, that a remote file is still the same; return this entry.

    Raises:
        FileNotFoundError: if it is gone.
        ChangedError: if its content has changed.
    """
    if listed is None:
        raise _gone(file)
    if listed.size != file.size or not _is_same(file, listed.size, listed.stamp):
        # Without a recorded digest, a request for the present digest would be useless.
        now = _with_digest(listed).digest if file.digest is not None and listed.size == file.size else None
        _compare(file, listed.size, listed.stamp, now or "")
    return listed


def check_copy(file: File, copy: IO[bytes], digests: Digests | None) -> None:
    """Compare an open local copy of a remote file with earlier openings of the file; leave it at its start.

    Raises:
        ChangedError: if the content has changed.
    """
    if digests is not None:
        digests.note(_first_url(file), _digest(_read_tail(copy, file.size)))
        copy.seek(0)


def is_copy_of_present(path: Path, file: File) -> bool:
    """Return whether the ends of a local file and of the present file at a URL agree, with one small request."""
    with path.open("rb") as copy:
        return _with_digest(replace(file, digest=None)).digest == _digest(_read_tail(copy, file.size))


def is_same(before: File, now: File) -> bool:
    """Return whether two entries of a file have the same content: by digest, or by time stamp if one has no digest."""
    # The digest decides even if the stamps differ, because a copy has another stamp.
    if before.digest is not None and now.digest is not None:
        return (before.size, before.digest) == (now.size, now.digest)
    return before.size == now.size and (before.stamp is None or before.stamp == now.stamp)


def is_copy(path: Path, file: File) -> bool:
    """Return whether a local file is a copy of the file that was listed, judged by its size and its end."""
    try:
        check_local(file, path)
    except ChangedError:
        return False
    return True


def _is_same(file: File, size: int, stamp: str | None) -> bool:
    """Return whether size and stamp alone show that a file is the same. Files without stamp and digest are not checked."""
    # Runs of early versions recorded only sizes.
    unknown = file.stamp is None and file.digest is None
    return unknown or (size == file.size and file.stamp is not None and stamp == file.stamp)


def _compare(file: File, size: int, stamp: str | None, digest: str) -> None:
    # Without a recorded digest only the stamp can show a change; without a stamp of the server, nothing can.
    same_content = digest == file.digest if file.digest is not None else stamp in (None, file.stamp)
    if size == file.size and same_content:
        return
    before, now = f"{file.size} bytes", f"{size} bytes"
    if size == file.size:
        before, now = f"{before}{_describe(file.stamp, file.digest)}", f"{now}{_describe(stamp, digest)}"
    msg = f"{file.url} has changed: {before} when it was listed, {now} now: {REMEDY}"
    raise ChangedError(msg)


def _gone(file: File) -> FileNotFoundError:
    return FileNotFoundError(f"{file.url} is gone; it had {file.size} bytes when it was listed: {REMEDY}")


def _describe(stamp: str | None, digest: str | None) -> str:
    text = f", end {digest}" if digest else ""
    if stamp is None:
        return text
    # Nanoseconds since 1970 have 19 digits; stamps of servers (an ETag, a date) are shown unchanged.
    is_time = stamp.isdigit() and len(stamp) > 16
    return (
        f" of {datetime.fromtimestamp(int(stamp) / 1e9, UTC):%Y-%m-%d %H:%M:%S} UTC{text}"
        if is_time
        else f" ({stamp}){text}"
    )


def _checked(opened: IO[bytes], file: File, digests: Digests | None) -> IO[bytes]:
    if not is_remote(file.url):
        state = os.fstat(opened.fileno())
        stamp = str(state.st_mtime_ns)
        if not _is_same(file, state.st_size, stamp):
            _compare(file, state.st_size, stamp, _digest(_read_tail(opened, state.st_size)))
            opened.seek(0)
        return opened
    # The time stamp of a remote file would cost another request.
    if file.digest is None and digests is None:
        return opened
    size = opened.seek(0, os.SEEK_END)
    # Arrow reads the same bytes next to find the footer: they are kept, and the check costs no request.
    tail = _read_tail(opened, size)
    digest = _digest(tail)
    if not _is_same(file, size, None):
        _compare(file, size, None, digest)
    if digests is not None:
        digests.note(_first_url(file), digest)
    return _WithTail(opened, tail, size)  # type: ignore[return-value]  # It has what Arrow and IO[bytes] share.


class _WithTail(io.RawIOBase):
    """An open remote file whose end was read already and is not requested again."""

    def __init__(self, opened: IO[bytes], tail: bytes, size: int) -> None:
        self._opened, self._tail, self._size, self._position = opened, tail, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._position = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._size}[whence]
        return self._position

    def read(self, size: int | None = -1) -> bytes:
        stop = self._size if size is None or size < 0 else min(self._position + size, self._size)
        start, tail_start = self._position, self._size - len(self._tail)
        if start >= tail_start:
            # A read that begins before the tail comes from the server as a whole, so that it is one request.
            content = self._tail[start - tail_start : max(stop - tail_start, 0)]
        else:
            self._opened.seek(start)
            content = self._opened.read(stop - start)
        self._position += len(content)
        return content

    def close(self) -> None:
        self._opened.close()
        super().close()


def _with_digest(file: File) -> File:
    with open_file(file.url, file.size) as opened:
        return replace(file, digest=_digest(_read_tail(opened, file.size)))


def _read_tail(opened: IO[bytes], size: int) -> bytes:
    opened.seek(max(0, size - TAIL_BYTES))
    return opened.read(TAIL_BYTES)


def _digest(tail: bytes) -> str:
    # 64 bits are enough to compare two versions of one file, and people read them in messages.
    return hashlib.sha256(tail).hexdigest()[:16]
