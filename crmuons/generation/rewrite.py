"""Write files of events in the format of another tool, one file for each, in constant memory.

An output directory holds one format. Its `_format.json` has the sources and the options of its files. The same command
continues after an interruption, and writes a file again if its source has changed.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import PurePosixPath
from typing import Any

import numpy as np
import pyarrow as pa

from crmuons.data import arrow, schema
from crmuons.data.events import EventArrays
from crmuons.data.features import MuonFeature, declared
from crmuons.data.parquet import open_parquet
from crmuons.generation.formats import Format
from crmuons.generation.formats.surface import Surface, at_entry, place
from crmuons.generation.formats.tracks import Sample, Tracks, azimuths, completed, to_tracks
from crmuons.generation.request_file import find_request
from crmuons.generation.spectrum import Spectrum, recorded_spectrum
from crmuons.storage import files, ownership, records
from crmuons.storage.differences import differences
from crmuons.storage.files import File
from crmuons.storage.identity import open_listed
from crmuons.storage.output import Output

RECORD = "_format.json"  # Readers of a folder ignore names that begin with "_".
EVENTS_AT_ONCE = 1024  # 16,000 muons of usual events; the largest event determines the memory.


@dataclass
class Rewritten:
    """Numbers of an output: files, events, muons, events that miss the surface, and files that existed already."""

    files: int = 0
    events: int = 0
    muons: int = 0
    missed: int = 0
    kept: int = 0


@dataclass(frozen=True)
class FormatOptions:
    """Options that determine the content of a file, together with its events.

    Attributes:
        format: the format.
        fill: values for features that the muons lack.
        seed: seed of the azimuths, which are drawn for each shower, and of the axes around a surface.
        surface: where tracks begin; with None they begin in the plane across the axis through the origin.
    """

    format: Format
    fill: Mapping[str, float]
    seed: int = 0
    surface: Surface | None = None

    @property
    def record(self) -> dict[str, Any]:
        """Return the options as `_format.json` holds them."""
        around = {} if self.surface is None else {"surface": asdict(self.surface)}
        return {"format": self.format.name, "fill": dict(self.fill), "seed": self.seed} | around


def rewrite(patterns: Sequence[str], out: str, options: FormatOptions) -> Rewritten:
    """Write the events of Parquet files in another format.

    Args:
        patterns: paths, directories, globs or URLs.
        out: a directory or URL that is new, empty, or holds an earlier result with the same options.
        options: the format and its options.

    Raises:
        FileNotFoundError: if a path matches nothing.
        ValueError: if a file breaks the contract or lacks a feature that the format needs, the output holds something else,
            or two files would have one output.
        HeldError: if another process writes there.
    """
    found = files.list_files(patterns)
    with ownership.hold(out):
        return rewrite_files(found, Output.at(out), options)


def rewrite_files(found: Sequence[File], output: Output, options: FormatOptions) -> Rewritten:
    """Write listed files into an output that the caller owns; see `rewrite`."""
    names = _names(found, options.format)
    output.check_writable()
    done = _finished(output, options)
    result = Rewritten()
    for file in found:
        name, source = names[file.url], {"url": file.url, "size": file.size, "stamp": file.stamp}
        if name in done and done[name]["source"] == source:
            result.kept += 1
        else:
            with output.writing(name) as path:
                counts, sample = _Counts(), _sample(file)
                options.format.write(path, counts.of(_tracks(file, options)), sample)
            missed = sample.num_events - counts.events
            done[name] = {"source": source, "events": counts.events, "muons": counts.muons, "missed": missed}
            with output.writing(RECORD) as path:
                path.write_text(json.dumps({"request": options.record, "files": done}, indent=1), encoding="utf-8")
        result.files += 1
        result.events += done[name]["events"]
        result.muons += done[name]["muons"]
        result.missed += done[name]["missed"]
    return result


@dataclass
class _Counts:
    events: int = 0
    muons: int = 0

    def of(self, parts: Iterator[Tracks]) -> Iterator[Tracks]:
        for tracks in parts:
            self.events += len(tracks.counts)
            self.muons += len(tracks.energy_gev)
            yield tracks


def _names(found: Sequence[File], kind: Format) -> dict[str, str]:
    names: dict[str, str] = {}
    taken: dict[str, str] = {}
    for file in found:
        name = f"{PurePosixPath(file.url).stem}{kind.suffix}"
        other = taken.setdefault(name, file.url)
        if other != file.url:
            msg = f"{other} and {file.url} would both be written to {name}: write them into two directories"
            raise ValueError(msg)
        names[file.url] = name
    return names


def _finished(output: Output, options: FormatOptions) -> dict[str, Any]:
    """Return the entries of `_format.json` for the files that exist."""
    there = set(output.names())
    if RECORD not in there:
        if there:
            msg = f"{output} is not empty, and holds no {RECORD}: name a new directory with --out, or empty this one"
            raise ValueError(msg)
        return {}
    remedy = f"name another directory with --out, or remove {output}"
    record = records.read(output.of(RECORD), keys=("request", "files"), remedy=remedy)
    if differing := differences(record["request"], options.record):
        msg = f"{output} holds files of other options ({'; '.join(differing)}): name another directory with --out"
        raise ValueError(msg)
    return {name: entry for name, entry in record["files"].items() if name in there}


def _sample(file: File) -> Sample:
    """Return what a file's events have in common; the directory of generated files has their spectrum."""
    with open_listed(file) as opened, open_parquet(opened, file.url) as parquet:
        num_events = parquet.metadata.num_rows
    folder = file.url.rpartition("/")[0]
    return Sample(_spectrum_of(folder), num_events)


