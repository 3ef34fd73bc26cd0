"""Draw the high-energy muons of air showers at the surface: their number, energies and distances from the axis.

`yields` gives their mean number. Some constants were fitted to real CORSIKA 7 showers, and their comments say so;
docs/simulator.md describes the fit and its check.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Int64
from scipy.special import gammaincinv, ndtr

from crmuons.data.geometry import FloatArray
from crmuons.simulation.atmosphere import (
    BENDING,
    air_loss_gev,
    effective_cosine,
    height_m,
    path_m,
    survival,
    transverse_field,
    typical_path_m,
)
from crmuons.simulation.yields import CONVENTIONAL, INVERSES, PROMPT, decay_probability, split_most_muons

PROTON_MASS_GEV = 0.938272
ATOMIC_MASS_UNIT_GEV = 0.931494


# Shower-to-shower fluctuations: N is Poisson around the mean times a gamma factor of shape k = K1 A^KA, fitted to
# CORSIKA. Pure superposition would give KA = 1, but the nucleons of a fragment interact together.
GAMMA_SHAPE, GAMMA_MASS_POWER = 11.3, 0.59
# Rank correlation of this factor with the height of the first interaction: in thin air more pions decay. It is 0.49 for
# CORSIKA's protons.
HEIGHT_CORRELATION = 0.5
# The spectrum of a shower is S(E)^t: S is the survival function from the yield, and t is gamma distributed with this
# shape. The spectral index then has a spread of 5 %, as in CORSIKA.
TILT_SHAPE = 400.0

# Depth of the first interaction in g/cm^2: exponential with mean 55 A^-0.35, from the heights in CORSIKA's event
# headers. A nucleon of a nucleus travels on in a fragment to its own interaction, which is on average as deep as a
# proton's interaction.
INTERACTION_LENGTH, INTERACTION_MASS_POWER = 55.0, 0.35
# A muon of energy E_N / 10^l is born deeper by a further exponential with mean C l^p. The constants were fitted, together
# with <pT> and the hard share, to the distribution of E r at 1 TeV.
CASCADE_LENGTH, CASCADE_POWER = 2.47, 2.15
# Transverse momentum: pT exp(-2 pT / <pT>), where <pT> = 0.228 GeV (1 + x^(1/6)) rises for leading particles (the
# "seagull effect"). A few in a hundred follow the power law of hard scattering.
MEAN_PT_GEV, PT_RISE, PT_RISE_POWER = 0.228, 1.0, 1 / 6
HARD_SHARE, HARD_PT_GEV, HARD_POWER = 0.02, 1.0, 4.0  # P(>pT) = (pT / 1 GeV)^-4 for this share
POSITIVE_SHARE = 0.57  # mu+ : mu- = 1.32, between 1.27 at 100 GeV and 1.37 at 1 TeV (MINOS, arXiv:0705.3815).
# The ratio of positive to negative muons rises with the energy, because more muons come from kaons. Positive shares of the
# muons of pions and of kaons, the ratio of kaons to pions, and the critical energies of both (OPERA, arXiv:1403.0244, eq. 6
# and its fit).
PION_POSITIVE, KAON_POSITIVE, KAONS_PER_PION, RATIO_CRITICAL_GEV = 0.5512, 0.705, 0.054, (115.0, 850.0)
# Mean of x over the muons of the flux above 1 TeV, with x = 0 for muons of nuclei other than protons: 0.159 +- 0.001 with
# Gaisser's H3a (0.167 above 100 GeV, 0.159 above 5 TeV). Division by it keeps the ratio of the flux. Only protons make an
# excess of mu+ (Gaisser, arXiv:1111.6675).
PROTON_X_OF_FLUX = 0.16
LIGHT_M_PER_NS = 0.299792458
MUON_MASS_GEV = 0.105658
LEAST_RISE_M = 100.0  # Lowest height above the surface at which a muon is born.


def mass_gev(mass_number: FloatArray) -> FloatArray:
    """Return the mass of a nucleus: the proton's, or A atomic mass units (exact to 0.2 %)."""
    return np.where(mass_number == 1, PROTON_MASS_GEV, ATOMIC_MASS_UNIT_GEV * mass_number)


def mass_number(mass_gev: FloatArray) -> FloatArray:
    """Return the number of nucleons in a nucleus of this mass."""
    return np.round(mass_gev / ATOMIC_MASS_UNIT_GEV)


def gamma_shape(mass_number: FloatArray) -> FloatArray:
    """Return the shape k of the gamma factor that all muons of a shower share: Var N = mu + mu^2 / k."""
    return GAMMA_SHAPE * mass_number**GAMMA_MASS_POWER


