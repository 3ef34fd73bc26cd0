"""Propagate muons from the surface into ice, water or rock: water equivalents of a track, and energy losses.

The loss is dE = -a dX - E dB with the amount of water X. B(X) is the sum of a steady part (the many soft radiative
losses) and of a gamma process, whose jumps are the rare hard losses. Its mean is b X. Its increments are independent,
so a muon that is followed from depth to depth has the same distribution as a muon that is followed in one step. The
form is from Chirkin and Rhode (MMC), hep-ph/0407075; a and b are fitted to losses on PUMAS's tables. `Medium` has the
differences between ice, water and rock.
"""

from dataclasses import dataclass

import numpy as np

from crmuons.data.geometry import ICE_SURFACE_M, FloatArray, slant_depth_m

ICE_DENSITY = 0.917  # g/cm^3
FIRN_DENSITY = 0.832  # g/cm^3, mean of the top 200 m (MuonGun, IceCube)
FIRN_M = 200.0

# These four were fitted together to survival, mean and median energy of muons of 100 GeV to 1 PeV after 0.5 to 6 km of
# water. The reference follows muons step by step with a(E), b(E) of PUMAS's tables and the usual shapes of stochastic losses;
# docs/simulator.md gives the agreement.
IONISATION = 0.268  # a, GeV per metre of water
SOFT_RADIATION = 0.172e-3  # The part of b, per metre of water, in losses that are too small to fluctuate.
HARD_RADIATION = 0.180e-3  # The mean of the gamma process, per metre of water.
FLUCTUATION_LENGTH = 2_517.0  # Length of the gamma process in m of water.


# Multiple scattering: 13.6 MeV (1 + 0.038 ln(X / X0)), PDG, Passage of particles through matter, eq. 34.16, for 2 km.
SCATTERING_GEV = 13.6e-3 * 1.33
RADIATION_LENGTH = 0.3608  # X0, m of water (PDG).


@dataclass(frozen=True)
class Medium:
    """The matter above the depths: its density, its energy losses, and the altitude of its surface.

    Losses are per metre of water equivalent (100 g/cm^2), for muons of 100 GeV to 100 TeV.

    Attributes:
        density: g/cm^3.
        surface_m: altitude of the surface above sea level, for simulated showers.
        least_depth_m: vertical depth that muons of 130 GeV reach; the yield formula holds from 100 GeV.
        firn_density, firn_m: density and depth of the topmost layer; 0 if there is none.
        ionisation: a in GeV/m.
        soft_radiation: the steady part of b in 1/m.
        hard_radiation: the mean of the gamma process in 1/m; b is the sum of both.
        fluctuation_length: length of the gamma process in m.
        radiation_length: X0 in m, for multiple scattering.
    """

    density: float
    surface_m: float
    least_depth_m: float
    firn_density: float = 0.0
    firn_m: float = 0.0
    ionisation: float = IONISATION
    soft_radiation: float = SOFT_RADIATION
    hard_radiation: float = HARD_RADIATION
    fluctuation_length: float = FLUCTUATION_LENGTH
    radiation_length: float = RADIATION_LENGTH


MEDIA = {
    "ice": Medium(ICE_DENSITY, ICE_SURFACE_M, 500.0, firn_density=FIRN_DENSITY, firn_m=FIRN_M),
    # Water has the same molecules as ice: a and b per g/cm^2 differ by less than 1 % in the same tables.
    "water": Medium(density=1.0, surface_m=0.0, least_depth_m=450.0),
    "rock": Medium(
        density=2.65,
        surface_m=0.0,
        least_depth_m=200.0,
        # Standard rock (Z = 11, A = 22), fitted like water, with the tables of Groom, Mokhov and Striganov (At. Data Nucl.
        # Data Tables 78 (2001) 183) for rock. In these tables rock has 0.88 times water's a and 1.31 times its b at 1 to 10
        # TeV. Water's constants times these ratios give 0.86 to 0.94 of the intensity. MMC's constants are 0.223 GeV/m and
        # 0.463e-3/m.
        ionisation=0.228,
        soft_radiation=0.218e-3,
        hard_radiation=0.248e-3,
        fluctuation_length=1_912.0,
        radiation_length=0.2654,  # PDG, standard rock.
    ),
}
ICE = MEDIA["ice"]


def water_equivalent_m(slant_m: FloatArray, cosine: FloatArray, medium: Medium = ICE) -> FloatArray:
    """Return the metres of water that have the same mass per area as the matter along `slant_m` metres of track."""
    if not medium.firn_m:
        return medium.density * slant_m
    firn = np.minimum(slant_m, slant_depth_m(np.full_like(cosine, medium.firn_m), cosine))
    water: FloatArray = medium.density * slant_m - (medium.density - medium.firn_density) * firn
    return water


