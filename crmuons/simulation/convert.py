"""Convert files of other programs into events, one Parquet file for each: the work of `crmuons convert`.

A source is converted completely or left out. A file's metadata name its source and the settings, so the same command
continues after an interruption, and also converts files that were added.
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from crmuons.data import arrow, features
from crmuons.progress import progress
from crmuons.simulation import content, muonitron
from crmuons.simulation.columns import parse_columns
from crmuons.simulation.simulate import without_new
from crmuons.simulation.source import IdOwner, Source, Summary, UnreadableError, as_json, write_source
from crmuons.simulation.surface import DepthSettings
from crmuons.storage import files, ownership
from crmuons.storage.differences import differences
from crmuons.storage.files import File
from crmuons.storage.filesystems import without_links
from crmuons.storage.output import Output


@dataclass
class Conversion:
    """The result of a conversion.

    Attributes:
        total: everything in the output.
        converted: number of files that were written.
        kept: number of files that existed already.
        left_out: the reason for each source that was left out; it begins with the source.
    """

    total: Summary = field(default_factory=Summary)
    converted: int = 0
    kept: int = 0
    left_out: dict[str, str] = field(default_factory=dict)


def convert_corsika(paths: Sequence[str], out: str, settings: DepthSettings) -> Conversion:
    """Write the muons of CORSIKA 7 files and CORSIKA 8 directories at some depths as events.

    Args:
        paths: files, globs, or directories; files that are not CORSIKA's are left out and named.
        out: a directory or URL that is new, empty, or holds an earlier conversion with the same settings.
        settings: the depths.

    Raises:
        FileNotFoundError: if a path matches nothing.
        ValueError: if the output holds something else, or two sources would have one output.
    """
    result = Conversion()
    found = _found(paths, out, ("",))
    declared = (*features.BASE, *features.parse(settings.features))
    sources = [replace(source, muon_features=declared) for source in _corsika_sources(found, settings, result.left_out)]
    chosen = without_new(asdict(settings))
    record = {"command": "convert corsika", "settings": chosen, "medium": asdict(settings.passed)}
    return convert(sources, Output.at(out), record, result)


def _found(paths: Sequence[str], out: str, suffixes: tuple[str, ...]) -> list[File]:
    """List the files to convert, without those that an earlier conversion wrote below one of the paths."""
    own = f"{without_links(Output.at(out).url)}/"
    return [file for file in files.list_files(paths, suffixes=suffixes) if not without_links(file.url).startswith(own)]


def _corsika_sources(found: Sequence[File], settings: DepthSettings, left_out: dict[str, str]) -> Iterator[Source]:
    """Yield a source for each file of CORSIKA 7 and each library of CORSIKA 8; give a reason for all others."""
    from crmuons.simulation import corsika, corsika8  # noqa: PLC0415  # corsikaio is an optional package

    libraries = {library for file in found if (library := corsika8.library_of(file.url)) is not None}
    for file in found:
        library = corsika8.library_of(file.url)
        if library is None and corsika8.is_other_output(file.url, libraries):
            continue
        try:
            start = content.head(file.url, file.size)
            if start.startswith(content.PARQUET) and corsika8.is_particles(file.url, file.size, library):
                assert library is not None  # is_particles raises without one.
                read = partial(corsika8.read_events, library, settings)
                yield Source(file.url, file.size, PurePosixPath(library).name, read)
                continue
            run = corsika.run_number(start)
        except content.READ_ERRORS as error:
            left_out[file.url] = f"{file.url}: {error}"
            continue
        read = partial(corsika.read_events, file.url, file.size, settings)
        label = f"{PurePosixPath(file.url).name}-run{run:06d}"
        yield Source(file.url, file.size, label, read, run=run, start=hashlib.sha256(start).hexdigest())


def convert_dumps(
    paths: Sequence[str],
    out: str,
    *,
    columns: Sequence[str] = (),
    vertical: bool = False,
    command: str = "convert hdf5",
) -> Conversion:
    """Write the events of Muonitron's dumps, HDF5 or Parquet, in the contract's layout.

    Args:
        paths: files, directories, globs or URLs.
        out: a directory or URL that is new, empty, or holds an earlier conversion with the same settings.
        columns: words for `parse_columns`.
        vertical: whether the depths are vertical; events get the slant depth.
        command: the command's name, for the files' metadata.

    Raises:
        FileNotFoundError: if a path matches nothing.
        ValueError: if the columns are not legal, the output holds something else, or two sources would have one output.
    """
    named = parse_columns(columns)
    suffixes = files.PARQUET_SUFFIXES if command == "convert parquet" else (".h5", ".hdf5", ".hdf")
    sources = [
        Source(
            file.url,
            file.size,
            PurePosixPath(file.url).stem,
            partial(muonitron.read_events, file.url, file.size, named, vertical),
            owns_ids=False,
        )
        for file in _found(paths, out, suffixes)
    ]
    record = {
        "command": command,
        "settings": {"columns": {name: list(names) for name, names in named.items()}, "vertical": vertical},
    }
    return convert(sources, Output.at(out), record, Conversion())


def convert(sources: Sequence[Source], output: Output, record: Mapping[str, Any], result: Conversion) -> Conversion:
    """Write the events of each source to a separate file, unless a file of the same source exists already.

    Args:
        sources: the sources, in the order in which they claim the ids of their showers.
        output: a directory or URL.
        record: command and settings, which go into the metadata; they must be the same as in an earlier conversion.
        result: receives the numbers; it may already have sources that are left out.

    Raises:
        ValueError: if the output holds something else, or two sources would have one output.
        HeldError: if another process writes to it.
    """
    _check_names(sources)
    made = _missing_folders(output)
    try:
        with ownership.hold(output.url):
            finished = _convert(sources, output, record, result)
    finally:
        for folder in made:  # If no file was written, the new directories are removed again.
            with suppress(OSError):
                folder.rmdir()
    for origin in finished.values():
        result.total.add(Summary(**origin["summary"]))
    return result


def _convert(
    sources: Sequence[Source], output: Output, record: Mapping[str, Any], result: Conversion
) -> dict[str, dict[str, Any]]:
    """Convert the sources without an output; return the metadata of all files of the output."""
    finished = _finished(output, record)
    owners = {first: IdOwner.of(origin) for origin in finished.values() for first in origin["first_ids"]}
    with progress(len(sources), unit="files", what="convert") as bar:
        for source in sources:
            if finished.get(source.output, {}).get("source") == source.identity:
                result.kept += 1
            else:
                try:
                    finished[source.output] = write_source(source, output, record, owners)
                    result.converted += 1
                except UnreadableError as error:
                    result.left_out[source.url] = str(error)
            bar.update()
    return finished


def _check_names(sources: Sequence[Source]) -> None:
    urls: dict[str, str] = {}
    for source in sources:
        other = urls.setdefault(source.output, source.url)
        if other != source.url:
            msg = (
                f"{other} and {source.url} would both be written to {source.output}: convert them into two directories"
            )
            raise ValueError(msg)


def _missing_folders(output: Output) -> list[Path]:
    """Return the folders that writing will make, the deepest first."""
    if output.folder is None:
        return []
    return [folder for folder in (output.folder, *output.folder.parents) if not folder.exists()]


def _finished(output: Output, record: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the metadata of the files that an earlier conversion with the same record wrote, by their names."""
    finished = {}
    for name in output.names():
        origin = _origin(output, name)
        if origin is None or origin["command"] != record["command"]:
            what = f"{name}, which is no result of crmuons {record['command']}"
        elif differing := differences(_decisive(origin), _decisive(record)):
            what = f"the events of a conversion with other settings ({'; '.join(differing)})"
        else:
            finished[name] = origin
            continue
        msg = f"{output} is not empty, it holds {what}: name a new directory with --out, or empty this one"
        raise ValueError(msg)
    return finished


def _decisive(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values that determine the events of a source: the settings and the constants of the energy loss."""
    return as_json(record["settings"]) | record.get("medium", {})


def _origin(output: Output, name: str) -> dict[str, Any] | None:
    if not name.endswith(".parquet"):
        return None
    try:
        with output.open(name) as opened:
            return arrow.read_origin(pq.read_metadata(opened))
    except (pa.ArrowInvalid, OSError):  # A damaged file counts as foreign, and the caller's error names it.
        return None
