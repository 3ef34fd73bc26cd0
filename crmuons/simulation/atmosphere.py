"""Describe the atmosphere above a site: the height of an amount of air, and the path from there to the surface."""

import numpy as np

from crmuons.data.geometry import EARTH_RADIUS_M, FloatArray

# These two give the heights of the US standard atmosphere within 3 % for 8 .. 150 g/cm^2, where muons are made.
SCALE_HEIGHT_M = 6_900.0
AIR_AT_SEA_LEVEL = 1_030.0  # g/cm^2

BIRTH_AIR = 100.0  # g/cm^2 above the place where a typical muon is born, along its track.
AIR_LOSS = 2.2e-3  # GeV per g/cm^2 of air, for a muon of 100 GeV (PDG, Atomic and Nuclear Properties: 2.2 to 2.4).
MUON_MASS_GEV, MUON_LIFETIME_M = 0.1056584, 658.64  # c tau (PDG).
# The magnetic field of the South Pole in T, as in the CORSIKA files with which docs/simulator.md compares.
FIELD_HORIZONTAL, FIELD_VERTICAL = 16.811e-6, 51.890e-6
BENDING = 0.299792458  # GeV per T and m: a momentum over field times radius of curvature.

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
    square = rise_m * (2 * radius + rise_m)
    # This is sqrt(c^2 + s) - c without the difference of large numbers, so single precision is enough.
    path: FloatArray = square / (np.sqrt((radius * cosine) ** 2 + square) + radius * cosine)
    return path


def air_loss_gev(cosine: FloatArray, altitude_m: float) -> FloatArray:
    """Return the energy that a muon loses between its birth and a site.

    Args:
        cosine: cosine of the zenith angle at the site.
        altitude_m: altitude of the site above sea level.
    """
    above_site = AIR_AT_SEA_LEVEL * np.exp(-altitude_m / SCALE_HEIGHT_M)
    return AIR_LOSS * np.maximum(above_site / effective_cosine(cosine) - BIRTH_AIR, 0.0)


def typical_path_m(cosine: FloatArray, altitude_m: float) -> FloatArray:
    """Return the length of the track from the typical place of birth of a muon to a site.

    Args:
        cosine: cosine of the zenith angle at the site.
        altitude_m: altitude of the site above sea level.
    """
    rise = np.maximum(height_m(BIRTH_AIR * effective_cosine(cosine)) - altitude_m, 0.0)
    return path_m(rise, cosine, altitude_m)


def survival(energy_gev: FloatArray, length_m: FloatArray) -> FloatArray:
    """Return the probability that a muon with this mean energy does not decay on a path of `length_m` metres."""
    return np.exp(-length_m * (MUON_MASS_GEV / MUON_LIFETIME_M) / energy_gev)


def transverse_field(cosine: FloatArray, azimuth_rad: FloatArray) -> FloatArray:
    """Return the part of the Earth's magnetic field in T across a track.

    Args:
        cosine: cosine of the zenith angle.
        azimuth_rad: angle between the horizontal directions of the track and of the field.
    """
    along = FIELD_VERTICAL * cosine + FIELD_HORIZONTAL * np.sqrt(1 - cosine**2) * np.cos(azimuth_rad)
    return np.sqrt(FIELD_VERTICAL**2 + FIELD_HORIZONTAL**2 - along**2)
