"""Write one source of another program as one file of events, and describe its content.

The file appears only when the source was read to its end. Its metadata have its source, the settings and a summary of its
content.
"""

import hashlib
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from crmuons.data import arrow, schema
from crmuons.data.events import EventArrays
from crmuons.data.features import BASE, MuonFeature
from crmuons.simulation import content
from crmuons.storage.output import Output
from crmuons.storage.redact import without_credentials

RUN_BITS = 20  # CORSIKA's run numbers are below 10^6.
STEM_CHARACTERS = 100  # Characters of the label in an output file's name; file systems allow 255 bytes.


class UnreadableError(ValueError):
    """A source cannot be converted; the message names it. Errors of the output have other classes."""


@dataclass(frozen=True)
class Source:
    """An input that becomes one file of events.

    Attributes:
        url: a file or a directory.
        size: its size in bytes.
        label: the first part of its output's name.
        read: yields its events; its argument is a counter of notes for the user.
        owns_ids: whether no other source may hold showers of the same first id.
        run: the run number, if `read` takes the argument `base`, which changes the first ids.
        start: digest of the first bytes, which a copy shares.
        muon_features: the numbers of a muon.
    """

    url: str
    size: int
    label: str
    read: Callable[..., Iterator[EventArrays]]
    owns_ids: bool = True
    run: int | None = None
    start: str = ""
    muon_features: tuple[MuonFeature, ...] = BASE

    @property
    def output(self) -> str:
        """Return the name of its output: the label, and a digest of its path, so that equal names stay apart."""
        digest = hashlib.sha256(os.fsencode(self.url)).hexdigest()[:8]
        # Arrow accepts only UTF-8 paths, and a terminal would obey control characters.
        label = "".join(letter if letter.isprintable() else "_" for letter in self.label)
        return f"{label.lstrip('._')[:STEM_CHARACTERS] or 'file'}-{digest}.parquet"

    @property
    def shown(self) -> str:
        """Return the URL without credentials, for messages and metadata."""
        return without_credentials(self.url)

    @property
    def identity(self) -> dict[str, object]:
        """Return values that show whether it was changed after it was converted."""
        modified = None if "://" in self.url else Path(self.url).stat().st_mtime_ns
        return {"url": self.shown, "size": self.size, "modified": modified}


@dataclass(frozen=True)
class IdOwner:
    """The source that owns a first id of showers: its URL without credentials, and the digest of its first bytes."""

    url: str
    start: str

    @classmethod
    def of(cls, origin: Mapping[str, Any]) -> "IdOwner":
        """Return the source that a file's metadata name."""
        return cls(origin["source"]["url"], origin["start"])


