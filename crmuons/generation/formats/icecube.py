"""Write tracks as IceCube's tables in HDF5, in the layout of its hdfwriter: a row for each event, and one for each muon.

    I3CorsikaInfo       the spectrum of the primaries, if it is known: a row for each nucleus and part of the law
    PolyplopiaPrimary   the primary
    CorsikaWeightMap    PrimaryEnergy, PrimaryType and a weight of 1, which simweights' main branch reads
    I3MCTree            the muons; __I3Index__/I3MCTree says which rows belong to an event

simweights reads a file: `simweights.CorsikaWeighter(h5py.File(path))`. The sum of the weighters of all files is the
weighter of the data set.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from crmuons.generation.formats.tracks import Sample, Tracks, origin_angles
from crmuons.generation.spectrum import corsika_info, primary_types

EVENT = [("Run", "u4"), ("Event", "u4"), ("SubEvent", "u4"), ("SubEventStream", "u4"), ("exists", "u1")]
PARTICLE = [(name, "f8") for name in ("x", "y", "z", "time", "zenith", "azimuth", "energy", "length")] + [
    ("type", "i4")
]
ROWS_PER_CHUNK = 4096


def write(path: Path, parts: Iterator[Tracks], sample: Sample) -> None:
    """Write the tables of events.

    Raises:
        ImportError: if h5py is not installed.
    """
    try:
        import h5py  # noqa: PLC0415  # an extra
    except ImportError as error:
        msg = "--format icecube needs the package h5py: pip install 'crmuons[hdf5]'"
        raise ImportError(msg) from error
    with h5py.File(path, "w") as file:
        if sample.spectrum is not None:
            file["I3CorsikaInfo"] = _records(corsika_info(sample.spectrum, sample.num_events))
        primary = _Table(file, "PolyplopiaPrimary", [*EVENT, *PARTICLE])
        weight = _Table(
            file, "CorsikaWeightMap", [*EVENT, ("PrimaryEnergy", "f8"), ("PrimaryType", "f8"), ("Weight", "f8")]
        )
        muon = _Table(file, "I3MCTree", [*EVENT, ("vector_index", "u4"), *PARTICLE])
        index = _Table(file, "__I3Index__/I3MCTree", [*EVENT, ("start", "u8"), ("stop", "u8")])
        for tracks in parts:
            number = np.arange(primary.rows, primary.rows + len(tracks.counts))
            kinds = primary_types(tracks.primaries[:, 2], sample.spectrum)
            energy = tracks.primaries[:, 0].astype(np.float64)
            ends = np.cumsum(tracks.counts) + muon.rows
            index.add(**_event(number), start=ends - tracks.counts, stop=ends)
            primary.add(
                **_event(number),
                zenith=tracks.primaries[:, 1],
                azimuth=tracks.azimuth_rad,
                energy=energy,
                length=np.nan,
                type=kinds,
            )
            weight.add(**_event(number), PrimaryEnergy=energy, PrimaryType=kinds, Weight=1.0)
            muon.add(**_event(number[tracks.event]), **_muons(tracks))


def _event(number: np.ndarray) -> dict[str, Any]:
    return {"Event": number, "exists": 1}


def _muons(tracks: Tracks) -> dict[str, Any]:
    zenith, azimuth = origin_angles(tracks.direction)
    x, y, z = tracks.position_m.T
    starts = np.repeat(np.cumsum(tracks.counts) - tracks.counts, tracks.counts)
    return {
        "vector_index": np.arange(len(starts)) - starts,
        "x": x,
        "y": y,
        "z": z,
        "time": tracks.t_ns,
        "zenith": zenith,
        "azimuth": azimuth,
        "energy": tracks.energy_gev,
        "length": np.nan,  # The length is not known; the propagation of the muon finds it.
        "type": -13 * tracks.charge.astype(np.int32),
    }


def _records(columns: dict[str, np.ndarray]) -> np.ndarray:
    rows = np.empty(len(columns["n_events"]), [(name, column.dtype) for name, column in columns.items()])
    for name, column in columns.items():
        rows[name] = column
    return rows


class _Table:
    """A table that grows."""

    def __init__(self, file: Any, name: str, columns: list[tuple[str, str]]) -> None:
        self._set = file.create_dataset(
            name, (0,), np.dtype(columns), maxshape=(None,), chunks=(ROWS_PER_CHUNK,), compression="gzip", shuffle=True
        )

    @property
    def rows(self) -> int:
        return int(self._set.shape[0])

    def add(self, **columns: Any) -> None:
        """Append rows; a column that is not given is 0."""
        number = max(np.size(values) for values in columns.values()) if np.size(columns["Event"]) else 0
        rows = np.zeros(number, self._set.dtype)
        for name, values in columns.items():
            rows[name] = values
        self._set.resize((self.rows + number,))
        if number:
            self._set[-number:] = rows
