"""Place showers around a detector: the azimuth and the axis of each shower, and the points where muons enter the surface.

An isotropic flux crosses a convex surface at a rate that is proportional to the area that the surface shows in this
direction. The zenith angles of a Spectrum follow this rate for an upright cylinder, and axes are drawn uniformly over the
area that the cylinder shows. The cylinder is the detector's surface, or the smallest cylinder around it. A larger surface
has more showers, but the rate through any part inside stays the same.
"""

import difflib
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64, UInt64

from crmuons.data.selection import split_coordinates
from crmuons.generation.formats.tracks import Tracks, axes, azimuths, salted

C_M_PER_NS = 0.299792458
SHAPES = {"cylinder": ("RADIUS", "LENGTH"), "sphere": ("RADIUS",), "plane": ("RADIUS",)}
# A cylinder fills a third of the disc around it; a flat cylinder seen from 85 degrees fills a tenth.
MOST_ATTEMPTS = 512
Points = Float64[np.ndarray, "n 3"]


@dataclass(frozen=True)
class Surface:
    """A closed surface around the detector's centre, or a horizontal disc.

    Attributes:
        shape: cylinder (upright), sphere, or plane (a horizontal disc at the centre's depth).
        radius_m: its radius.
        length_m: length of a cylinder; 0 for other shapes.
    """

    shape: str
    radius_m: float
    length_m: float = 0.0

    @classmethod
    def parse(cls, text: str, option: str = "--surface") -> "Surface":
        """Return the surface for a word like cylinder:600,1000, sphere:800 or plane:800, in metres.

        Raises:
            ValueError: for another shape (with the nearest), or sizes that are missing, not finite or not positive.
        """
        shape, _, sizes = text.partition(":")
        if shape not in SHAPES:
            near = difflib.get_close_matches(shape, SHAPES, n=1, cutoff=0.0)[0]
            forms = ", ".join(f"{name}:{','.join(needed)}" for name, needed in SHAPES.items())
            msg = f"{option} {text}: expected {forms}, in metres; the nearest is {near}"
            raise ValueError(msg)
        try:
            numbers = [float(size) for size in sizes.split(",")]
        except ValueError:
            numbers = []
        if len(numbers) != len(SHAPES[shape]) or not all(0 < number < 1e6 for number in numbers):
            msg = f"{option} {text}: expected {shape}:{','.join(SHAPES[shape])} with lengths in metres above 0"
            raise ValueError(msg)
        return cls(shape, *numbers)

    @property
    def cylinder(self) -> "Surface":
        """Return the smallest upright cylinder around it; for a plane, the disc itself."""
        length = {"cylinder": self.length_m, "sphere": 2 * self.radius_m, "plane": 0.0}[self.shape]
        return Surface("cylinder" if length else "plane", self.radius_m, length)

    def crossings(self, point: Points, direction: Points) -> tuple[np.ndarray, np.ndarray]:
        """Return the distances along tracks from a point to the entry and to the exit; NaN for tracks that miss.

        Args:
            point: a point of each track.
            direction: the unit vector of flight of each track.
        """
        with np.errstate(divide="ignore", invalid="ignore"):
            if self.shape == "plane":
                entry = -point[:, 2] / direction[:, 2]
                inside = np.hypot(*(point + entry[:, None] * direction)[:, :2].T) <= self.radius_m
                entry = np.where(inside & np.isfinite(entry), entry, np.nan)
                return entry, entry
            flat = 2 if self.shape == "cylinder" else 3
            across = (direction[:, :flat] ** 2).sum(axis=1)
            half = (point[:, :flat] * direction[:, :flat]).sum(axis=1)
            rest = (point[:, :flat] ** 2).sum(axis=1) - self.radius_m**2
            root = np.sqrt(half**2 - across * rest)  # NaN if the track misses the round side.
            entry, leave = (-half - root) / across, (-half + root) / across
            if self.shape == "cylinder":
                # A vertical track is within the radius along its whole length, or nowhere.
                upright = across < 1e-24
                entry = np.where(upright, np.where(rest <= 0, -np.inf, np.nan), entry)
                leave = np.where(upright, np.where(rest <= 0, np.inf, np.nan), leave)
                tops = np.array([[-0.5], [0.5]]) * self.length_m
                ends = np.sort((tops - point[:, 2]) / direction[:, 2], axis=0)
                level = np.abs(direction[:, 2]) < 1e-12
                between = np.abs(point[:, 2]) <= self.length_m / 2
                low = np.where(level, np.where(between, -np.inf, np.nan), ends[0])
                high = np.where(level, np.where(between, np.inf, np.nan), ends[1])
                entry, leave = np.maximum(entry, low), np.minimum(leave, high)
            missed = ~(entry < leave)
        return np.where(missed, np.nan, entry), np.where(missed, np.nan, leave)


