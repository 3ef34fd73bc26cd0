"""Find the kind of a file from its content, and open it whether or not it is compressed. Names do not matter here."""

import bz2
import codecs
import gzip
import io
import lzma
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO

import pyarrow as pa

from crmuons.storage import files

HEAD_BYTES = 4096
PARQUET = b"PAR1"
HDF5 = b"\x89HDF\r\n\x1a\n"
COMPRESSIONS = {b"\x1f\x8b": "gzip", b"BZh": "bz2", b"\xfd7zXZ\x00": "xz", b"\x28\xb5\x2f\xfd": "zstd"}
# The place of a format's mark, the mark, and the text for messages. EventIO's mark is its sync marker, in both byte orders.
_FOREIGN = (
    (0, b"\x37\x8a\x1f\xd4", "an EventIO (IACT) file with Cherenkov photons; the muons are in the DAT file of its run"),
    (0, b"\xd4\x1f\x8a\x37", "an EventIO (IACT) file with Cherenkov photons; the muons are in the DAT file of its run"),
    (0, PARQUET, "a Parquet file that CORSIKA 8 did not write"),
    (0, HDF5, "an HDF5 file; crmuons convert hdf5 reads Muonitron's"),
    (0, b"root", "a ROOT file"),
    (0, b"PK\x03\x04", "a ZIP archive; unpack it"),
    (0, b"7z\xbc\xaf\x27\x1c", "a 7z archive; unpack it"),
    (0, b"\x1f\x9d", "compressed with compress (.Z); unpack it"),
    (0, b"\x04\x22\x4d\x18", "compressed with lz4; unpack it"),
    (0, b"SQLite format 3", "an SQLite database"),
    (257, b"ustar", "a tar archive; unpack it"),
)
# Errors that reading a damaged file can raise. A damaged size can request any amount of memory.
READ_ERRORS = (
    ValueError, OSError, EOFError, OverflowError, MemoryError, zlib.error, lzma.LZMAError, pa.ArrowException,
)  # fmt: skip


@contextmanager
def opened(url: str, size: int | None = None) -> Iterator[IO[bytes]]:
    """Open a file for reading in binary; gzip, bz2, xz and zstd are unpacked on the way."""
    with files.open_file(url, size) as raw:
        start = raw.read(6)
        raw.seek(0)
        codec = next((codec for magic, codec in COMPRESSIONS.items() if start.startswith(magic)), None)
        with _unpacked(raw, codec) as stream:
            yield stream


def _unpacked(raw: IO[bytes], codec: str | None) -> IO[bytes]:
    if codec == "gzip":
        return gzip.GzipFile(fileobj=raw)  # type: ignore[return-value]  # typeshed: no subclass of IO
    if codec == "bz2":
        return bz2.BZ2File(raw)
    if codec == "xz":
        return lzma.LZMAFile(raw)
    # Arrow's decoder, because Python has one only from 3.14 on. Without the buffer, reads may be short.
    if codec == "zstd":
        return io.BufferedReader(pa.CompressedInputStream(pa.PythonFile(raw, "r"), "zstd"))
    return raw


def head(url: str, size: int | None = None) -> bytes:
    """Return the first HEAD_BYTES of a file, unpacked.

    Raises:
        ValueError, OSError, EOFError, zlib.error, lzma.LZMAError: if it cannot be read.
    """
    with opened(url, size) as stream:
        return stream.read(HEAD_BYTES)


def foreign(start: bytes) -> str | None:
    """Return the format of a file in words, from its first bytes; None if the format is not known here."""
    if not start:
        return "empty"
    for offset, magic, what in _FOREIGN:
        if start[offset : offset + len(magic)] == magic:
            return what
    return "a text file" if _is_text(start) else None


def _is_text(start: bytes) -> bool:
    text = codecs.getincrementaldecoder("utf-8")("replace").decode(start)  # A character may be cut at the end.
    return all(letter != "\ufffd" and (letter.isprintable() or letter in "\t\r\n\f") for letter in text)
