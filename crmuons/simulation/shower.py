"""Draw the high-energy muons of air showers at the surface: their number, energies and distances from the axis.

The yield uses the superposition model: a nucleus of A nucleons and energy E0 counts as A nucleons of E_N = E0/A. Some
constants were fitted to real CORSIKA 7 showers, and their comments say so; docs/simulator.md describes the fit and its
check.
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

PROTON_MASS_GEV = 0.938272
ATOMIC_MASS_UNIT_GEV = 0.931494


@dataclass(frozen=True)
class Yield:
    """Constants of N(>E) = K A / (E_N cos*) x^-p1 (1 - x^p3)^p2, x = E / E_N, the form of Elbert (1979) and Gaisser.

    Attributes:
        scale_gev: K.
        p1, p2, p3: the powers.
    """

    scale_gev: float
    p1: float
    p2: float
    p3: float


# K, p1, p2 and the kaons' share were fitted to the mean N of 450 CORSIKA 7 showers and to the vertical flux of daemonflux
# (arXiv:2303.00022) from 150 GeV to 20 TeV, with the cosmic rays of Global Spline Fit. Published values of the form, which
# then has no critical energies: 14.5, 1.757, 5.25 (Gaisser) and 12.4, 1.787, 5.99 (Verpoest and Gaisser, arXiv:2107.11068).
CONVENTIONAL = Yield(scale_gev=12.62, p1=1.825, p2=2.874, p3=1.0)
# Critical energies of pions and kaons over 1.1, the factor of muons in Gaisser's flux (115 and 850 GeV there; his share
# of kaons, 0.054 * 850 / (115 + 0.054 * 850), is 0.29).
PION_GEV, KAON_GEV, KAON_SHARE = 115 / 1.1, 850 / 1.1, 0.246
# Charm decays, for each nucleon and without 1 / (E_N cos*): 2.8e-5 x^-1 (1 - x^0.78)^6.73. This is MCEq's fit to SIBYLL
# 2.3c, as in CORSIKA's leading-muon bias.
PROMPT = Yield(scale_gev=2.8e-5, p1=1.0, p2=6.73, p3=0.78)

# Shower-to-shower fluctuations: N is Poisson around the mean times a gamma factor of shape k = K1 A^KA, fitted to
# CORSIKA. Pure superposition would give KA = 1, but the nucleons of a fragment interact together.
GAMMA_SHAPE, GAMMA_MASS_POWER = 11.3, 0.59
# Rank correlation of this factor with the height of the first interaction: in thin air more pions decay. CORSIKA's
# protons have 0.49.
HEIGHT_CORRELATION = 0.5
# The spectrum of a shower is S(E)^t: S is the survival function from the yield, and t is gamma distributed with this
# shape. The spectral index then has a spread of 5 %, as in CORSIKA.
TILT_SHAPE = 400.0

# Depth of the first interaction in g/cm^2: exponential with mean 55 A^-0.35, from the heights in CORSIKA's event
# headers. A nucleon of a nucleus travels on in a fragment to an interaction of its own, on average as deep as a
# proton's.
INTERACTION_LENGTH, INTERACTION_MASS_POWER = 55.0, 0.35
# A muon of energy E_N / 10^l is born deeper by a further exponential with mean C l^p. Fitted together with <pT> and the
# hard share to the distribution of E r at 1 TeV.
CASCADE_LENGTH, CASCADE_POWER = 2.47, 2.15
# Transverse momentum: pT exp(-2 pT / <pT>), where <pT> = 0.228 GeV (1 + x^(1/6)) rises for leading particles (the
# "seagull effect"). A few in a hundred follow the power law of hard scattering.
MEAN_PT_GEV, PT_RISE, PT_RISE_POWER = 0.228, 1.0, 1 / 6
HARD_SHARE, HARD_PT_GEV, HARD_POWER = 0.02, 1.0, 4.0  # P(>pT) = (pT / 1 GeV)^-4 for this share
POSITIVE_SHARE = 0.57  # mu+ : mu- = 1.32, between 1.27 at 100 GeV and 1.37 at 1 TeV (MINOS, arXiv:0705.3815).
# The ratio of positive to negative muons rises as kaons take over: positive shares of pions' and kaons' muons, kaons over
# pions, and the critical energies of both (OPERA, arXiv:1403.0244, eq. 6 and its fit).
PION_POSITIVE, KAON_POSITIVE, KAONS_PER_PION, RATIO_CRITICAL_GEV = 0.5512, 0.705, 0.054, (115.0, 850.0)
LIGHT_M_PER_NS = 0.299792458
MUON_MASS_GEV = 0.105658
LEAST_RISE_M = 100.0  # No muon is born closer to the surface.


def mass_gev(mass_number: FloatArray) -> FloatArray:
    """Return the mass of a nucleus: the proton's, or A atomic mass units (exact to 0.2 %)."""
    return np.where(mass_number == 1, PROTON_MASS_GEV, ATOMIC_MASS_UNIT_GEV * mass_number)


