"""The atmosphere above a site: where a slant depth of air lies, and how far from there to the detector's surface."""

import numpy as np

from crmuons.data.geometry import EARTH_RADIUS_M, FloatArray

SCALE_HEIGHT_M = 6_900.0  # With the next: US standard heights within 3 % for 8 .. 150 g/cm^2, where muons are made.
AIR_AT_SEA_LEVEL = 1_030.0  # g/cm^2

# Chirkin, hep-ph/0407078: the cosine of the zenith at the height of production, for a curved atmosphere.
_CHIRKIN = (0.102573, -0.068287, 0.958633, 0.0407253, 0.817285)


def effective_cosine(cosine: FloatArray) -> FloatArray:
    """Cosine of the zenith where muons are made; `cosine` is the one at the surface (Chirkin, hep-ph/0407078)."""
    p0, p1, p2, p3, p4 = _CHIRKIN
    square = (cosine**2 + p0**2 + p1 * cosine**p2 + p3 * cosine**p4) / (1 + p0**2 + p1 + p3)
    return np.sqrt(square)


def height_m(vertical_air: FloatArray) -> FloatArray:
    """Height above sea level below which the air above weighs `vertical_air` g/cm^2, in an isothermal atmosphere."""
    return SCALE_HEIGHT_M * np.log(AIR_AT_SEA_LEVEL / vertical_air)


def path_m(rise_m: FloatArray, cosine: FloatArray, altitude_m: float) -> FloatArray:
    """Length of a straight line from a site up to a point `rise_m` higher, over a round Earth.

    Args:
        rise_m: height of the point above the site.
        cosine: cosine of the zenith at the site.
        altitude_m: of the site above sea level.
    """
    radius = EARTH_RADIUS_M + altitude_m
    return np.sqrt((radius * cosine) ** 2 + rise_m * (2 * radius + rise_m)) - radius * cosine
