"""Turn the muons of events into tracks in a detector's frame: its origin at the detector's centre, z upward, in m and ns."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, Float64, Int8, Int64, UInt64

from crmuons.data.events import EventArrays
from crmuons.data.features import KNOWN, MuonFeature
from crmuons.data.selection import split_coordinates
from crmuons.generation.spectrum import Spectrum

MUON_MASS_GEV = 0.1056583755  # PDG 2022.
FILLED = {"dir_x": 0.0, "dir_y": 0.0, "t_ns": 0.0, "charge": -1.0}  # Values for --fill that messages propose.


@dataclass(frozen=True)
class Tracks:
    """Muons of events as tracks, in the order of the events; event i has `counts[i]` of them.

    Attributes:
        ids: ids of the showers.
        primaries: energy_gev, zenith_rad, mass_gev, depth_m of the events.
        azimuth_rad: azimuth of the point from which the primary comes.
        counts: number of muons of each event.
        energy_gev: total energies of the muons.
        position_m: where each muon crosses the plane across the axis.
        direction: unit vector of its flight.
        t_ns: time at this position; at 0 the shower's front reaches the point where the axis crosses the plane.
        charge: -1 or 1, and 0 if it is not known.
    """

    ids: UInt64[np.ndarray, "events 2"]
    primaries: Float32[np.ndarray, "events 4"]
    azimuth_rad: Float64[np.ndarray, " events"]
    counts: Int64[np.ndarray, " events"]
    energy_gev: Float64[np.ndarray, " muons"]
    position_m: Float64[np.ndarray, "muons 3"]
    direction: Float64[np.ndarray, "muons 3"]
    t_ns: Float64[np.ndarray, " muons"]
    charge: Int8[np.ndarray, " muons"]

    @property
    def event(self) -> Int64[np.ndarray, " muons"]:
        """Return the event of each muon, counted from 0."""
        return np.repeat(np.arange(len(self.counts)), self.counts)


@dataclass(frozen=True)
class Sample:
    """What a file's events have in common.

    Attributes:
        spectrum: the spectrum of the primaries; None if it is not known.
        num_events: number of events in the file.
    """

    spectrum: Spectrum | None
    num_events: int


def check_needs(names: Sequence[str], needs: Sequence[str], fill: Mapping[str, float], what: str) -> None:
    """Check that muons have the features that a format needs, or get them from the user.

    Args:
        names: features of the muons.
        needs: features that the format needs.
        fill: values for features that the muons lack.
        what: the format and the source of the muons, for the message.

    Raises:
        ValueError: with the missing features and the remedy.
    """
    missing = [name for name in needs if name not in names]
    lacking = [name for name in missing if name not in fill]
    if lacking:
        words = " ".join(f"{name}={FILLED[name]:g}" for name in missing)
        msg = (
            f"{what} needs {', '.join(lacking)}, which the muons lack (they have {', '.join(names)}): give data or a model "
            f"with them, or one value for all muons, for example --fill {words}, which makes them parallel to the axis, in "
            "the plane front"
        )
        raise ValueError(msg)


def completed(
    events: EventArrays, features: Sequence[MuonFeature], needs: Sequence[str], fill: Mapping[str, float], what: str
) -> tuple[EventArrays, tuple[str, ...]]:
    """Return events whose muons have all features that a format needs, and the names of their features.

    The arguments and errors are those of `check_needs`.
    """
    names = [feature.name for feature in features]
    check_needs(names, needs, fill, what)
    missing = [name for name in needs if name not in names]
    added = np.empty((len(events.muons), len(missing)), np.float32)
    added[:] = [fill[name] for name in missing]
    muons = np.concatenate([events.muons, added], axis=1) if missing else events.muons
    return EventArrays(events.ids, events.primaries, events.counts, muons), (*names, *missing)


def parse_fill(words: Sequence[str]) -> dict[str, float]:
    """Return the values for words like t_ns=0 charge=-1.

    Raises:
        ValueError: for a word of another form, an unknown feature, or a value that the feature cannot have.
    """
    fill: dict[str, float] = {}
    for word in words:
        name, equals, text = word.partition("=")
        if name not in FILLED or not equals:
            msg = f"--fill {word}: expected NAME=VALUE with one of {', '.join(FILLED)}"
            raise ValueError(msg)
        try:
            value = float(text)
        except ValueError:
            value = np.nan
        legal = np.isfinite(value) and (name != "charge" or abs(value) == 1) and (name[:3] != "dir" or abs(value) <= 1)
        if not legal:
            msg = f"--fill {word}: '{text}' is no value of {name} ({KNOWN[name].about}, in {KNOWN[name].unit})"
            raise ValueError(msg)
        fill[name] = value
    if np.hypot(fill.get("dir_x", 0.0), fill.get("dir_y", 0.0)) > 1:
        msg = f"--fill dir_x={fill['dir_x']:g} dir_y={fill['dir_y']:g}: the direction across the axis is longer than 1; give a unit vector's components"
        raise ValueError(msg)
    return fill


def azimuths(ids: UInt64[np.ndarray, "events 2"], seed: int = 0) -> Float64[np.ndarray, " events"]:
    """Draw a uniform azimuth in radians for each shower. It depends only on the seed and the shower's ids."""
    return 2 * np.pi * split_coordinates(salted(ids, f"azimuth {seed}"))