def mass_number(mass_gev: FloatArray) -> FloatArray:
    """Return the number of nucleons in a nucleus of this mass."""
    return np.round(mass_gev / ATOMIC_MASS_UNIT_GEV)


def mean_yield(
    energy_gev: FloatArray,
    primary_gev: FloatArray,
    mass_number: FloatArray,
    cosine: FloatArray,
    *,
    altitude_m: float = 0.0,
) -> FloatArray:
    """Return the mean number of conventional and prompt muons above an energy at the surface.

    Args:
        energy_gev: threshold at the surface; the formula holds above about 100 GeV.
        primary_gev: energy of the primary.
        mass_number: nucleons in the primary.
        cosine: cosine of the zenith angle at the surface.
        altitude_m: altitude of the surface above sea level.
    """
    born = energy_gev + air_loss_gev(cosine, altitude_m)
    log_least = np.log(np.minimum(born * mass_number / primary_gev, 1.0))[..., None]
    # The integral over the energies at birth, of the muons born in dlnE times their chance to exist and to arrive.
    nodes, weights = np.polynomial.legendre.leggauss(96)
    log_x = log_least * (1 - nodes) / 2
    primary, nucleons, slope = (values[..., None] for values in (primary_gev, mass_number, cosine))
    energy = np.exp(log_x) * primary / nucleons
    arriving = survival(energy - air_loss_gev(slope, altitude_m) / 2, typical_path_m(slope, altitude_m))
    effective = effective_cosine(slope)
    conventional = _born(CONVENTIONAL, log_x, nucleons) / (primary / nucleons * effective)
    density = conventional * decay_probability(energy * effective) + _born(PROMPT, log_x, nucleons)
    mean: FloatArray = (density * arriving * weights).sum(-1) * -log_least[..., 0] / 2
    return mean


def decay_probability(scaled_gev: FloatArray) -> FloatArray:
    """Return the share of mesons that decay before they interact, over the share that the yield's form supposes.

    The form holds far above the critical energies, where decay is rare, and grows without limit below them. With E
    cos*, the muon's energy at birth times the cosine where it is born, the share is (1 - w) E cos* / (E cos* + E_pi) + w E
    cos* / (E cos* + E_K) (Gaisser, Engel, Resconi, Cosmic Rays and Particle Physics, section 6.4).
    """
    return scaled_gev * ((1 - KAON_SHARE) / (scaled_gev + PION_GEV) + KAON_SHARE / (scaled_gev + KAON_GEV))


def _mean_born(form: Yield, threshold_gev: FloatArray, primary_gev: FloatArray, mass_number: FloatArray) -> FloatArray:
    """Return K A x^-p1 (1 - x^p3)^p2: the yield above an energy without its factor 1 / (E_N cos*)."""
    log_x = np.log(np.minimum(threshold_gev * mass_number / primary_gev, 1.0))
    mean: FloatArray = form.scale_gev * mass_number * np.exp(_log_shape(log_x, form))
    return mean


def _born(form: Yield, log_x: FloatArray, mass_number: FloatArray) -> FloatArray:
    """Return the density in ln x that belongs to `_mean_born`."""
    power = np.exp(form.p3 * log_x)
    slope = form.p1 + form.p2 * form.p3 * power / np.maximum(1 - power, 1e-12)
    density: FloatArray = form.scale_gev * mass_number * np.exp(_log_shape(log_x, form)) * slope
    return density


def _log_shape(log_x: FloatArray, form: Yield) -> FloatArray:
    with np.errstate(divide="ignore"):  # log 0 at x = 1: no muon has more energy than a nucleon.
        log_shape: FloatArray = -form.p1 * log_x + form.p2 * np.log(-np.expm1(form.p3 * log_x))
    return log_shape


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
    conventional = _mean_born(CONVENTIONAL, born, primary_gev, mass_number) / (primary_gev / mass_number * effective)
    prompt = _mean_born(PROMPT, born, primary_gev, mass_number)
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
    air = first_air[of_shower] + _further_air(mass_number[of_shower], log_x) * rng.standard_exponential(len(energy))
    rise = np.maximum(height_m(air * effective[of_shower]) - altitude_m, LEAST_RISE_M)
    path = path_m(rise, cosine[of_shower], altitude_m)
    angle = _draw_pt_gev(log_x, rng) / energy
    azimuth = rng.random(len(energy)) * (2 * np.pi)
    angle_x, angle_y = angle * np.cos(azimuth), angle * np.sin(azimuth)
    # The field bends the track by an angle `bend`; the muon arrives where half of this angle points.
    positive = rng.random(len(energy))
    charge = np.where(positive < POSITIVE_SHARE, 1.0, -1.0)
    strength = BENDING * transverse_field(cosine, rng.random(len(counts)) * (2 * np.pi))
    direction = rng.random(len(counts)) * (2 * np.pi)  # The same for all muons of a shower; files hold no azimuth.
    bend = charge * path / energy
    bend_x = bend * (strength * np.cos(direction))[of_shower]
    bend_y = bend * (strength * np.sin(direction))[of_shower]
    x, y = (angle_x + bend_x / 2) * path, (angle_y + bend_y / 2) * path
    t_ns = delay_ns(path, np.hypot(x, y) / path, energy, energy)
    # `charge` bends, with one share for all energies; files get the sign of the measured ratio, from the same draw.
    share = positive_share(energy, effective[of_shower])
    sign = np.where(positive < share, 1.0, -1.0)
    return Showers(counts, energy, x, y, angle_x + bend_x, angle_y + bend_y, t_ns, sign)