def propagate(
    energy_gev: FloatArray, water_m: FloatArray, rng: np.random.Generator, medium: Medium = ICE
) -> FloatArray:
    """Draw the energies of muons after some metres of water.

    Args:
        energy_gev: energies before, [muons].
        water_m: metres of water equivalent on the way, [muons].
        rng: draws the radiative losses.
        medium: what the muons pass.

    Returns:
        Energies in GeV, [muons]; zero for muons that stopped.
    """
    length = medium.fluctuation_length
    # Single precision takes half of the time of double precision, and is exact enough.
    hard = rng.standard_gamma((water_m / length).astype(np.float32), dtype=np.float32)
    radiated = medium.soft_radiation * water_m + hard * (medium.hard_radiation * length)
    # With losses spread evenly over the way, E' = (E + a/b) exp(-bX) - a/b with b = B/X. B is more than 1e-7 for the
    # shortest way, a millimetre, so 1 - exp(-B) is exact enough. On a way of length 0 nothing is lost.
    kept = np.exp(-radiated)
    spread = (1 - kept) / np.maximum(radiated, 1e-30)
    return np.maximum(energy_gev * kept - medium.ionisation * water_m * spread, 0.0)


def scatter(
    before_gev: FloatArray,
    after_gev: FloatArray,
    water_m: FloatArray,
    rng: np.random.Generator,
    medium: Medium = ICE,
) -> tuple[FloatArray, FloatArray]:
    """Draw how multiple scattering moves and turns muons on their way.

    The square of the angle grows by (18.1 MeV / E)^2 per radiation length, and E falls evenly along the way. Displacement
    and angle of a muon are correlated.

    Args:
        before_gev: energies at the beginning of the way, [muons].
        after_gev: energies at its end, more than 0, [muons].
        water_m: metres of water equivalent on the way, more than 0, [muons].
        rng: draws the scattering.
        medium: what the muons pass through.

    Returns:
        Displacements across the track in metres of water, and angles, each [2, muons].
    """
    water_m = np.maximum(water_m.astype(np.float32), 1e-9)  # Two depths may be the same.
    ratio = (after_gev / before_gev).astype(np.float32)
    # Moments of u^k / E(u)^2 over the distance u from the end, for E(u) = E' + (E - E') u / X, in units of E and X. In
    # single precision the differences are exact to 1 % for a loss of 3 % or more; for smaller losses they hardly change.
    lost = np.maximum(1 - ratio, np.float32(0.03))
    ratio = 1 - lost
    log = -np.log(ratio)
    unit = (SCATTERING_GEV / np.sqrt(medium.radiation_length)) * np.sqrt(water_m) / before_gev.astype(np.float32)
    angle_scale = unit / np.sqrt(ratio)
    mixed = (log + ratio - 1) / lost**2 * np.sqrt(ratio)
    move = (1 - 2 * ratio * log - ratio**2) / lost**3
    first, second = rng.standard_normal((2, 2, len(before_gev)), dtype=np.float32)
    shift = (unit * water_m) * (mixed * first + np.sqrt(np.maximum(move - mixed**2, 0.0)) * second)
    return shift, angle_scale * first


def least_surface_energy_gev(water_m: FloatArray, threshold_gev: float, medium: Medium = ICE) -> FloatArray:
    """Return the energy below which no muon keeps `threshold_gev` over `water_m` metres, even without a hard loss."""
    floor = medium.ionisation / medium.soft_radiation
    return (threshold_gev + floor) * np.exp(medium.soft_radiation * water_m) - floor


def mean_surface_energy_gev(water_m: FloatArray, threshold_gev: float, medium: Medium = ICE) -> FloatArray:
    """Return the energy of a muon that keeps `threshold_gev` over `water_m` metres if it has the mean losses."""
    radiation = medium.soft_radiation + medium.hard_radiation
    floor = medium.ionisation / radiation
    return (threshold_gev + floor) * np.exp(radiation * water_m) - floor


def complete_water_m(surface_gev: float, threshold_gev: float, medium: Medium = ICE) -> float:
    """Return the metres of water over which no muon below `surface_gev` keeps `threshold_gev`; 0 if there are none."""
    floor = medium.ionisation / medium.soft_radiation
    return max(float(np.log((surface_gev + floor) / (threshold_gev + floor))) / medium.soft_radiation, 0.0)


def median_surface_energy_gev(ice_m: FloatArray) -> FloatArray:
    """Return the energy from which half of the muons keep 1 TeV over `ice_m` metres of ice: a reference for our losses.

    The formula is `minimum_muon_energy` of IceCube's self-veto code, a fit to MMC.
    """
    return 1e3 * np.exp(ice_m / 2_521.51 + ice_m**2 / 7.13834e8)
