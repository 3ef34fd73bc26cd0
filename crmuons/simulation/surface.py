"""Propagate the showers of a shower program from the surface to some depths; for `crmuons convert corsika`.

The energy losses are the simulator's. The surface is assumed to be at the program's observation level.
"""

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Annotated

import numpy as np
from jaxtyping import Float64
from pydantic import Field

from crmuons.config.options import Expected, Seed, check
from crmuons.data import geometry, schema
from crmuons.data.events import EventArrays, concat
from crmuons.simulation import propagation, shower
from crmuons.simulation.simulate import (
    MOST_DEPTH_M,
    MOST_DEPTHS,
    Threshold,
    check_features,
    check_medium,
)
from crmuons.simulation.tracks import follow

MUON_MASS_GEV = 0.105658
MUONS_AT_ONCE = 2**20  # Showers are joined to tables of about this many muons.


SlantDepth = Annotated[
    float,
    Field(ge=schema.MIN_DEPTH_M, le=MOST_DEPTH_M),
    Expected(f"depths in metres (not kilometres), {schema.MIN_DEPTH_M:g} or more, at most {MOST_DEPTH_M:g}"),
]


@dataclass(frozen=True)
class DepthSettings:
    """Where the muons are recorded, and the matter that they pass on the way.

    Attributes:
        depths_m: slant or vertical depths.
        vertical: whether the depths are vertical; they are then converted with the zenith of each shower.
        threshold_gev: muons that keep less than this at a depth are lost there.
        medium: a name in propagation.MEDIA.
        seed: seed of the energy losses; the losses of a shower depend only on this seed and the shower's ids.
        features: numbers of a muon beyond energy_gev, x_m, y_m, names in tracks.FEATURES.
    """

    depths_m: tuple[SlantDepth, ...] = (1_500.0, 2_000.0, 2_500.0)
    vertical: bool = False
    threshold_gev: Threshold = 10.0
    medium: str = "ice"
    seed: Seed = 0
    features: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_features(self.features)
        if not 1 <= len(self.depths_m) <= MOST_DEPTHS:
            msg = f"--depths: {len(self.depths_m)} depths, expected 1 to {MOST_DEPTHS}"
            raise ValueError(msg)
        check(self, depths_m="--depths")
        check_medium(self.medium)

    @property
    def passed(self) -> propagation.Medium:
        """Return the medium."""
        return propagation.MEDIA[self.medium]


@dataclass(frozen=True)
class SurfaceShower:
    """One shower: its primary, and its muons at the observation level.

    Attributes:
        run, event: they become the shower's ids.
        energy_gev, mass_number, zenith_rad: the primary.
        altitude_m: altitude of the observation level above sea level.
        cutoff_gev: energy below which the program dropped muons; 0 if it is not known.
        muons: muons in the plane across the axis at the point where the axis meets the observation level.
    """

    run: int
    event: int
    energy_gev: float
    mass_number: int
    zenith_rad: float
    altitude_m: float
    cutoff_gev: float
    muons: shower.Showers

    def __post_init__(self) -> None:
        numbers = (self.energy_gev, self.zenith_rad, self.altitude_m, self.cutoff_gev)
        possible = np.isfinite(numbers).all() and self.energy_gev > 0 and self.run >= 0 and self.event >= 0
        if not possible:
            msg = f"run {self.run}, event {self.event}: the header cannot be right (energy {self.energy_gev:g} GeV)"
            raise ValueError(msg)
        if not 0 <= self.zenith_rad < np.pi / 2:
            msg = (
                f"run {self.run}, event {self.event}: zenith {np.rad2deg(self.zenith_rad):.4g} degrees; expected a "
                "shower from above the horizon"
            )
            raise ValueError(msg)


