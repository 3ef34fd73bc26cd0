"""Propagate muons from the surface into the ice: water equivalents of a track, and energy losses.

The loss is dE = -a dX - E dB with the amount of water X. B(X) is the sum of a steady part (the many soft radiative
losses) and of a gamma process, whose jumps are the rare hard losses. Its mean is b X. Its increments are independent,
so a muon that is followed from one depth to the next has the same distribution as one that is followed at once. Source
of a and b: Chirkin and Rhode (MMC), hep-ph/0407075, table 3 and fig. 21.
"""

import numpy as np

from crmuons.data.geometry import FloatArray, slant_depth_m

ICE_DENSITY = 0.917  # g/cm^3
FIRN_DENSITY = 0.832  # g/cm^3, mean of the top 200 m (MuonGun, IceCube)
FIRN_M = 200.0

IONISATION = 0.259  # a, GeV per metre of water
RADIATION = 0.363e-3  # b, per metre of water: mean of soft and hard losses together
# The part of b in losses that are too small to fluctuate, and the length of the gamma process in m of water. Both were
# fitted to `median_surface_energy_gev`.
SOFT_RADIATION = 0.15e-3
FLUCTUATION_LENGTH = 3_000.0


def water_equivalent_m(slant_m: FloatArray, cosine: FloatArray) -> FloatArray:
    """Return the metres of water that weigh as much as the firn and ice along `slant_m` metres of track."""
    firn = np.minimum(slant_m, slant_depth_m(np.full_like(cosine, FIRN_M), cosine))
    water: FloatArray = ICE_DENSITY * slant_m - (ICE_DENSITY - FIRN_DENSITY) * firn
    return water


def propagate(energy_gev: FloatArray, water_m: FloatArray, rng: np.random.Generator) -> FloatArray:
    """Draw the energies of muons after some metres of water.

    Args:
        energy_gev: energies before, [muons].
        water_m: metres of water equivalent on the way, [muons].
        rng: draws the radiative losses.

    Returns:
        Energies in GeV, [muons]; zero for muons that stopped.
    """
    hard = rng.standard_gamma(water_m / FLUCTUATION_LENGTH) * ((RADIATION - SOFT_RADIATION) * FLUCTUATION_LENGTH)
    radiated = SOFT_RADIATION * water_m + hard
    # With the losses spread evenly over the way: E' = (E + a/b) exp(-bX) - a/b with b = B/X; -expm1(-B)/B stays exact
    # as B -> 0.
    spread = np.ones_like(radiated)
    np.divide(-np.expm1(-radiated), radiated, out=spread, where=radiated > 0)
    return np.maximum(energy_gev * np.exp(-radiated) - IONISATION * water_m * spread, 0.0)


def least_surface_energy_gev(water_m: FloatArray, threshold_gev: float) -> FloatArray:
    """Return the energy below which no muon keeps `threshold_gev` over `water_m` metres, even without a hard loss."""
    floor = IONISATION / SOFT_RADIATION
    return (threshold_gev + floor) * np.exp(SOFT_RADIATION * water_m) - floor


def median_surface_energy_gev(ice_m: FloatArray) -> FloatArray:
    """Return the energy at which half of the muons keep 1 TeV over `ice_m` metres of ice: the reference for our losses.

    The formula is `minimum_muon_energy` of IceCube's self-veto code, a fit to MMC.
    """
    return 1e3 * np.exp(ice_m / 2_521.51 + ice_m**2 / 7.13834e8)
