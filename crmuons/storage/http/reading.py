"""Read parts of files of web servers: by ranges, or from whole copies if a server sends no correct ranges."""

import asyncio
import zlib
from collections.abc import AsyncIterator

import aiohttp

from crmuons.storage.http.exchange import TRANSIENT, steady
from crmuons.storage.http.ranges import check_range
from crmuons.storage.http.sources import Fault, FinalError, Source
from crmuons.storage.http.web import Entry, Version, Web, raise_if_refused
from crmuons.storage.http.whole import INFLATED_BYTES, WholeFiles

PROGRESS_BYTES = 2**16  # Less is no progress: otherwise a server that sends one byte for each request would take days.
BAD_RANGES = 3  # After this number of wrong ranges in a row, the whole file is downloaded.


class ChangedError(FinalError):
    """Raised if a file has changed since it was listed."""


class NoRangesError(Exception):
    """Raised inside this module if a server sends no correct ranges of a file."""


class Reader:
    """Reads files, and detects whether they change meanwhile.

    Args:
        web: sends the requests.
    """

    def __init__(self, web: Web) -> None:
        self.web, self.whole = web, WholeFiles()
        self._versions: dict[str, Version] = {}  # The version of each file when it was listed or first read.
        self._bad_ranges: dict[str, int] = {}
        self._downloading: dict[str, asyncio.Lock] = {}

    def note(self, url: str, entry: Entry) -> None:
        """Note the version of a file that is listed again, and whether its server sends ranges."""
        if entry.version.differs(self._versions.get(url, entry.version)):
            self.whole.drop(url)
        # A new listing replaces the old one: wrong ranges of the old version are forgotten.
        self._versions[url] = entry.version
        self._bad_ranges[url] = 0 if entry.has_ranges else BAD_RANGES

    async def read(self, url: str, start: int, end: int, size: int) -> bytes:
        """Return bytes start .. end - 1 of a file of `size` bytes.

        Raises:
            ChangedError: if the file has changed since it was listed.
            FileNotFoundError, PermissionError: if the server says so.
            ConnectionError: if nothing came in time.
        """
        if not self.whole.holds(url):
            try:
                # Ranges come first, whatever the size of the file: most reads need a footer or a few columns.
                if self._bad_ranges.get(url, 0) < BAD_RANGES:
                    return await self._read_range(url, start, end, size)
            except NoRangesError:
                self._bad_ranges[url] = BAD_RANGES
            await self.download(url, size)
        # In a thread, because a disk must not delay the requests for other files.
        return await asyncio.to_thread(self.whole.read, url, start, end)

    async def _read_range(self, url: str, start: int, end: int, size: int) -> bytes:
        pieces: list[bytes] = []
        patience, sources, ground = self.web.patience(url), self.web.sources(url), start
        while start < end:
            source = await patience.next(sources)
            try:
                async for piece in self._pieces(url, source, range(start, end), size):
                    pieces.append(piece)
                    start += len(piece)
                    # Without this limit, a server that always sends one byte would renew the patience for ever.
                    if start - ground > PROGRESS_BYTES:
                        patience.progress()
                        ground = start
                sources.worked(source)
                self._bad_ranges.pop(url, None)
            except Fault as fault:
                # A wrong answer, unlike no answer, may mean that the file has changed, or that the server sends no ranges.
                if fault.doubtful or fault.status not in (None, *TRANSIENT):
                    await self._confirm(url, size)
                    self._count_bad_range(url)
                patience.record(sources, fault)
        return b"".join(pieces)

    async def _pieces(self, url: str, source: Source, span: range, size: int) -> AsyncIterator[bytes]:
        """Yield a range in pieces, and raise a Fault if it stops early."""
        async with self.web.exchange("GET", url, {"Range": f"bytes={span[0]}-{span[-1]}"}) as answer:
            self._check(url, answer, source)
            if answer.status == 200:  # The server sends the whole file, so it is copied for all later reads too.
                answer.close()
                raise NoRangesError
            # This also checks the total size: another size means another file.
            check_range(answer, source, span[0], size)
            left = len(span)
            async for piece in steady(answer, self.web.waits.read_s):
                # A server may send more than the requested range; the caller gets exactly the range.
                yield piece[:left]
                left -= len(piece)
                if left < 0:
                    answer.close()
                    return
        if left:
            raise Fault(source, f"the body ended {left} bytes too early")

    def _check(self, url: str, answer: aiohttp.ClientResponse, source: Source) -> None:
        """Check the parts of an answer that do not depend on the range."""
        if answer.status not in (200, 206):
            return
        if answer.headers.get("Content-Encoding", "identity") != "identity":
            answer.close()
            raise NoRangesError  # These would be ranges of the compressed form.
        if answer.status == 206 and "Content-Range" not in answer.headers:
            raise Fault(source, "HTTP 206 without a Content-Range", doubtful=True)
        self._check_version(url, answer, source)

    def _check_version(self, url: str, answer: aiohttp.ClientResponse, source: Source) -> None:
        version = Version.of(answer)
        # The first answer determines the version, so that parts of two versions are never mixed.
        if version.differs(self._versions.setdefault(url, version)):
            raise Fault(source, "it gives the file another ETag or date of change", doubtful=True)

    def _count_bad_range(self, url: str) -> None:
        # Wrong ranges in a row count; a correct range sets the number back to 0.
        self._bad_ranges[url] = self._bad_ranges.get(url, 0) + 1
        if self._bad_ranges[url] >= BAD_RANGES:
            raise NoRangesError

    async def _confirm(self, url: str, size: int | None) -> None:
        """Ask once more about a file after a doubtful answer.

        Raises:
            ChangedError: if the file has changed.
            FileNotFoundError, PermissionError: if it is gone, or is refused now.
        """
        now = await self.web.ask(url)
        listed = self._versions.get(url, now.version)
        if now.is_page:
            msg = f"{url} answers with a web page in place of the file; log in again, or list the data again"
        elif size is not None and now.size not in (None, size):
            msg = f"{url} has changed while in use: {size} bytes when it was listed, {now.size} now; list it again"
        elif now.version.differs(listed):
            msg = f"{url} has changed while in use: {_shown(listed)} when it was listed, {_shown(now.version)} now; list it again"
        else:
            return
        raise ChangedError(msg)

    async def download(self, url: str, size: int | None) -> int:
        """Copy a whole file to the disk, and return its size in bytes; `size` is the expected one, if known.

        Raises:
            OSError: see `read`.
        """
        # One download of a file serves all its readers in this process.
        async with self._downloading.setdefault(url, asyncio.Lock()):
            patience, sources, furthest = self.web.patience(url), self.web.sources(url), 0
            while not self.whole.holds(url):
                source = await patience.next(sources)
                try:
                    with self.whole.writing(url, size) as target:
                        async for piece in self._whole_pieces(url, source):
                            # Only new bytes count as progress: a body may always break at the same place.
                            if target.write(piece) > furthest:
                                furthest = target.size
                                patience.progress()
                        _check_size(target.size, size, source)
                    sources.worked(source)
                except Fault as fault:
                    if fault.doubtful:
                        await self._confirm(url, size)
                    patience.record(sources, fault)
            return self.whole.size(url)

    async def _whole_pieces(self, url: str, source: Source) -> AsyncIterator[bytes]:
        """Yield a whole file in pieces."""
        async with self.web.exchange("GET", url, {}) as answer:
            raise_if_refused(url, answer)
            if answer.status != 200:
                raise Fault(source, f"HTTP {answer.status} to a request for the whole file", doubtful=True)
            self._check_version(url, answer, source)
            async for piece in _decoded(url, answer, self.web.waits.read_s):
                yield piece