def _spectrum_of(folder: str) -> Spectrum | None:
    if find_request(Output.at(folder or ".")) is None:
        return None
    try:
        return recorded_spectrum(folder or ".")
    except ValueError:  # The primaries come from files.
        return None


def _tracks(file: File, options: FormatOptions) -> Iterator[Tracks]:
    """Yield the muons of a file as tracks, several events at once."""
    what = f"--format {options.format.name}: {file.url}"
    for events, features in read_parts(file):
        whole, names = completed(events, features, options.format.needs, options.fill, what)
        if options.surface is None:
            yield to_tracks(whole, names, azimuth_rad=azimuths(whole.ids, options.seed))
            continue
        zenith = whole.primaries[:, 1].astype(np.float64)
        azimuth, entry = place(whole.ids, zenith, options.surface, options.seed)
        yield at_entry(to_tracks(whole, names, azimuth_rad=azimuth, core_m=entry), options.surface)


def read_parts(file: File) -> Iterator[tuple[EventArrays, tuple[MuonFeature, ...]]]:
    """Yield the events of a file, several at once, with the features of their muons.

    Raises:
        ValueError: if the file is not Parquet or damaged, or a row breaks the contract; with the file, the row and the reason.
    """
    with open_listed(file) as opened, open_parquet(opened, file.url) as parquet:
        columns = parquet.schema_arrow
        has_ids, features = schema.check_schema(columns, file.url), declared(columns, file.url)
        first = 0
        names = schema.columns_to_read(has_ids)
        for batch in parquet.iter_batches(EVENTS_AT_ONCE, columns=names, use_threads=False):
            table = pa.Table.from_batches([batch])
            numbers = np.arange(first, first + table.num_rows, dtype=np.uint64)
            ids = None if has_ids else np.stack([numbers, np.zeros_like(numbers)], axis=1)
            events = arrow.legal_arrays(table, ids, features)
            if events is None:
                fault = schema.faults(table, features)
                row = int(np.flatnonzero(fault)[0])
                reason = schema.fault_of(table, row, fault[row])
                msg = f"{file.url}, row {first + row}: {reason}; correct the row or leave it out"
                raise ValueError(msg)
            yield events, features
            first += table.num_rows