@dataclass
class Summary:
    """A summary of one or several files of events."""

    showers: int = 0
    events: int = 0
    muons: int = 0
    masses_gev: list[float] = field(default_factory=list)
    energy_gev: list[float] = field(default_factory=list)
    zenith_deg: list[float] = field(default_factory=list)
    depth_m: list[float] = field(default_factory=list)
    notes: dict[str, int] = field(default_factory=dict)

    def add(self, other: "Summary") -> None:
        """Add the numbers of other files."""
        for name in ("showers", "events", "muons"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.masses_gev = sorted({*self.masses_gev, *other.masses_gev})
        for name in ("energy_gev", "zenith_deg", "depth_m"):
            values = [*getattr(self, name), *getattr(other, name)]
            setattr(self, name, [min(values), max(values)] if values else [])
        self.notes = dict(Counter(self.notes) + Counter(other.notes))

    def lines(self) -> Iterator[str]:
        """Yield the numbers as lines of text."""
        yield f"{self.showers:,} showers, {self.events:,} events, {self.muons:,} muons"
        if self.events:
            yield f"primaries: masses {', '.join(f'{mass:.4g}' for mass in self.masses_gev)} GeV"
            yield f"           energies {self.energy_gev[0]:.4g} to {self.energy_gev[1]:.4g} GeV"
            yield f"           zenith angles {self.zenith_deg[0]:.1f} to {self.zenith_deg[1]:.1f} degrees"
            yield f"slant depths {self.depth_m[0]:,.0f} to {self.depth_m[1]:,.0f} m"
        yield from (f"{number:,} {what}" for what, number in self.notes.items())


def as_json(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings as JSON gives them back: tuples become lists."""
    return {name: list(value) if isinstance(value, tuple) else value for name, value in settings.items()}


def write_source(
    source: Source, output: Output, record: Mapping[str, Any], owners: dict[int, IdOwner]
) -> dict[str, Any]:
    """Write the events of a source, and return the file's metadata.

    Raises:
        UnreadableError: if the source cannot be read to its end, or holds showers of another source.
    """
    tally = _Tally()
    origin: dict[str, Any] = {}

    def complete() -> dict[str, Any]:
        first_ids = tally.first_ids if source.owns_ids else []
        summary = asdict(tally.finished())
        origin.update(record, settings=as_json(record["settings"]), source=source.identity, start=source.start)
        origin.update(summary=summary, first_ids=first_ids)
        return origin

    with output.writing(source.output) as path:
        arrow.write_events(path, _tables(source, tally, owners), origin=complete, features=source.muon_features)
    owners.update(dict.fromkeys(origin["first_ids"], IdOwner.of(origin)))
    return origin


def _first_id_base(source: Source, owners: Mapping[int, IdOwner]) -> int:
    """Return a number to add to the run numbers of a source: 0, unless another source with other showers has its run."""
    owner = owners.get(source.run) if source.run is not None else None
    if owner is None or owner.url == source.shown or owner.start == source.start:
        return 0
    return int(source.start[:10], 16) << RUN_BITS


def _tables(source: Source, tally: "_Tally", owners: Mapping[int, IdOwner]) -> Iterator[pa.Table]:
    """Read the events of a source; every error of reading becomes an UnreadableError that names the source."""
    base = _first_id_base(source, owners)
    if base:
        tally.notes["files have the run number of another file: the first ids of their showers are other numbers"] += 1
    try:
        for events in source.read(tally.notes, base=base) if base else source.read(tally.notes):
            tally.add(events)
            if source.owns_ids:
                _refuse_owned(tally.first_ids, source, owners)
            table = arrow.to_table(events, source.muon_features)
            _check(table, source.muon_features)
            yield table
    except content.READ_ERRORS as error:
        msg = f"{source.shown}: {error}"
        raise UnreadableError(msg) from error
    if not tally.summary.events:
        notes = "; ".join(f"{number} {what}" for what, number in tally.notes.items())
        msg = f"{source.shown}: it holds no event that can be used" + (f" ({notes})" if notes else "")
        raise UnreadableError(msg)


def _refuse_owned(first_ids: Iterable[int], source: Source, owners: Mapping[int, IdOwner]) -> None:
    for first in first_ids:
        if first in owners and owners[first].url != source.shown:
            run = first if source.run is None else first & (2**RUN_BITS - 1)  # Without the number of `_first_id_base`.
            msg = (
                f"run {run} is also in {owners[first].url}; run and event number identify a shower, so convert only one "
                "of these files"
            )
            raise ValueError(msg)


def _check(table: pa.Table, declared: Sequence[MuonFeature]) -> None:
    """Refuse rows that break the contract; they come from damaged numbers in the source."""
    fault = schema.faults(table, declared)
    if fault.any():
        row = int(np.flatnonzero(fault)[0])
        ids = [table[name][row].as_py() for name in schema.ID_COLUMNS]
        msg = f"shower {ids[0]}/{ids[1]}: {schema.FAULTS[fault[row]]} ({table[schema.PRIMARY_COLUMN][row].as_py()})"
        raise ValueError(msg)


class _Tally:
    """The summary of one file, while it is written."""

    def __init__(self) -> None:
        self.summary = Summary()
        self.notes: Counter[str] = Counter()
        self.ids: list[np.ndarray] = []

    @property
    def first_ids(self) -> list[int]:
        return sorted({first for ids in self.ids for first in np.unique(ids[:, 0]).tolist()})

    def add(self, events: EventArrays) -> None:
        self.ids.append(np.unique(events.ids, axis=0))
        energy, zenith, mass, depth = events.primaries.astype(np.float64).T
        part = Summary(events=len(events.counts), muons=len(events.muons))
        if len(events.counts):
            part.masses_gev = sorted({float(f"{value:.6g}") for value in np.unique(mass).tolist()})
            part.energy_gev, part.depth_m = ([float(values.min()), float(values.max())] for values in (energy, depth))
            part.zenith_deg = [float(np.rad2deg(zenith.min())), float(np.rad2deg(zenith.max()))]
        self.summary.add(part)

    def finished(self) -> Summary:
        self.summary.showers = len(np.unique(np.concatenate(self.ids), axis=0))
        self.summary.notes = dict(self.notes)
        return self.summary
