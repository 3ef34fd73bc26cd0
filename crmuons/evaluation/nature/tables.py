"""Published intensities, energies, multiplicities and distances of muons, as numbers and formulas with source and error.

Depths are in km of water equivalent (1 km w.e. = 1e5 g/cm^2), intensities in 1 / (m^2 s sr), energies in GeV, distances
in m. An error is one standard deviation. If a source quotes no error, a comment says where our error comes from.
"""

import numpy as np
from scipy.interpolate import CubicSpline, PchipInterpolator
from scipy.special import zeta

from crmuons.data.geometry import FloatArray

# Muons through water on the vertical: the surface flux of daemonflux 202303_1 (arXiv:2303.00022, calibrated on
# spectrometers), followed by an independent propagator with single losses by bremsstrahlung, pairs and nuclear
# interactions on PUMAS's tables for water (CPC 279 (2022) 108438), 375,000 muons of 100 GeV to 3 PeV.
DEPTHS_KM = np.array([0.5, 0.75, 1.0, 1.25, 1.5, 1.75, 2.0, 2.5, 3.0, 3.5, 4.0, 4.5, 5.0, 5.5, 6.0, 6.5])
LEAST_GEV = np.array([1.0, 10.0, 30.0, 100.0])  # Each row below is for muons above this energy at the depth.
INTENSITY = np.array(
    [
        [5.3182e-2, 1.9192e-2, 8.8492e-3, 4.7148e-3, 2.7323e-3, 1.6956e-3, 1.1029e-3, 5.0403e-4, 2.5359e-4, 1.3669e-4,
         7.7062e-5, 4.4803e-5, 2.6706e-5, 1.6231e-5, 1.0019e-5, 6.2930e-6],
        [4.4999e-2, 1.6932e-2, 8.0710e-3, 4.3356e-3, 2.5321e-3, 1.5863e-3, 1.0348e-3, 4.7666e-4, 2.4187e-4, 1.3068e-4,
         7.3991e-5, 4.3094e-5, 2.5761e-5, 1.5658e-5, 9.6868e-6, 6.0570e-6],
        [3.2301e-2, 1.3260e-2, 6.5928e-3, 3.6568e-3, 2.1893e-3, 1.3890e-3, 9.1141e-4, 4.2831e-4, 2.2017e-4, 1.1915e-4,
         6.7967e-5, 3.9795e-5, 2.3846e-5, 1.4490e-5, 9.0627e-6, 5.6462e-6],
        [1.3502e-2, 6.7149e-3, 3.7087e-3, 2.2266e-3, 1.4123e-3, 9.2471e-4, 6.2621e-4, 3.0933e-4, 1.6373e-4, 9.1005e-5,
         5.2398e-5, 3.1083e-5, 1.8734e-5, 1.1484e-5, 7.2591e-6, 4.5754e-6],
    ]
)  # fmt: skip
MEAN_ENERGY = np.array(
    [
        [91.96, 127.8, 161.1, 190.7, 218.9, 243.4, 265.3, 309.4, 347.2, 377.7, 403.8, 426.7, 447.5, 465.7, 482.5, 494.6],
        [107.7, 144.1, 176.1, 206.9, 235.7, 259.8, 282.4, 326.8, 363.8, 394.9, 420.4, 443.4, 463.7, 482.5, 498.9, 513.7],
        [142.6, 178.7, 211.3, 241.8, 269.6, 294.0, 317.9, 361.5, 397.7, 431.2, 455.8, 478.6, 499.4, 519.8, 531.9, 549.7],
        [260.6, 295.2, 328.8, 358.1, 384.1, 410.4, 434.4, 476.8, 513.1, 545.3, 572.6, 595.3, 618.7, 639.4, 648.6, 663.6],
    ]
)  # fmt: skip
# daemonflux's own error, folded with the same losses.
FLUX_ERROR = np.array(
    [0.0267, 0.0292, 0.0311, 0.0326, 0.0339, 0.0351, 0.0361, 0.0380, 0.0397, 0.0411, 0.0424, 0.0437, 0.0449, 0.0460,
     0.0470, 0.0480]
)  # fmt: skip
LOSS_ERROR_PER_KM = 0.01  # From 1 % of b: b is 0.36 per km w.e., and the flux above E falls as E^-2.7 or faster.
MEAN_ENERGY_ERROR = 0.025  # From errors of 1 % of b and of 0.03 of the surface flux's index.

