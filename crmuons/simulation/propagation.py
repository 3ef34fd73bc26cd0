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

# Fitted together to survival, mean and median energy of muons of 100 GeV to 1 PeV after 0.5 to 6 km of water, as followed
# step by step with a(E), b(E) of PUMAS's tables and the usual shapes of stochastic losses; docs/simulator.md says how well.
IONISATION = 0.268  # a, GeV per metre of water
SOFT_RADIATION = 0.172e-3  # The part of b, per metre of water, in losses that are too small to fluctuate.
HARD_RADIATION = 0.180e-3  # The mean of the gamma process, per metre of water.
FLUCTUATION_LENGTH = 2_517.0  # Length of the gamma process in m of water.


# Multiple scattering: 13.6 MeV (1 + 0.038 ln(X / X0)), PDG, Passage of particles through matter, eq. 34.16, for 2 km.
SCATTERING_GEV = 13.6e-3 * 1.33
RADIATION_LENGTH = 0.3608  # X0, m of water (PDG).


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
    hard = rng.standard_gamma(water_m / FLUCTUATION_LENGTH) * (HARD_RADIATION * FLUCTUATION_LENGTH)
    radiated = SOFT_RADIATION * water_m + hard
    # With the losses spread evenly over the way: E' = (E + a/b) exp(-bX) - a/b with b = B/X; -expm1(-B)/B stays exact
    # as B -> 0.
    spread = np.ones_like(radiated)
    np.divide(-np.expm1(-radiated), radiated, out=spread, where=radiated > 0)
    return np.maximum(energy_gev * np.exp(-radiated) - IONISATION * water_m * spread, 0.0)


def scatter(
    before_gev: FloatArray, after_gev: FloatArray, water_m: FloatArray, rng: np.random.Generator
) -> tuple[FloatArray, FloatArray]:
    """Draw how multiple scattering moves and turns muons on their way.

    The angle grows by (18.1 MeV / E)^2 per radiation length, and E falls evenly along the way. Displacement and angle of
    a muon belong together.

    Args:
        before_gev, after_gev: energies at both ends, [muons]; after_gev is more than 0.
        water_m: metres of water equivalent on the way, more than 0, [muons].
        rng: draws the scattering.

    Returns:
        Displacements across the track in metres of water, and angles, each [2, muons].
    """
    scale = SCATTERING_GEV**2 / RADIATION_LENGTH
    water_m = np.maximum(water_m, 1e-9)  # Two depths may be the same.
    ratio = after_gev / before_gev
    # Moments of u^k / E(u)^2 over the distance u from the end, for E(u) = E' + (E - E') u / X, in units of E and X.
    lost = np.maximum(1 - ratio, 1e-3)
    ratio = 1 - lost
    log = -np.log(ratio)
    turn = scale * water_m / (before_gev * after_gev)
    mixed = scale * (water_m / before_gev) ** 2 * (log + ratio - 1) / lost**2
    move = scale * (water_m / before_gev) ** 2 * water_m * (1 - 2 * ratio * log - ratio**2) / lost**3
    first, second = rng.standard_normal((2, 2, len(before_gev)), dtype=np.float32)
    correlated = mixed / np.sqrt(turn)
    angle = np.sqrt(turn) * first
    shift = correlated * first + np.sqrt(np.maximum(move - correlated**2, 0.0)) * second
    return shift, angle


def least_surface_energy_gev(water_m: FloatArray, threshold_gev: float) -> FloatArray:
    """Return the energy below which no muon keeps `threshold_gev` over `water_m` metres, even without a hard loss."""
    floor = IONISATION / SOFT_RADIATION
    return (threshold_gev + floor) * np.exp(SOFT_RADIATION * water_m) - floor


def median_surface_energy_gev(ice_m: FloatArray) -> FloatArray:
    """Return the energy at which half of the muons keep 1 TeV over `ice_m` metres of ice: the reference for our losses.

    The formula is `minimum_muon_energy` of IceCube's self-veto code, a fit to MMC.
    """
    return 1e3 * np.exp(ice_m / 2_521.51 + ice_m**2 / 7.13834e8)
