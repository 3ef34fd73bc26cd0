"""Compute the slant depth of a point in the ice below a curved surface."""

import numpy as np
from jaxtyping import Float

from crmuons.data.events import EventArrays

FloatArray = Float[np.ndarray, "..."]

EARTH_RADIUS_M = 6_371_315.0  # At sea level at the South Pole; the value of IceCube's self-veto code.
ICE_SURFACE_M = 2_835.0  # Altitude of the surface of the ice at the South Pole.


def slant_depth_m(vertical_depth_m: FloatArray, cosine: FloatArray, altitude_m: float = ICE_SURFACE_M) -> FloatArray:
    """Compute the distance along the track from the surface to a vertical depth, over a round Earth.

    With the radius R of the surface and r = R - d: slant = sqrt(R^2 - r^2 sin^2) - r cos. The code writes
    R^2 - r^2 sin^2 as 2 R d + r^2 cos^2 - d^2, which does not subtract large numbers.

    Args:
        vertical_depth_m: depth d of the point below the surface.
        cosine: cosine of the zenith angle at that point.
        altitude_m: altitude of the surface above sea level.

    Returns:
        The slant depth in metres, in the common shape of the first two arguments.
    """
    radius = EARTH_RADIUS_M + altitude_m
    below = radius - vertical_depth_m
    square = 2 * radius * vertical_depth_m + (cosine * below) ** 2 - vertical_depth_m**2
    slant: FloatArray = np.sqrt(square) - below * cosine
    return slant


def with_slant_depth(events: EventArrays) -> EventArrays:
    """Return the events with their vertical depths replaced by slant depths."""
    primaries = events.primaries.copy()
    zenith, depth = primaries[:, 1].astype(np.float64), primaries[:, 3].astype(np.float64)
    primaries[:, 3] = slant_depth_m(depth, np.cos(zenith))
    return EventArrays(events.ids, primaries, events.counts, events.muons)