# The intensity in water divided by the intensity in standard rock, with the same flux and propagator.
ROCK_KM = np.array([0.5, 0.6, 0.8, 1.0, 1.25, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 6.0])
WATER_OVER_ROCK = np.array(
    [0.7688, 0.7737, 0.7840, 0.7994, 0.8187, 0.8383, 0.8829, 0.9519, 1.0258, 1.1944, 1.4069, 1.7143]
)

# MUTE v3.0.0 (arXiv:2109.11559), tests/test_intensities.py: daemonflux and PROPOSAL, standard rock, 0.5 km w.e. below a
# flat surface, against the slant depth; per m^2.
MUTE_KM = np.linspace(0.5, 14.0, 28)
MUTE = 1e4 * np.array(
    [6.94919658e-06, 1.80906517e-06, 7.24444624e-07, 3.32127337e-07, 1.70705322e-07, 9.22534290e-08, 5.07858934e-08,
     2.85312282e-08, 1.63857159e-08, 9.51599387e-09, 5.56572979e-09, 3.27576784e-09, 1.89893763e-09, 1.10476908e-09,
     6.45823164e-10, 3.79235329e-10, 2.23574504e-10, 1.31776529e-10, 7.82436124e-11, 4.62467535e-11, 2.74526405e-11,
     1.62848533e-11, 9.64117005e-12, 5.71209783e-12, 3.39018880e-12, 2.00295030e-12, 1.17807861e-12, 6.95181479e-13]
)  # fmt: skip
# From daemonflux's 3 to 4 %, the interpolation, and the ratio of water to rock, which is for the vertical spectrum.
MUTE_ERROR = 0.05
MUTE_VERTICAL_KM = 0.5

# Vertical surface flux of daemonflux: E^3 times mu+ + mu- in GeV^2 / (cm^2 s sr), and its relative error.
SURFACE_GEV = np.array([1e2, 150.0, 2e2, 3e2, 5e2, 7e2, 1e3, 2e3, 3e3, 5e3, 7e3, 1e4, 2e4, 5e4])
SURFACE_E3 = np.array(
    [0.24743, 0.24207, 0.23134, 0.21054, 0.17872, 0.15675, 0.13361, 0.093334, 0.073729, 0.053634, 0.043099, 0.033994,
     0.021214, 0.011265]
)  # fmt: skip
SURFACE_ERROR = np.array(
    [0.022, 0.024, 0.026, 0.028, 0.031, 0.034, 0.036, 0.040, 0.043, 0.046, 0.049, 0.051, 0.055, 0.061]
)

# DUMAND, sea water: Babson et al., PRD 42 (1990) 3613, abstract: depth, intensity and error, per m^2.
DUMAND = ((2.090, 9.84e-4, 6.5e-4), (4.157, 4.57e-5, 1.37e-5))

MUPAGE_KM = (1.5, 5.0)  # Where MUPAGE's formulas hold; they were fitted to HEMAS and MUSIC in water.
# MUPAGE quotes no error of the intensity. Our error is the spread of its table around daemonflux through water.
MUPAGE_INTENSITY_ERROR = 0.1
MULTIPLICITY_ERROR = 0.05  # compare.py combines it with half of the difference between MUPAGE and MuonGun.
DISTANCE_ERROR = 0.1  # MACRO quotes 20 % for the difference between models. We take this as two standard deviations.
# Mean distance of two muons in a bundle of 2 to 10, from MUPAGE's radii for independent muons, vertical.
PAIR_KM = np.array([1.5, 1.767, 2.0, 2.5, 3.0, 4.0, 5.0])
PAIR_DISTANCE = np.array([22.25, 18.59, 16.25, 12.77, 10.49, 7.727, 6.109])


def _by_depth(table: FloatArray, water_km: FloatArray, least_gev: float) -> FloatArray:
    """Interpolate a positive table in the depth, and between the energies of its rows."""
    row = np.interp(np.log(least_gev), np.log(LEAST_GEV), np.arange(len(LEAST_GEV)))
    low = min(int(row), len(LEAST_GEV) - 2)
    values = np.exp((1 + low - row) * np.log(table[low]) + (row - low) * np.log(table[low + 1]))
    interpolated: FloatArray = np.exp(PchipInterpolator(DEPTHS_KM, np.log(values))(water_km))
    return interpolated


def vertical_intensity(water_km: FloatArray, least_gev: float) -> FloatArray:
    """Return the vertical intensity of muons above an energy (1 to 100 GeV) below 0.5 to 6.5 km of water."""
    return _by_depth(INTENSITY, water_km, least_gev)


def vertical_error(water_km: float) -> float:
    """Return the relative error of `vertical_intensity`."""
    return float(np.hypot(np.interp(water_km, DEPTHS_KM, FLUX_ERROR), LOSS_ERROR_PER_KM * water_km))


