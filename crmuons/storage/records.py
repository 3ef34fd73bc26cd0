"""Read the JSON files that crmuons writes: one reader, whose errors name the file, the fault and the remedy."""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from crmuons.config.options import shown
from crmuons.storage import files

REMEDY = "copy it back from a backup, or remove the directory and begin again"


@contextmanager
def damage_named(place: object, remedy: str = REMEDY) -> Iterator[None]:
    """Turn an error of reading or using a damaged file in the block into a ValueError that names the file.

    Args:
        place: the file.
        remedy: the remedy, as half a sentence.
    """
    try:
        yield
    # A RecursionError comes from deeply nested brackets.
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError, RuntimeError) as error:
        msg = f"{place} is damaged, or was not written by crmuons ({_reason(error)}); {remedy}"
        raise ValueError(msg) from error


def parse(
    content: str | bytes, place: object, *, keys: Sequence[str] = (), kind: type = dict, remedy: str = REMEDY
) -> Any:
    """Return the value of a JSON text.

    Args:
        content: the text, or its UTF-8 bytes.
        place: its source, for errors.
        keys: keys that the object must have.
        kind: dict for an object, list for an array.
        remedy: the remedy if it is damaged, as half a sentence.

    Raises:
        ValueError: with the place, the key and the remedy.
    """
    with damage_named(place, remedy):
        value: Any = json.loads(content)
        if not isinstance(value, kind):
            msg = f"it holds {type(value).__name__}, expected {kind.__name__}"
            raise ValueError(msg)  # noqa: TRY004 - a fault of the file, not of the program
        content_of: Any = value  # mypy would use `kind` as the type of `value`.
        for key in keys:
            content_of[key]
    return value


def read(place: str | Path, *, keys: Sequence[str] = (), kind: type = dict, remedy: str = REMEDY) -> Any:
    """Return the value of a JSON file at a path or a URL; see `parse`.

    Raises:
        ValueError: if it is damaged.
        OSError: if it cannot be read.
    """
    content = place.read_bytes() if isinstance(place, Path) else files.read_bytes(place)
    return parse(content, place, keys=keys, kind=kind, remedy=remedy)


def read_lines(path: Path, *, keys: Sequence[str] = (), remedy: str = REMEDY) -> Iterator[dict[str, Any]]:
    """Yield the objects of a file with one JSON object a line. A last line without its end is still being written.

    Raises:
        ValueError: with the number of the line that is damaged.
    """
    whole = path.read_bytes().rpartition(b"\n")[0]
    for number, line in enumerate(whole.splitlines(), 1):
        yield parse(line, f"{path}, line {number},", keys=keys, remedy=remedy)


def _reason(error: Exception) -> str:
    if isinstance(error, KeyError):
        return f"it has no {error.args[0]!r}"
    if isinstance(error, ValidationError):
        first = error.errors()[0]
        place = "".join(f"{part}." for part in first["loc"])[:-1]
        return f"{place}{': ' if place else ''}{first['msg']} (got {shown(first['input'])})"
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    lines = [line.strip().rstrip(":") for line in str(error).splitlines() if line.strip()]
    return ": ".join(lines[:2])[:200] or type(error).__name__