@dataclass(frozen=True)
class Showers:
    """Showers at the surface and their muons, grouped by shower.

    Attributes:
        counts: muons per shower, [showers].
        energy_gev: at the surface, [muons].
        x_m, y_m: position in the plane across the shower axis, at the point where the axis meets the surface, [muons].
        angle_x, angle_y: angles to the axis, as metres sideways per metre along it, [muons].
        t_ns: time behind the plane front, [muons]; None if it is not known.
        charge: -1 or 1, [muons]; None if it is not known.
    """

    counts: Int64[np.ndarray, " showers"]
    energy_gev: FloatArray
    x_m: FloatArray
    y_m: FloatArray
    angle_x: FloatArray
    angle_y: FloatArray
    t_ns: FloatArray | None = None
    charge: FloatArray | None = None


def draw_showers(
    primary_gev: FloatArray,
    mass_number: FloatArray,
    cosine: FloatArray,
    threshold_gev: FloatArray,
    *,
    altitude_m: float,
    rng: np.random.Generator,
) -> Showers:
    """Draw the muons above a threshold of each shower, at the surface.

    Args:
        primary_gev: energies of the primaries, [showers].
        mass_number: nucleons of the primaries, [showers].
        cosine: cosines of the zenith angle at the surface, [showers].
        threshold_gev: lowest energy of a muon at the surface, [showers].
        altitude_m: altitude of the surface above sea level.
        rng: draws everything.
    """
    first_air, factor = _shower_factors(mass_number, rng)
    loss = air_loss_gev(cosine, altitude_m)
    born = threshold_gev + loss  # Lowest energy at birth.
    effective = effective_cosine(cosine)
    conventional, prompt = split_most_muons(primary_gev, mass_number, effective, born)
    counts = rng.poisson(factor * (conventional + prompt))
    of_shower = np.repeat(np.arange(len(counts)), counts)
    is_prompt = rng.random(len(of_shower)) * (conventional + prompt)[of_shower] < prompt[of_shower]
    log_x = _draw_log_x(born * mass_number / primary_gev, of_shower, is_prompt, rng)
    energy = np.exp(log_x) * (primary_gev / mass_number)[of_shower]
    # A muon exists if its meson decays, and arrives if it does not decay itself.
    exists = survival(energy - (loss / 2)[of_shower], typical_path_m(cosine, altitude_m)[of_shower])
    exists *= np.where(is_prompt, 1.0, decay_probability(energy * effective[of_shower]))
    kept = np.flatnonzero(rng.random(len(energy)) < exists)
    of_shower, log_x, energy = of_shower[kept], log_x[kept], energy[kept] - loss[of_shower[kept]]
    counts = np.bincount(of_shower, minlength=len(counts))
    # Single precision from here on: numpy's functions are three to eight times faster, and files have single precision.
    log_x, energy = log_x.astype(np.float32), energy.astype(np.float32)
    first_air, effective, cosine_of = (v.astype(np.float32)[of_shower] for v in (first_air, effective, cosine))
    further = _further_air(mass_number.astype(np.float32), log_x, of_shower)
    air = first_air + further * rng.standard_exponential(len(energy), dtype=np.float32)
    rise = np.maximum(height_m(air * effective) - altitude_m, LEAST_RISE_M)
    path = path_m(rise, cosine_of, altitude_m)
    angle = _draw_pt_gev(log_x, rng) / energy
    azimuth = rng.random(len(energy), dtype=np.float32) * np.float32(2 * np.pi)
    angle_x, angle_y = angle * np.cos(azimuth), angle * np.sin(azimuth)
    # The field bends the track by an angle `bend`. The muon arrives where a straight line with half of this angle would end.
    drawn = rng.random(len(energy), dtype=np.float32)
    charge = np.where(drawn < POSITIVE_SHARE, np.float32(1), np.float32(-1))
    strength = BENDING * transverse_field(cosine, rng.random(len(counts)) * (2 * np.pi))
    direction = rng.random(len(counts)) * (2 * np.pi)  # The same for all muons of a shower. Files have no azimuth.
    bend = charge * path / energy
    bend_x, bend_y = (
        bend * (strength * along).astype(np.float32)[of_shower] for along in (np.cos(direction), np.sin(direction))
    )
    x, y = (angle_x + bend_x / 2) * path, (angle_y + bend_y / 2) * path
    t_ns = delay_ns(path, np.hypot(x, y) / path, energy, energy)
    # `charge` is used for the bend, with one share of mu+ for all muons. The charge in the files comes from the same draw,
    # with the share of mu+ at this x.
    share = positive_share_at(np.exp(log_x), (mass_number == 1)[of_shower], positive_share(energy, effective))
    sign = np.where(drawn < share, np.float32(1), np.float32(-1))
    return Showers(counts, energy, x, y, angle_x + bend_x, angle_y + bend_y, t_ns, sign)


