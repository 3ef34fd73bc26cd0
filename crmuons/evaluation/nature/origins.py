"""Find in the files of a data set how its primaries were drawn and its muons followed."""

from collections.abc import Sequence
from typing import Any

from crmuons.data import arrow, manifest
from crmuons.data.parquet import open_parquet
from crmuons.generation.request_file import find_request
from crmuons.storage import files, records
from crmuons.storage.identity import open_listed
from crmuons.storage.output import Output

NEEDED = ("energy_gev", "gamma", "threshold_gev", "medium")  # Fields of weights.Drawn, and of the metadata's settings.
AT_THE_DEPTH = ("threshold_gev", "medium")  # Fields that a conversion records.


def recorded(sources: Sequence[str]) -> dict[str, Any]:
    """Return the fields of NEEDED that the files record: all of them for a simulation, some for other origins.

    Raises:
        FileNotFoundError: if there are no files.
        ValueError: if a file is not Parquet, or two files differ.
    """
    first_url = ""
    first: dict[str, Any] = {}
    for file in manifest.event_files(sources):
        if file.url.endswith(files.PARQUET_SUFFIXES):
            other = _of_file(file)
            if first_url and other != first:
                msg = f"{first_url} was made with {first}, and {file.url} with {other}: validate them one by one"
                raise ValueError(msg)
            first_url, first = first_url or file.url, other
    return first | _of_generation(sources)


def _of_file(file: files.File) -> dict[str, Any]:
    with open_listed(file) as opened, open_parquet(opened, file.url) as parquet:
        origin = arrow.read_origin(parquet.metadata) or {}
    settings = origin.get("settings")
    names = NEEDED if origin.get("command") == "simulate" else AT_THE_DEPTH
    return {name: settings[name] for name in names if name in settings} if isinstance(settings, dict) else {}


def _of_generation(sources: Sequence[str]) -> dict[str, Any]:
    """Return energies and power of a data set that `crmuons generate --spectrum` made."""
    if len(sources) != 1 or (any(sign in sources[0] for sign in "*?[") and not files.exists_locally(sources[0])):
        return {}
    output = Output.at(sources[0])
    if (stored := find_request(output)) is None:
        return {}
    spectrum = records.parse(output.read(stored), output.of(stored)).get("primaries", {}).get("spectrum")
    return {} if spectrum is None else {name: spectrum[name] for name in ("energy_gev", "gamma")}