def positive_share(energy_gev: FloatArray, cosine: FloatArray) -> FloatArray:
    """Return the share of mu+ among muons of an energy at the surface: 0.56 at 100 GeV, 0.58 at 1 TeV, 0.59 at 10 TeV."""
    slant = 1.1 * energy_gev * cosine
    of_pions, of_kaons = RATIO_CRITICAL_GEV
    pions, kaons = 1 / (1 + slant / of_pions), KAONS_PER_PION / (1 + slant / of_kaons)
    return (PION_POSITIVE * pions + KAON_POSITIVE * kaons) / (pions + kaons)


def delay_ns(way_m: FloatArray, angle: FloatArray, before_gev: FloatArray, after_gev: FloatArray) -> FloatArray:
    """Return how much later than light along the axis a muon has come: by its angle, and by its speed.

    Args:
        way_m: metres along the axis.
        angle: to the axis, on average (its square counts).
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


def _further_air(mass_number: FloatArray, log_x: FloatArray) -> FloatArray:
    """Return the mean amount of air in g/cm^2 between the first interaction and the birth of a muon."""
    own_interaction = INTERACTION_LENGTH * (1 - mass_number**-INTERACTION_MASS_POWER)
    further: FloatArray = own_interaction + CASCADE_LENGTH * (-log_x / np.log(10)) ** CASCADE_POWER
    return further


def _draw_pt_gev(log_x: FloatArray, rng: np.random.Generator) -> FloatArray:
    mean = MEAN_PT_GEV * (1 + PT_RISE * np.exp(PT_RISE_POWER * log_x))
    soft = rng.standard_gamma(2.0, len(log_x)) * (mean / 2)
    hard = HARD_PT_GEV * (1 - rng.random(len(log_x))) ** (-1 / HARD_POWER)
    return np.where(rng.random(len(log_x)) < HARD_SHARE, hard, soft)


_TABLE_STEP = 1 / 256  # In ln g; the interpolation is then exact to 1e-5 in ln x.


class _InverseYield:
    """Tabulates ln x as a function of ln g, where g(x) is the shape of a yield, for 1e-10 < x < 1 - 1e-8."""

    def __init__(self, form: Yield) -> None:
        self.form = form
        log_x = np.concatenate([np.linspace(np.log(1e-10), -1e-2, 20_000), -np.geomspace(1e-2, 1e-8, 4_000)[1:]])
        log_g = _log_shape(log_x, form)
        self.start = log_g[-1]
        grid = np.arange(self.start, log_g[0], _TABLE_STEP)
        self.table = np.interp(grid, log_g[::-1], log_x[::-1])

    def __call__(self, log_least: FloatArray, log_survival: FloatArray) -> FloatArray:
        """Return ln x at which ln g has changed by `log_survival` (negative) from its value at ln x = `log_least`."""
        at = (_log_shape(log_least, self.form) + log_survival - self.start) / _TABLE_STEP
        at = np.clip(at, 0, len(self.table) - 1.001)
        index = at.astype(np.int64)
        low = self.table[index]
        log_x: FloatArray = low + (at - index) * (self.table[index + 1] - low)
        return log_x


_INVERSES = {form: _InverseYield(form) for form in (CONVENTIONAL, PROMPT)}


def _draw_log_x(
    least_x: FloatArray, of_shower: np.ndarray, is_prompt: np.ndarray, rng: np.random.Generator
) -> FloatArray:
    """Draw ln x of each muon above the lowest x of its shower; the spectra of showers differ by a random tilt."""
    log_least = np.log(np.minimum(least_x, 1.0))[of_shower]
    tilt = rng.standard_gamma(TILT_SHAPE, len(least_x)) / TILT_SHAPE
    log_survival = -rng.standard_exponential(len(of_shower)) / tilt[of_shower]
    log_x = _INVERSES[CONVENTIONAL](log_least, log_survival)
    log_x[is_prompt] = _INVERSES[PROMPT](log_least[is_prompt], log_survival[is_prompt])
    return log_x