def _check_size(num_bytes: int, expected: int | None, source: Source) -> None:
    if expected not in (None, num_bytes):
        raise Fault(source, f"it sent {num_bytes} bytes of a file of {expected}", doubtful=True)


async def _decoded(url: str, answer: aiohttp.ClientResponse, within_s: float) -> AsyncIterator[bytes]:
    """Yield the body of an answer, decompressed if the server compresses it without a request for this."""
    encoding = answer.headers.get("Content-Encoding", "identity")
    if encoding == "identity":
        async for piece in steady(answer, within_s):
            yield piece
        return
    # Other encodings need libraries, and crmuons requests no encoding.
    if encoding not in ("gzip", "x-gzip", "deflate"):
        msg = f"{url}: the server compresses it with '{encoding}' without a request for this; store it uncompressed"
        raise FinalError(msg)
    # 32: zlib itself detects whether the header is gzip's or its own.
    decoder = zlib.decompressobj(zlib.MAX_WBITS | 32)
    try:
        async for piece in steady(answer, within_s):
            while piece:  # A kilobyte may decompress to a megabyte.
                yield decoder.decompress(piece, INFLATED_BYTES)
                piece = decoder.unconsumed_tail  # noqa: PLW2901
        yield decoder.flush()
    except zlib.error as error:
        msg = f"{url}: the server's compressed answer is damaged ({error})"
        raise FinalError(msg) from error


def _shown(version: Version) -> str:
    return f"ETag {version.etag}" if version.etag else f"changed {version.changed}"
