"""Find the finished files of a data set after an interrupted command that writes it file by file."""

import json
import logging
from collections.abc import Mapping
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from crmuons.data import arrow
from crmuons.storage import records
from crmuons.storage.claims import names_in

logger = logging.getLogger(__name__)


def finished_files(out: Path, expected: Mapping[str, int], origin: Mapping[str, object]) -> set[str]:
    """Return the names of the files that are finished in a directory.

    Args:
        out: the directory; it may be empty or missing.
        expected: rows of each file of the data set, by name.
        origin: the metadata that say how each file was made (`arrow.read_origin`).

    Raises:
        ValueError: if the directory holds anything else.
    """
    found = names_in(out)
    for name in sorted(found):
        why = _why_foreign(out / name, expected.get(name), records.parse(json.dumps(origin), out))
        if why is not None:
            msg = (
                f"{out} is not empty: name a new directory with --out, or empty this one ({name} is no file of this "
                f"data set: {why})"
            )
            raise ValueError(msg)
    if found:
        logger.info("an earlier command finished %d of %d files; they are kept", len(found), len(expected))
    return found


def _why_foreign(path: Path, expected_rows: int | None, origin: object) -> str | None:
    """Return why a file does not belong to the data set; None if it does."""
    if expected_rows is None or not path.is_file():
        return "its files have other names"
    try:
        metadata = pq.read_metadata(path)
    except (pa.ArrowException, OSError) as error:
        return f"it cannot be read, {str(error).splitlines()[0]}"
    if arrow.read_origin(metadata) != origin:
        return "it was made with other settings, or by another version of crmuons"
    return None if metadata.num_rows == expected_rows else f"it has {metadata.num_rows} rows, not {expected_rows}"
