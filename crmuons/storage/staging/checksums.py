"""Checksums of files: what a server says of its file, and what ours has."""

import base64
import binascii
import hashlib
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fsspec.core import url_to_fs
from fsspec.implementations.http import HTTPFileSystem

from crmuons.storage import files, pelican

OURS = "sha-256"  # Where the server has none.
WANTED = (
    "adler32,md5"  # Storage of the WLCG keeps adler32 with each file; of md5 a server may have to read the file first.
)
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
        """The checksum of a local file."""
        value = ALGORITHMS[algorithm]()
        with path.open("rb") as file:
            while block := file.read(BLOCK_BYTES):
                value.update(block)
        return cls(algorithm, value.hexdigest())

    @classmethod
    def from_header(cls, text: str) -> "Checksum | None":
        """The first checksum of a `Digest` header (RFC 3230) that we can compute; None if there is none."""
        for word in text.split(","):
            algorithm, _, value = word.strip().partition("=")
            if (digits := _hexadecimal(algorithm.lower(), value)) is not None:
                return cls(algorithm.lower(), digits)
        return None

    @classmethod
    def from_server(cls, url: str) -> "Checksum | None":
        """What the server of a file says of it (one request); None for servers and schemes that say nothing.

        A federation's origin is asked, and an HTTP server, for `Digest` (RFC 3230) or `Content-MD5` (RFC 1864).
        """
        if url.startswith(files.FEDERATED):
            return cls.from_header(pelican.digest(pelican.filesystem(url), pelican.split_url(url)[1], WANTED))
        fs, path = url_to_fs(url)
        if not isinstance(fs, HTTPFileSystem):
            return None
        info: Mapping[str, str] = fs.info(path, headers={"Want-Digest": WANTED})
        return cls.from_header(info.get("Digest", "")) or cls.from_header(f"md5={info.get('Content-MD5', '')}")


class _Adler32:
    """Adler-32 (RFC 1950) in the manner of hashlib."""

    def __init__(self) -> None:
        self._value = 1

    def update(self, block: bytes) -> None:
        self._value = zlib.adler32(block, self._value)

    def hexdigest(self) -> str:
        return f"{self._value:08x}"


ALGORITHMS: dict[str, Callable[[], Any]] = {
    "adler32": _Adler32,
    "md5": lambda: hashlib.md5(usedforsecurity=False),
    OURS: hashlib.sha256,
}


def _hexadecimal(algorithm: str, value: str) -> str | None:
    """A header's value in hexadecimal digits: adler32 comes so (leading zeros may lack), the others in Base64."""
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
