"""Checksums of files, from their servers and of local copies."""

import base64
import binascii
import hashlib
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from crmuons.storage import files, pelican
from crmuons.storage.http import web_files

OURS = "sha-256"  # The algorithm if the server gives no checksum.
# WLCG storage keeps adler32 with each file; for md5 a server may have to read the file first.
WANTED = "adler32,md5"
BLOCK_BYTES = 2**20


@dataclass(frozen=True)
class Checksum:
    """A checksum: the algorithm's name as in RFC 3230 in lower case, and the value in hexadecimal digits."""

    algorithm: str
    value: str

    def __str__(self) -> str:
        return f"{self.algorithm}:{self.value}"

    @classmethod
    def of_file(cls, path: Path, algorithm: str = OURS) -> "Checksum":
        """Compute the checksum of a local file."""
        value = ALGORITHMS[algorithm]()
        with path.open("rb") as file:
            # In blocks, because files may be larger than a worker's memory.
            while block := file.read(BLOCK_BYTES):
                value.update(block)
        return cls(algorithm, value.hexdigest())

    @classmethod
    def from_header(cls, text: str) -> "Checksum | None":
        """Return the first checksum of a `Digest` header (RFC 3230) in a known algorithm; None if there is none."""
        # A server may give several; the first known one is enough.
        for word in text.split(","):
            algorithm, _, value = word.strip().partition("=")
            if (digits := _hexadecimal(algorithm.lower(), value)) is not None:
                return cls(algorithm.lower(), digits)
        return None

    @classmethod
    def from_server(cls, url: str) -> "Checksum | None":
        """Ask the server of a file for its checksum, in one request; None if it gives none.

        Only federations and HTTP servers are asked, for `Digest` (RFC 3230); HTTP servers also for `Content-MD5` (RFC 1864).
        """
        if url.startswith(files.FEDERATED):
            return cls.from_header(pelican.digest(pelican.filesystem(url), pelican.split_url(url)[1], WANTED))
        if not url.startswith(files.WEB):
            return None
        headers = web_files().digest_headers(url, WANTED)
        # Content-MD5 is the older header; some servers have only that.
        return cls.from_header(headers.get("Digest", "")) or cls.from_header(f"md5={headers.get('Content-MD5', '')}")


class _Adler32:
    """Adler-32 (RFC 1950) with the interface of hashlib."""

    def __init__(self) -> None:
        # Adler-32 of no bytes.
        self._value = 1

    def update(self, block: bytes) -> None:
        self._value = zlib.adler32(block, self._value)

    def hexdigest(self) -> str:
        return f"{self._value:08x}"


ALGORITHMS: dict[str, Callable[[], Any]] = {
    "adler32": _Adler32,
    # It is used to find damage, not forgery. Without this flag, Pythons built for FIPS refuse md5.
    "md5": lambda: hashlib.md5(usedforsecurity=False),
    OURS: hashlib.sha256,
}


def _hexadecimal(algorithm: str, value: str) -> str | None:
    """Convert a header's value to hexadecimal digits: adler32 may lack leading zeros, others may be in Base64."""
    if algorithm not in ALGORITHMS:
        return None
    num_digits = len(ALGORITHMS[algorithm]().hexdigest())
    try:
        if algorithm == "adler32" or len(value) == num_digits:
            digits = f"{int(value, 16):0{num_digits}x}"
        else:
            digits = base64.b64decode(value, validate=True).hex()
    except (ValueError, binascii.Error):
        return None
    return digits if len(digits) == num_digits else None
