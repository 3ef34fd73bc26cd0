"""Claims on an output: small files that say which process writes to a directory or a URL, and that it still lives.

A claim is a random name. Its files are `.owner/CLAIM-BEAT.json`: each sign of life is a file with the next number, and
the file before it is removed. No file changes after it was written, so no cache of a federation or a network file system
can show an old sign of life as the newest. The storage must only be able to list, write and remove files.
"""

import json
import logging
import os
import re
import tempfile
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from crmuons.storage import files
from crmuons.storage.atomic import OWNER_FOLDER, atomic_file
from crmuons.storage.filesystems import filesystem

logger = logging.getLogger(__name__)

FOLDER = OWNER_FOLDER
# A key of 64 random bits; eight digits hold signs of life for 15 years, one every 5 s.
_NAME = re.compile(r"([0-9a-f]{16})-(\d{8})\.json")
# Time between two checks of a process that waits for a sign of life.
POLL_S = 0.5
_END = 99_999_999  # The number of a claim that has ended and whose files could not be removed.


@dataclass(frozen=True, order=True)
class Claim:
    """A claim at one of its signs of life."""

    key: str
    beat: int = 1

    @property
    def name(self) -> str:
        """The name of its file."""
        return f"{self.key}-{self.beat:08d}.json"

    @property
    def next(self) -> "Claim":
        return Claim(self.key, self.beat + 1)

    @property
    def end(self) -> "Claim":
        return Claim(self.key, _END)


def clock() -> float:
    """Return seconds that also pass while the machine is suspended."""
    # time.monotonic stops while a machine sleeps: for an owner that wakes up, no time would have passed.
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


def names_in(folder: Path) -> set[str]:
    """Return the names in a directory other than the mark of its owner; none if there is no directory."""
    return {path.name for path in folder.iterdir()} - {FOLDER} if folder.is_dir() else set()


class Claims:
    """The claims on one output.

    Args:
        place: an absolute path or a URL.
    """

    def __init__(self, place: str) -> None:
        self.place = place
        self.url = f"{place.rstrip('/')}/{FOLDER}"
        self.folder = None if files.is_remote(place) else Path(self.url)

    def newest(self) -> dict[str, Claim]:
        """List the claims again; return each claim that has not ended, with its newest sign of life."""
        # Other names, such as the lock or a partial file, are no claims.
        matches = [match for match in map(_NAME.fullmatch, files.names(self.url)) if match]
        # Sorted by key and number, so that the dictionary below keeps the last number of each key.
        found = sorted(Claim(match[1], int(match[2])) for match in matches)
        return {key: claim for key, claim in {claim.key: claim for claim in found}.items() if claim.beat != _END}

    def write(self, claim: Claim, record: Mapping[str, Any]) -> None:
        """Write a sign of life."""
        content = json.dumps(record).encode()
        if self.folder is not None:
            # A reader never sees half a record, which would look like a damaged claim.
            with atomic_file(self.folder / claim.name) as partial:
                partial.write_bytes(content)
            return
        with tempfile.TemporaryDirectory(prefix="crmuons-") as folder:
            local = Path(folder) / claim.name
            local.write_bytes(content)
            files.put(local, f"{self.url}/{claim.name}")

    def read(self, claim: Claim) -> dict[str, Any]:
        """Return the record of a claim; nothing if it was just removed or is damaged."""
        try:
            # Its owner may write the next sign of life and remove this one between the listing and this line.
            record = json.loads(files.read_bytes(f"{self.url}/{claim.name}"))
        except (OSError, ValueError):
            return {}
        return record if isinstance(record, dict) else {}

    def is_there(self, claim: Claim) -> bool:
        """Return whether a claim is still at this sign of life."""
        if self.folder is None:
            fs, path = filesystem(f"{self.url}/{claim.name}")
            # fsspec keeps listings, and an old listing would show a sign of life that is gone.
            fs.invalidate_cache()
            return bool(fs.exists(path))
        try:
            # NFS asks the server when a file is opened; a listing or a stat may be a minute old.
            os.close(os.open(self.folder / claim.name, os.O_RDONLY))
        except OSError:
            return False
        return True

    def has_ended(self, claim: Claim, seconds: float) -> bool:
        """Return True once a claim has ended or shown no sign of life for some seconds, False if it shows one before."""
        # The time runs on this process's clock and does not use a time in the record, because clocks of machines differ.
        deadline = clock() + seconds
        while clock() < deadline:
            if not self.is_there(claim):
                # The name is gone: its owner lives if there is a later sign of life.
                return claim.key not in self.newest()
            time.sleep(POLL_S)
        return True

    def remove(self, claim: Claim) -> None:
        """Remove the files of a claim up to this sign of life.

        Raises:
            PermissionError, NotImplementedError: if the storage does not allow it.
        """
        for name in files.names(self.url):
            match = _NAME.fullmatch(name)
            # Later signs of life, which came meanwhile, stay.
            if match and match[1] == claim.key and int(match[2]) <= claim.beat:
                with suppress(FileNotFoundError):
                    files.remove(f"{self.url}/{name}")

    def close(self, claim: Claim) -> None:
        """End a claim: remove its files, or mark it as ended if the storage does not allow removing."""
        try:
            self.remove(claim.end)
        except (OSError, NotImplementedError) as error:
            logger.info("%s cannot be removed (%s); it is marked as ended", self.url, error)
            with suppress(FileExistsError):
                self.write(claim.end, {})
        # The folder stays if another command has begun meanwhile.
        with suppress(OSError, NotImplementedError):
            if self.folder is not None:
                self.folder.rmdir()
            else:
                fs, path = filesystem(self.url)
                fs.rmdir(path)
