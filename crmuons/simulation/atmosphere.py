"""Describe the atmosphere above a site: the height of an amount of air, and the path from there to the surface."""

import numpy as np

from crmuons.data.geometry import EARTH_RADIUS_M, FloatArray

# Both together give the heights of the US standard atmosphere within 3 % for 8 .. 150 g/cm^2, where muons are made.
SCALE_HEIGHT_M = 6_900.0
AIR_AT_SEA_LEVEL = 1_030.0  # g/cm^2

# Coefficients of `effective_cosine`: Chirkin, hep-ph/0407078.
_CHIRKIN = (0.102573, -0.068287, 0.958633, 0.0407253, 0.817285)


def effective_cosine(cosine: FloatArray) -> FloatArray:
    """Return the cosine of the zenith angle at the height where muons are made, for a curved atmosphere.

    Chirkin, hep-ph/0407078.

    Args:
        cosine: cosine of the zenith angle at the surface.
    """
    p0, p1, p2, p3, p4 = _CHIRKIN
    square = (cosine**2 + p0**2 + p1 * cosine**p2 + p3 * cosine**p4) / (1 + p0**2 + p1 + p3)
    return np.sqrt(square)


def height_m(vertical_air: FloatArray) -> FloatArray:
    """Return the height above sea level with `vertical_air` g/cm^2 of air above it, in an isothermal atmosphere."""
    return SCALE_HEIGHT_M * np.log(AIR_AT_SEA_LEVEL / vertical_air)


def path_m(rise_m: FloatArray, cosine: FloatArray, altitude_m: float) -> FloatArray:
    """Return the length of a straight line from a site to a point `rise_m` higher, above a round Earth.

    Args:
        rise_m: height of the point above the site.
        cosine: cosine of the zenith angle at the site.
        altitude_m: altitude of the site above sea level.
    """
    radius = EARTH_RADIUS_M + altitude_m
    return np.sqrt((radius * cosine) ** 2 + rise_m * (2 * radius + rise_m)) - radius * cosine
