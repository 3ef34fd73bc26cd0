"""Limit what this machine copies because of a stranger's listing or manifest; checked before the first file is copied."""

import shutil
from collections.abc import Mapping
from pathlib import Path

from crmuons.storage.atomic import size_text

MAX_FILES = 10_000  # A run of weeks with all its figures has 3,000; a model has 2.
MAX_BYTES = 2**36  # 64 GiB: a hundred checkpoints of the largest networks that fit a GPU.


class TooMuchError(ValueError):
    """Raised for a directory with more files or bytes than a model, a checkpoint or a run can have."""


def check_number(number: int, place: str, most: int | None = None) -> None:
    """Check the number of files and folders of a place.

    Raises:
        TooMuchError: if there are more than `most`, by default MAX_FILES.
    """
    most = MAX_FILES if most is None else most
    if number > most:
        msg = (
            f"{place} names more than {most:,} files, too many for a model, a checkpoint or a run; nothing was copied; "
            "check the path and who wrote there"
        )
        raise TooMuchError(msg)


def check_copy(sizes: Mapping[str, object], place: str, folder: Path) -> None:
    """Check, before anything is copied, the number of files of a place, that each has a size, and that all fit.

    Args:
        sizes: the size of each file in bytes, by its path at the place.
        place: the URL of the list, for messages.
        folder: the folder to which the files go.

    Raises:
        TooMuchError: if there are too many files, or if they are too large for any model or for the disk.
        ValueError: if a file has no size, or if its name is another file's folder.
    """
    check_number(len(sizes), place)
    total = 0
    for name, size in sizes.items():
        if isinstance(size, bool) or not isinstance(size, int) or size < 0:
            msg = f"{place} gives '{name}' no size that a file can have; nothing was copied; check who wrote there"
            raise ValueError(msg)
        total += size
        parts = name.split("/")
        if any("/".join(parts[:depth]) in sizes for depth in range(1, len(parts))):
            msg = f"{place} names '{name}' below a path that is a file; nothing was copied; check who wrote there"
            raise ValueError(msg)
    if total > MAX_BYTES:
        msg = (
            f"{place} has {size_text(min(total, 10**24))} in {len(sizes)} files, more than the {size_text(MAX_BYTES)} that a "
            "model, a checkpoint or a run can have; nothing was copied; check the path and who wrote there"
        )
        raise TooMuchError(msg)
    there = next(parent for parent in (folder.absolute(), *folder.absolute().parents) if parent.exists())
    if total > (free := shutil.disk_usage(there).free):
        msg = f"{place} has {size_text(total)}, and {there} has {size_text(free)} free; nothing was copied; free space there"
        raise TooMuchError(msg)
