"""A remote file that is open for reading."""

from typing import Any

from fsspec.spec import AbstractBufferedFile


class RemoteFile(AbstractBufferedFile):  # type: ignore[misc]  # fsspec is untyped
    """A file open for reading. Each read is one range; Parquet readers need no read-ahead."""

    def __init__(self, fs: Any, path: str, *, size: int | None) -> None:
        super().__init__(fs, path, "rb", cache_type="none", size=size)

    def _fetch_range(self, start: int, end: int) -> bytes:
        return bytes(self.fs.cat_file(self.path, start, end, size=self.size))