def salted(ids: UInt64[np.ndarray, "events 2"], purpose: str) -> UInt64[np.ndarray, "events 2"]:
    """Return changed ids for the same showers, so that two purposes draw independent numbers."""
    return ids ^ np.uint64(int.from_bytes(hashlib.sha256(purpose.encode()).digest()[:8], "little"))


def axes(zenith_rad: Float64[np.ndarray, " n"], azimuth_rad: Float64[np.ndarray, " n"]) -> Float64[np.ndarray, "n 3 3"]:
    """Return three unit vectors of each shower: x and y across its axis, and its flight.

    The azimuth gives the point from which the shower comes. x lies in the vertical plane through the axis and points
    upward; y is horizontal.
    """
    sin, cos, s, c = np.sin(zenith_rad), np.cos(zenith_rad), np.sin(azimuth_rad), np.cos(azimuth_rad)
    none = np.zeros_like(s)
    vectors = [[-cos * c, -cos * s, sin], [s, -c, none], [-sin * c, -sin * s, -cos]]
    return np.stack([np.stack(vector, axis=1) for vector in vectors], axis=1)


def to_tracks(
    events: EventArrays,
    names: Sequence[str],
    *,
    azimuth_rad: Float64[np.ndarray, " events"],
    core_m: Float64[np.ndarray, "events 3"] | None = None,
) -> Tracks:
    """Return the muons of events as tracks.

    Args:
        events: events whose muons have the features of a direction.
        names: the features.
        azimuth_rad: azimuth of the point from which each shower comes.
        core_m: a point of each axis; None for the origin.
    """
    muons = events.muons.astype(np.float64)
    column = {name: muons[:, at] for at, name in enumerate(names)}
    frame = np.repeat(axes(events.primaries[:, 1].astype(np.float64), azimuth_rad), events.counts, axis=0)
    position = column["x_m"][:, None] * frame[:, 0] + column["y_m"][:, None] * frame[:, 1]
    if core_m is not None:
        position += np.repeat(core_m, events.counts, axis=0)
    x, y = column["dir_x"], column["dir_y"]
    along = np.sqrt(np.maximum(1 - x**2 - y**2, 0.0))
    direction = x[:, None] * frame[:, 0] + y[:, None] * frame[:, 1] + along[:, None] * frame[:, 2]
    none = np.zeros(len(muons))
    return Tracks(
        ids=events.ids,
        primaries=events.primaries,
        azimuth_rad=azimuth_rad,
        counts=events.counts,
        energy_gev=column["energy_gev"],
        position_m=position,
        direction=direction,
        t_ns=column.get("t_ns", none),
        charge=column.get("charge", none).astype(np.int8),
    )


def origin_angles(direction: Float64[np.ndarray, "n 3"]) -> tuple[np.ndarray, np.ndarray]:
    """Return zenith and azimuth in radians of the point from which each track comes."""
    x, y, z = -direction.T
    return np.arctan2(np.hypot(x, y), z), np.mod(np.arctan2(y, x), 2 * np.pi)
