"""Describe a data set for `crmuons inspect`: rows, ranges, multiplicities, faults and a few events."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa

from crmuons.data import arrow, manifest, parquet, reader, schema, selection
from crmuons.data.events import EventArrays, concat, take
from crmuons.data.sampler import FileSlice, cut_files, permutation
from crmuons.progress import progress
from crmuons.storage import files
from crmuons.storage.files import File

MULTIPLICITY_QUANTILES = (0.5, 0.9, 0.99, 1.0)
MUONS_SHOWN = 3


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
    """

    files: list[File]
    has_ids: bool
    rows: int = 0
    faults: Counter[str] = field(default_factory=Counter)
    events: list[EventArrays] = field(default_factory=list)
    complete: bool = True

    def lines(self, preview: int) -> Iterator[str]:
        """Yield the findings as lines of text, with `preview` events at the end."""
        size = sum(file.size for file in self.files)
        yield f"files     {len(self.files)}, {size / 1e6:,.1f} MB"
        yield f"rows      {self.rows:,}" + (
            "" if self.complete else " read, from slices of the files in random order (--rows 0 reads all)"
        )
        yield "ids       " + (
            "primary_major_id, primary_minor_id" if self.has_ids else "none: every row is its own shower"
        )
        yield from (f"unusable  {number:,} rows: {reason}" for reason, number in self.faults.most_common())
        events = concat(self.events)
        if len(events.counts):
            yield from _describe(events)
            yield from _preview(events, preview)


def inspect(urls: list[str], *, max_rows: int | None) -> Inspection:
    """Read a data set, or a random part of it, and describe it.

    Args:
        urls: paths, directories, globs or URLs.
        max_rows: stop after about this many rows, from slices in random order; None to read all rows.

    Raises:
        FileNotFoundError: if there is nothing to read.
        ValueError: if a file does not hold events.
    """
    listed = manifest.event_files(urls)
    slices = cut_files(listed) if max_rows is None else permutation(cut_files(listed), seed=0, epoch=0)
    inspection = Inspection(listed, has_ids=_has_ids(listed[0]))
    with progress(None, unit="rows", what="inspect") as bar:
        for file_slice in slices:
            if max_rows is not None and inspection.rows >= max_rows:
                inspection.complete = False
                break
            bar.update(_inspect_slice(file_slice, inspection))
    return inspection


def _has_ids(file: File) -> bool:
    if manifest.is_shard(file):
        return True
    with files.open_file(file.url, file.size) as opened, parquet.open_parquet(opened, file.url) as rows:
        return schema.check_schema(rows.schema_arrow, file.url)


def _inspect_slice(file_slice: FileSlice, inspection: Inspection) -> int:
    """Add a slice's rows to the inspection; return how many it has."""
    if manifest.is_shard(file_slice.file):  # Its events were checked when it was written.
        events, read_counts = reader.read_slice(file_slice, selection.Selection())
        inspection.rows += read_counts.rows
        inspection.events.append(events)
        return read_counts.rows
    rows = parquet.read_rows(file_slice)
    fault = schema.faults(rows.table)
    inspection.faults.update(schema.FAULTS[code] for code in fault[fault > 0])
    inspection.rows += rows.table.num_rows
    legal = rows.table.filter(pa.array(fault == 0))
    inspection.events.append(arrow.to_arrays(legal, missing_ids=rows.ids(np.flatnonzero(fault == 0))))
    return rows.table.num_rows


def _describe(events: EventArrays) -> Iterator[str]:
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
        yield _range("muon radius_m", np.hypot(events.muons[:, 1], events.muons[:, 2]))


def _range(name: str, values: np.ndarray) -> str:
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
        for energy, x, y in chosen.muons[end - count : end][:MUONS_SHOWN]:
            yield f"            {energy:10.2f} GeV at ({x:8.2f}, {y:8.2f}) m"