def positive_share(energy_gev: FloatArray, cosine: FloatArray) -> FloatArray:
    """Return the share of mu+ in the flux of an energy at the surface: 0.56 at 100 GeV, 0.58 at 1 TeV, 0.59 at 10 TeV."""
    slant = 1.1 * energy_gev * cosine
    of_pions, of_kaons = RATIO_CRITICAL_GEV
    pions, kaons = 1 / (1 + slant / of_pions), KAONS_PER_PION / (1 + slant / of_kaons)
    return (PION_POSITIVE * pions + KAON_POSITIVE * kaons) / (pions + kaons)


def positive_share_at(x: FloatArray, of_proton: np.ndarray, share_of_flux: FloatArray) -> FloatArray:
    """Return the share of mu+ among muons with a share x of the energy of their primary's nucleon.

    There are more mu+ because cosmic rays have more protons than neutrons, and this changes only the leading particles of
    an interaction. So the excess is taken as proportional to x. It is taken as 0 for nuclei, which have equal numbers of
    protons and neutrons (iron would have -7 % of a proton's excess).
    """
    excess = (share_of_flux - 0.5) * x / PROTON_X_OF_FLUX
    return np.where(of_proton, 0.5 + np.minimum(excess, 0.5), 0.5)


def delay_ns(way_m: FloatArray, angle: FloatArray, before_gev: FloatArray, after_gev: FloatArray) -> FloatArray:
    """Return the delay of a muon against light along the axis, because of its angle and its lower speed.

    Args:
        way_m: metres along the axis.
        angle: root of the mean square of the angle to the axis.
        before_gev, after_gev: energies at both ends; between them 1 / E^2 has the mean 1 / (E E').
    """
    slower = MUON_MASS_GEV**2 / (2 * before_gev * after_gev)
    return way_m * (angle**2 / 2 + slower) / LIGHT_M_PER_NS


def _shower_factors(mass_number: FloatArray, rng: np.random.Generator) -> tuple[FloatArray, FloatArray]:
    """Draw the depth of each shower's first interaction in g/cm^2, and a factor of mean 1 on its number of muons."""
    height, other = rng.standard_normal((2, len(mass_number)))
    normal = HEIGHT_CORRELATION * height + np.sqrt(1 - HEIGHT_CORRELATION**2) * other
    shape = gamma_shape(mass_number)
    first_air = INTERACTION_LENGTH * mass_number**-INTERACTION_MASS_POWER * -np.log(ndtr(height))
    return first_air, gammaincinv(shape, ndtr(normal)) / shape


def _further_air(mass_number: FloatArray, log_x: FloatArray, of_shower: np.ndarray) -> FloatArray:
    """Return the mean amount of air in g/cm^2 between the first interaction and the birth of a muon."""
    own_interaction = INTERACTION_LENGTH * (1 - mass_number**-INTERACTION_MASS_POWER)
    scale = CASCADE_LENGTH * np.log(10) ** -CASCADE_POWER
    further: FloatArray = own_interaction[of_shower] + np.float32(scale) * (-log_x) ** np.float32(CASCADE_POWER)
    return further


def _draw_pt_gev(log_x: FloatArray, rng: np.random.Generator) -> FloatArray:
    mean = MEAN_PT_GEV * (1 + PT_RISE * np.exp(PT_RISE_POWER * log_x))
    uniform = rng.random((3, len(log_x)), dtype=np.float32)
    # A gamma variate of shape 2 is the sum of two exponential variates.
    pt = -np.log((1 - uniform[0]) * (1 - uniform[1])) * (mean / 2)
    hard = np.flatnonzero(uniform[2] < HARD_SHARE)
    pt[hard] = HARD_PT_GEV * (1 - uniform[0, hard]) ** (-1 / HARD_POWER)
    return pt


def _draw_log_x(
    least_x: FloatArray, of_shower: np.ndarray, is_prompt: np.ndarray, rng: np.random.Generator
) -> FloatArray:
    """Draw ln x of each muon above the lowest x of its shower; the spectra of showers differ by a random tilt."""
    log_least = np.log(np.minimum(least_x, 1.0))[of_shower]
    tilt = rng.standard_gamma(TILT_SHAPE, len(least_x)) / TILT_SHAPE
    log_survival = -rng.standard_exponential(len(of_shower)) / tilt[of_shower]
    log_x = INVERSES[CONVENTIONAL](log_least, log_survival)
    log_x[is_prompt] = INVERSES[PROMPT](log_least[is_prompt], log_survival[is_prompt])
    return log_x
