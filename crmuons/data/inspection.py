"""Describe a data set for `crmuons inspect`: rows, ranges, multiplicities, faults and a few events."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa

from crmuons.data import arrow, manifest, parquet, reader, schema, selection, shards
from crmuons.data.events import EventArrays, concat, take, with_columns
from crmuons.data.features import BASE, MuonFeature, columns_of, declared
from crmuons.data.plausibility import doubts
from crmuons.data.prefetch import ordered_map
from crmuons.data.sampler import FileSlice, cut_files, permutation
from crmuons.progress import progress
from crmuons.storage.files import File
from crmuons.storage.identity import open_listed

MULTIPLICITY_QUANTILES = (0.5, 0.9, 0.99, 1.0)
MUONS_SHOWN = 3
FILES_AT_ONCE = 8


@dataclass
class Inspection:
    """The findings.

    Attributes:
        files: all files of the data set.
        has_ids: whether they hold shower ids.
        rows: rows that were read.
        faults: number of rows by the reason why they cannot be used.
        events: the legal events that were read.
        complete: whether all rows were read.
        features: the numbers of a muon that the first readable file declares.
        broken: files that cannot be read, each with the reason.
    """

    files: list[File]
    has_ids: bool
    rows: int = 0
    faults: Counter[str] = field(default_factory=Counter)
    events: list[EventArrays] = field(default_factory=list)
    complete: bool = True
    features: tuple[MuonFeature, ...] = BASE
    broken: dict[str, str] = field(default_factory=dict)

    @property
    def is_good(self) -> bool:
        """Return whether every file and every row that was read can be used."""
        return not self.faults and not self.broken

    def lines(self, preview: int) -> Iterator[str]:
        """Yield the findings as lines of text, with `preview` events at the end."""
        size = sum(file.size for file in self.files)
        yield f"files     {len(self.files)}, {size / 1e6:,.1f} MB"
        yield f"rows      {self.rows:,}" + (
            "" if self.complete else " read, from slices of the files in random order (--rows 0 reads all)"
        )
        if self.rows:
            yield "ids       " + (
                "primary_major_id, primary_minor_id" if self.has_ids else "none: every row is its own shower"
            )
        yield from (f"unusable  {number:,} rows: {reason}" for reason, number in self.faults.most_common())
        if self.broken:
            num_files = len(self.broken.keys() | {file.url for file in self.files})
            yield f"broken    {len(self.broken)} of {num_files} files:"
            yield from (f"          {reason}" for _, reason in sorted(self.broken.items()))
        events = concat(self.events)
        if len(events.counts):
            yield from (f"doubtful  {doubt}" for doubt in doubts(events))
            yield from _describe(events, self.features)
            yield from _preview(events, preview)


def inspect(urls: list[str], *, max_rows: int | None) -> Inspection:
    """Read a data set, or a random part of it, and describe it.

    Args:
        urls: paths, directories, globs or URLs.
        max_rows: stop after about this many rows, from slices in random order; None to read all rows.

    Raises:
        FileNotFoundError: if there is nothing to read.
        ValueError: if prepared data are not complete.
    """
    broken: dict[str, str] = {}
    listed = manifest.event_files(urls, broken=broken)
    inspection = Inspection(listed, has_ids=True, broken=broken)
    with progress(len(listed), unit="files", what="open") as bar:
        # All files are opened: a broken file may be one that gives no row to the sample.
        first = True
        for file, found in zip(listed, ordered_map(_opened, listed, FILES_AT_ONCE, "open"), strict=True):
            if isinstance(found, str):
                inspection.broken[file.url] = found
            else:
                inspection.has_ids &= found[0]
                inspection.features, first = (found[1] if first else inspection.features), False
            bar.update(1)
    slices = cut_files([file for file in listed if file.url not in inspection.broken])
    slices = slices if max_rows is None else permutation(slices, seed=0, epoch=0)
    with progress(None, unit="rows", what="inspect") as bar:
        for file_slice in slices:
            if max_rows is not None and inspection.rows >= max_rows:
                inspection.complete = False
                break
            try:
                bar.update(_inspect_slice(file_slice, inspection))
            except (ValueError, OSError) as error:
                inspection.broken[file_slice.file.url] = _reason(file_slice.file, error)
    return inspection


def declaration(file: File) -> tuple[bool, tuple[MuonFeature, ...]]:
    """Return whether a file holds shower ids, and the numbers of a muon that it declares.

    Raises:
        OSError: if it cannot be read.
        ValueError: if it does not hold events, or is damaged.
    """
    if manifest.is_shard(file):
        return True, shards.read_declaration(file)
    with open_listed(file) as opened, parquet.open_parquet(opened, file.url) as rows:
        return schema.check_schema(rows.schema_arrow, file.url), declared(rows.schema_arrow, file.url)


def _opened(file: File) -> tuple[bool, tuple[MuonFeature, ...]] | str:
    """Return the result of `declaration`, or the reason why the file is broken."""
    try:
        return declaration(file)
    except (ValueError, OSError) as error:
        return _reason(file, error)


def _reason(file: File, error: Exception) -> str:
    return str(error) if file.url in str(error) else f"{file.url}: {error}"


def _inspect_slice(file_slice: FileSlice, inspection: Inspection) -> int:
    """Add a slice's rows to the inspection; return how many it has."""
    if manifest.is_shard(file_slice.file):  # The events of a shard were checked when it was written.
        chosen = selection.Selection(features=inspection.features[len(BASE) :])
        events, read_counts = reader.read_slice(file_slice, chosen)
        inspection.rows += read_counts.rows
        inspection.events.append(events)
        return read_counts.rows
    rows = parquet.read_rows(file_slice)
    fault = schema.faults(rows.table, rows.features)
    for code, row, number in zip(*np.unique(fault, return_index=True, return_counts=True), strict=True):
        if code:
            inspection.faults[schema.fault_of(rows.table, int(row), code)] += int(number)
    inspection.rows += rows.table.num_rows
    legal = rows.table.filter(pa.array(fault == 0))
    events = arrow.to_arrays(legal, rows.ids(np.flatnonzero(fault == 0)), rows.features)
    columns = columns_of(rows.features, inspection.features, file_slice.file.url)
    inspection.events.append(events if columns is None else with_columns(events, columns))
    return rows.table.num_rows