def place(
    ids: UInt64[np.ndarray, "events 2"], zenith_rad: Float64[np.ndarray, " events"], surface: Surface, seed: int
) -> tuple[Float64[np.ndarray, " events"], Points]:
    """Draw azimuth and axis of each shower, and return where the axis enters the cylinder around the surface.

    Args:
        ids: ids of the showers; seed and ids determine the place, so that it can be computed again.
        zenith_rad: zenith angles of the showers.
        surface: the surface around the detector.
        seed: seed of the draws.

    Returns:
        The azimuth of the point from which each shower comes, and the points of entry.
    """
    azimuth, cylinder = azimuths(ids, seed), surface.cylinder
    frame = axes(zenith_rad, azimuth)
    reach = np.hypot(cylinder.radius_m, cylinder.length_m / 2)
    entries, left = np.empty((len(ids), 3)), np.arange(len(ids))
    for attempt in range(MOST_ATTEMPTS):
        salted_ids = [salted(ids[left], f"{what} {seed} {attempt}") for what in ("core radius", "core angle")]
        radius, angle = reach * np.sqrt(split_coordinates(salted_ids[0])), 2 * np.pi * split_coordinates(salted_ids[1])
        x, y, flight = frame[left].transpose(1, 0, 2)
        point = radius[:, None] * (np.cos(angle)[:, None] * x + np.sin(angle)[:, None] * y)
        entry, _ = cylinder.crossings(point, flight)
        entries[left] = point + np.nan_to_num(entry)[:, None] * flight
        left = left[~np.isfinite(entry)]
        if not len(left):
            return azimuth, entries
    msg = (
        f"showers of {np.rad2deg(zenith_rad[left[0]]):.3g} degrees almost never reach the surface {surface.shape}: a "
        "horizontal plane is not reached by horizontal showers; narrow zenith_deg, or take a cylinder or a sphere"
    )
    raise ValueError(msg)


def at_entry(tracks: Tracks, surface: Surface) -> Tracks:
    """Move each track to its entry into the surface. Leave out muons that miss it, and events whose muons all miss it.

    The time changes by the flight at the speed of light; a muon of 10 GeV is slower by 6e-5.
    """
    entry, _ = surface.crossings(tracks.position_m, tracks.direction)
    kept = np.flatnonzero(np.isfinite(entry))
    counts = np.bincount(tracks.event[kept], minlength=len(tracks.counts))
    some = np.flatnonzero(counts)
    step = entry[kept]
    return Tracks(
        ids=tracks.ids[some],
        primaries=tracks.primaries[some],
        azimuth_rad=tracks.azimuth_rad[some],
        counts=counts[some],
        energy_gev=tracks.energy_gev[kept],
        position_m=tracks.position_m[kept] + step[:, None] * tracks.direction[kept],
        direction=tracks.direction[kept],
        t_ns=tracks.t_ns[kept] + step / C_M_PER_NS,
        charge=tracks.charge[kept],
    )