def across_axis(
    position_m: Float64[np.ndarray, "3 muons"],
    momentum: Float64[np.ndarray, "3 muons"],
    energy_gev: Float64[np.ndarray, " muons"],
    axis: Float64[np.ndarray, "3"],
    *,
    t_ns: Float64[np.ndarray, " muons"] | None = None,
    charge: Float64[np.ndarray, " muons"] | None = None,
) -> shower.Showers:
    """Return the muons in the plane across the shower axis at its foot, on straight lines through their positions.

    Args:
        position_m: positions of the muons, from the foot of the axis.
        momentum: directions of the muons, of any length.
        energy_gev: energies of the muons.
        axis: the shower's direction, of length 1. The third component of all vectors points downward.
        t_ns: time of each muon at its position; at 0 the plane front is at the foot of the axis.
        charge: -1 or 1.
    """
    plane = _plane_across(axis)
    slope = (plane @ momentum) / (axis @ momentum)
    along = axis @ position_m
    x_m, y_m = plane @ position_m - slope * along
    # The time changes by the muon's flight between its position and the plane through the foot.
    speed = np.sqrt(1 - (shower.MUON_MASS_GEV / energy_gev) ** 2) * shower.LIGHT_M_PER_NS
    times = None if t_ns is None else t_ns - along * np.sqrt(1 + (slope**2).sum(axis=0)) / speed
    return shower.Showers(np.array([len(energy_gev)]), energy_gev, x_m, y_m, slope[0], slope[1], times, charge)


def _plane_across(axis: Float64[np.ndarray, "3"]) -> Float64[np.ndarray, "2 3"]:
    """Return two unit vectors across the axis: the first in the vertical plane of the axis, the second horizontal."""
    azimuth = np.arctan2(axis[1], axis[0])
    horizontal = np.array([-np.sin(azimuth), np.cos(azimuth), 0.0])
    return np.stack([np.cross(horizontal, axis), horizontal])


def to_events(showers: Iterable[SurfaceShower], settings: DepthSettings, notes: Counter[str]) -> Iterator[EventArrays]:
    """Yield the events of showers, one for each shower and depth, several showers together.

    Args:
        showers: the showers, read one after the other.
        settings: the depths.
        notes: counts the showers that lack muons at the shallowest depth, since the program dropped them.
    """
    part: list[EventArrays] = []
    seen: set[tuple[int, int]] = set()
    for one in showers:
        if (one.run, one.event) in seen:
            msg = f"run {one.run}, event {one.event} occurs twice; run and event number identify a shower"
            raise ValueError(msg)
        seen.add((one.run, one.event))
        part.append(_at_depths(one, settings, notes))
        if sum(len(events.muons) for events in part) > MUONS_AT_ONCE:
            yield concat(part)
            part = []
    if part:
        yield concat(part)


def _at_depths(one: SurfaceShower, settings: DepthSettings, notes: Counter[str]) -> EventArrays:
    """Make the events of a shower, one for each depth."""
    cosine = np.array([np.cos(one.zenith_rad)])
    slant = np.sort(np.array(settings.depths_m, np.float64))
    if settings.vertical:
        slant = geometry.slant_depth_m(slant, cosine, one.altitude_m)
    slant = slant[None]
    medium = settings.passed
    water = propagation.water_equivalent_m(slant, cosine, medium)
    _note_cutoff(one, float(water[0, 0]), settings, notes)
    rng = np.random.default_rng((settings.seed, one.run, one.event))
    counts, muons = follow(
        one.muons, slant, water, settings.threshold_gev, rng, medium=medium, features=settings.features
    )
    mass = float(shower.mass_gev(np.array([one.mass_number]))[0])
    primaries = [(one.energy_gev, one.zenith_rad, mass, depth) for depth in slant[0]]
    ids = np.tile(np.array([one.run, one.event], np.uint64), (len(primaries), 1))
    return EventArrays(ids=ids, primaries=np.array(primaries, np.float32), counts=counts, muons=muons)


def _note_cutoff(one: SurfaceShower, water_m: float, settings: DepthSettings, notes: Counter[str]) -> None:
    """Count a shower whose program dropped muons that could have reached the shallowest depth."""
    medium = settings.passed
    if one.cutoff_gev > float(propagation.least_surface_energy_gev(np.array(water_m), settings.threshold_gev, medium)):
        complete = propagation.complete_water_m(one.cutoff_gev, settings.threshold_gev, medium) / medium.density
        notes[
            f"showers lack muons at the first depth: CORSIKA dropped those below {one.cutoff_gev:.0f} GeV, and the "
            f"events are complete from about {complete:.0f} m of {settings.medium} on"
        ] += 1