def _describe(events: EventArrays, features: Sequence[MuonFeature]) -> Iterator[str]:
    showers = len(np.unique(events.ids, axis=0))
    yield f"showers   {showers:,}, {len(events.counts) / showers:.2f} events each"
    quantiles = np.quantile(events.counts, MULTIPLICITY_QUANTILES)
    quantile_text = ", ".join(
        f"{q:.0%} {value:,.0f}" for q, value in zip(MULTIPLICITY_QUANTILES, quantiles, strict=True)
    )
    yield f"muons     {len(events.muons):,}, {events.counts.mean():.3f} an event; quantiles {quantile_text}"
    yield f"empty     {(events.counts == 0).mean():.1%} of the events"
    yield "quantity                       lowest       median      highest"
    for name, values in zip(schema.PRIMARY_FEATURES, events.primaries.T, strict=True):
        yield _range(f"primary {name}", values)
    if len(events.muons):
        yield _range("muon energy_gev", events.muons[:, 0])
        yield _range("muon radius_m", np.hypot(*events.muons[:, 1:3].T.astype(np.float64)))
        for at, feature in enumerate(features[len(BASE) :], start=len(BASE)):
            yield _range(f"muon {feature.name}", events.muons[:, at])


def _range(name: str, values: np.ndarray) -> str:
    values = values.astype(np.float64)  # The median is a mean of two, whose sum may be beyond float32.
    return f"  {name:<24} {values.min():>12.5g} {np.median(values):>12.5g} {values.max():>12.5g}"


def _preview(events: EventArrays, number: int) -> Iterator[str]:
    chosen = take(events, np.flatnonzero(events.counts > 0)[:number])
    ends = np.cumsum(chosen.counts)
    for (major, minor), primary, count, end in zip(chosen.ids, chosen.primaries, chosen.counts, ends, strict=True):
        energy, zenith, mass, depth = primary
        yield (
            f"event     shower {major}/{minor}: {energy:.4g} GeV, zenith {zenith:.3f} rad, mass {mass:.4g} GeV, "
            f"depth {depth:.1f} m, {count} muons"
        )
        for energy, x, y in chosen.muons[end - count : end, : len(BASE)][:MUONS_SHOWN]:
            yield f"            {energy:10.2f} GeV at ({x:8.2f}, {y:8.2f}) m"