def mean_energy(water_km: FloatArray, least_gev: float) -> FloatArray:
    """Return the mean energy of the muons above an energy on the vertical; its error is MEAN_ENERGY_ERROR."""
    return _by_depth(MEAN_ENERGY, water_km, least_gev)


def water_over_rock(water_km: FloatArray) -> FloatArray:
    """Return the intensity in water over the one in standard rock, below the same mass."""
    ratio: FloatArray = np.exp(np.interp(water_km, ROCK_KM, np.log(WATER_OVER_ROCK)))
    return ratio


def slant_intensity_in_rock(slant_km: FloatArray) -> FloatArray:
    """Return MUTE's intensity in standard rock at a slant depth, 0.5 km w.e. below the surface, above 1 GeV."""
    intensity: FloatArray = np.exp(CubicSpline(np.log(MUTE_KM), np.log(MUTE))(np.log(slant_km)))
    return intensity


def mei_hime(water_km: FloatArray) -> FloatArray:
    """Return the vertical intensity in standard rock that Mei and Hime fitted to measurements of 1 to 8 km w.e.

    PRD 73 (2006) 053004, eq. 1.
    """
    intensity: FloatArray = 1e4 * (8.60e-6 * np.exp(-water_km / 0.45) + 0.44e-6 * np.exp(-water_km / 0.87))
    return intensity


def surface_intensity(low_gev: float, high_gev: float) -> tuple[float, float]:
    """Return the vertical intensity of muons between two energies at sea level, and its error."""
    energy = np.geomspace(low_gev, high_gev, 201)
    flux = np.exp(np.interp(np.log(energy), np.log(SURFACE_GEV), np.log(SURFACE_E3))) / energy**3 * 1e4
    intensity = float(np.trapezoid(flux, energy))
    return intensity, intensity * float(np.interp(low_gev, SURFACE_GEV, SURFACE_ERROR))


def bundle_intensity(
    num_muons: FloatArray, vertical_km: FloatArray, cosine: FloatArray, *, muongun: bool = False
) -> FloatArray:
    """Return the intensity of bundles of m muons in water, per unit area across the track.

    Becherini, Margiotta, Sioli, Spurio, hep-ph/0507228, with the constants of MUPAGE v3r4 (CPC 179 (2008) 915).

    Args:
        num_muons: m.
        vertical_km: vertical depth, 1.5 to 5 km w.e.
        cosine: cosine of the zenith angle.
        muongun: take the exponent of m from IceCube's MuonGun, which fitted the same form to CORSIKA.
    """
    rate, power = _bundle_terms(vertical_km, cosine, muongun=muongun)
    intensity: FloatArray = rate / num_muons**power
    return intensity


def all_bundles(vertical_km: FloatArray, cosine: FloatArray) -> FloatArray:
    """Return MUPAGE's intensity of muons in bundles of any size: the sum of m times `bundle_intensity`."""
    rate, power = _bundle_terms(vertical_km, cosine, muongun=False)
    intensity: FloatArray = rate * zeta(power - 1)
    return intensity


def _bundle_terms(h: FloatArray, cosine: FloatArray, *, muongun: bool) -> tuple[FloatArray, FloatArray]:
    """Return the intensity of single muons, and the power of 1 / m."""
    rate = 0.0072 * h**-1.927 * cosine * np.exp((-0.581 * h + 0.034) / cosine)
    if muongun:
        return rate, (0.01041 * h**2 + 0.09912 * h + 2.712) * np.exp(0.01615 * np.exp(0.6010 * h) / cosine)
    return rate, (-0.0771 * h**2 + 0.524 * h + 2.068) * np.exp(0.03 * np.exp(0.47 * h) / cosine)


def mean_radius(num_muons: FloatArray, vertical_km: FloatArray, zenith_rad: FloatArray) -> FloatArray:
    """Return MUPAGE's mean distance from the axis of the muons in a bundle of two or more."""
    m = np.minimum(num_muons, 4)
    radius: FloatArray = (-1.786 * m + 28.26) * vertical_km**-1.06 / (np.exp((zenith_rad - 1.3) * 10.4) + 1)
    return radius


def pair_distance(vertical_km: FloatArray) -> FloatArray:
    """Return the mean distance of two muons in a vertical bundle of 2 to 10."""
    distance: FloatArray = np.exp(np.interp(np.log(vertical_km), np.log(PAIR_KM), np.log(PAIR_DISTANCE)))
    return distance
