"""An air shower's high-energy muons at the surface: how many, how energetic, how far from the axis.

Yield and fluctuations are superposition formulas: a nucleus of A nucleons and energy E0 is A nucleons of E_N = E0 / A.
Where a constant was fitted here, to real CORSIKA 7 showers, its comment says so; docs/simulator.md has the fit and its check.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Int64
from scipy.special import gammaincinv, ndtr

from crmuons.atmosphere import Values, effective_cosine, height_m, path_m

NUCLEON_MASS_GEV = 0.9315  # Atomic mass unit.


@dataclass(frozen=True)
class Yield:
    """N(>E) = K A / (E_N cos*) x^-p1 (1 - x^p3)^p2 with x = E / E_N: the form of Elbert (1979) and Gaisser."""

    scale_gev: float
    p1: float
    p2: float
    p3: float


# K, p1 and p2 fitted to CORSIKA (SIBYLL 2.3d); published for the same form: 14.5, 1.757, 5.25 (Gaisser) and
# 12.4, 1.787, 5.99 (Verpoest and Gaisser, arXiv:2107.11068).
CONVENTIONAL = Yield(scale_gev=12.13, p1=1.8145, p2=4.265, p3=1.0)
# Charm decays, per nucleon and without 1 / (E_N cos*): 2.8e-5 x^-1 (1 - x^0.78)^6.73 (SIBYLL 2.3c by MCEq, as carried in
# CORSIKA's leading-muon bias).
PROMPT = Yield(scale_gev=2.8e-5, p1=1.0, p2=6.73, p3=0.78)

# Shower-to-shower fluctuations: N is Poisson around a mean times a gamma factor of shape k = K1 A^KA. Fitted to CORSIKA:
# pure superposition would give KA = 1, but a nucleus breaks into fragments that interact together.
GAMMA_SHAPE, GAMMA_MASS_POWER = 11.3, 0.59
ENERGY_TILT_SHAPE = 100.0
HEIGHT_CORRELATION = 0.5  # Of the gamma factor with the first interaction's height (CORSIKA: 0.49 for protons).

INTERACTION_LENGTH = 60.0  # g/cm^2, proton in air around 1 PeV
INTERACTION_MASS_POWER = 0.4
CASCADE_LENGTH = 30.0
CASCADE_GROWTH = 20.0

MEAN_PT_GEV = 0.30
HARD_SHARE = 0.004
HARD_PT_GEV = 2.0
HARD_POWER = 3.0


def mean_yield(energy_gev: Values, primary_gev: Values, mass_number: Values, cosine: Values) -> Values:
    """Mean number of muons above an energy at the surface, conventional and prompt.

    Args:
        energy_gev: threshold at the surface; the form holds from about 100 GeV up.
        primary_gev: energy of the primary.
        mass_number: nucleons in the primary.
        cosine: cosine of the zenith at the surface.
    """
    conventional, prompt = _mean_yields(energy_gev, primary_gev, mass_number, cosine)
    total: Values = conventional + prompt
    return total


def _mean_yields(energy_gev: Values, primary_gev: Values, mass_number: Values, cosine: Values) -> tuple[Values, Values]:
    nucleon_gev = primary_gev / mass_number
    log_x = np.log(np.minimum(energy_gev / nucleon_gev, 1.0))
    decaying = CONVENTIONAL.scale_gev * mass_number / (nucleon_gev * effective_cosine(cosine))
    return (
        decaying * np.exp(_log_shape(log_x, CONVENTIONAL)),
        PROMPT.scale_gev * mass_number * np.exp(_log_shape(log_x, PROMPT)),
    )


def _log_shape(log_x: Values, form: Yield) -> Values:
    with np.errstate(divide="ignore"):  # No muon has more than a nucleon's energy: log 0 at x = 1.
        log_shape: Values = -form.p1 * log_x + form.p2 * np.log(-np.expm1(form.p3 * log_x))
    return log_shape


def gamma_shape(mass_number: Values) -> Values:
    """Shape k of the shower-wide factor on the multiplicity: Var N = mu + mu^2 / k."""
    return GAMMA_SHAPE * mass_number**GAMMA_MASS_POWER


@dataclass(frozen=True)
class Showers:
    """Showers at the surface and their muons, which are grouped by shower.

    Attributes:
        counts: muons per shower, [showers].
        energy_gev: at the surface, [muons].
        x_m, y_m: position across the axis, where it meets the surface, [muons].
        angle_x, angle_y: the muon's angles to the axis: metres sideways per metre along, [muons].
    """

    counts: Int64[np.ndarray, " showers"]
    energy_gev: Values
    x_m: Values
    y_m: Values
    angle_x: Values
    angle_y: Values


def draw_showers(
    primary_gev: Values,
    mass_number: Values,
    cosine: Values,
    threshold_gev: Values,
    *,
    altitude_m: float,
    rng: np.random.Generator,
) -> Showers:
    """Draw the muons above a threshold of some showers, at the surface.

    Args:
        primary_gev: energies of the primaries, [showers].
        mass_number: nucleons of the primaries, [showers].
        cosine: cosines of the zenith at the surface, [showers].
        threshold_gev: least energy of a muon at the surface, [showers].
        altitude_m: altitude of the surface above sea level.
        rng: draws everything.
    """
    height, factor = _shower_factors(mass_number, rng)
    conventional, prompt = (factor * part for part in _mean_yields(threshold_gev, primary_gev, mass_number, cosine))
    mean = conventional + prompt
    counts = rng.poisson(mean)
    shower = np.repeat(np.arange(len(counts)), counts)
    tilt = rng.standard_gamma(ENERGY_TILT_SHAPE, len(counts)) / ENERGY_TILT_SHAPE
    is_prompt = rng.random(len(shower)) * mean[shower] < prompt[shower]
    log_nucleon = np.log(primary_gev / mass_number)
    log_least = np.minimum(np.log(threshold_gev) - log_nucleon, 0.0)
    log_survival = -rng.standard_exponential(len(shower)) * (1 / tilt)[shower]
    log_x = _draw_log_x(log_least[shower], log_survival, is_prompt)
    energy = np.exp(log_x + log_nucleon[shower])
    first = INTERACTION_LENGTH * mass_number**-INTERACTION_MASS_POWER * height
    air = first[shower] + (CASCADE_LENGTH - CASCADE_GROWTH / np.log(10) * log_x) * rng.standard_exponential(len(shower))
    star = effective_cosine(cosine)
    rise = np.maximum(height_m(air * star[shower]) - altitude_m, 100.0)
    path = path_m(rise, cosine[shower], altitude_m)
    angle = _draw_pt_gev(len(shower), rng) / energy
    azimuth = rng.random(len(shower)) * (2 * np.pi)
    angle_x, angle_y = angle * np.cos(azimuth), angle * np.sin(azimuth)
    return Showers(counts, energy, angle_x * path, angle_y * path, angle_x, angle_y)


def _shower_factors(mass_number: Values, rng: np.random.Generator) -> tuple[Values, Values]:
    """First interaction depth over its mean, and the factor on the multiplicity, of mean 1; they are correlated."""
    normal = rng.standard_normal((2, len(mass_number)))
    partner = -HEIGHT_CORRELATION * normal[0] + np.sqrt(1 - HEIGHT_CORRELATION**2) * normal[1]
    shape = gamma_shape(mass_number)
    return -np.log(ndtr(-normal[0])), gammaincinv(shape, ndtr(partner)) / shape


def _draw_pt_gev(num: int, rng: np.random.Generator) -> Values:
    soft = rng.standard_gamma(2.0, num) * (MEAN_PT_GEV / 2)
    hard = HARD_PT_GEV * rng.random(num) ** (-1 / HARD_POWER)
    return np.where(rng.random(num) < HARD_SHARE, hard, soft)


# ln x on a grid of ln g, where g is the form's shape: the inverse of the yield. From x = 1 - 1e-8 down to 1e-9.
_TABLE_STEP = 1 / 256


class _InverseYield:
    def __init__(self, form: Yield) -> None:
        self.form = form
        log_x = np.concatenate([np.linspace(np.log(1e-10), -1e-2, 20_000), -np.geomspace(1e-2, 1e-8, 4_000)[1:]])
        log_g = _log_shape(log_x, form)
        self.start = log_g[-1]
        grid = np.arange(self.start, log_g[0], _TABLE_STEP)
        self.table = np.interp(grid, log_g[::-1], log_x[::-1])

    def __call__(self, log_least: Values, log_survival: Values) -> Values:
        """ln x at which the yield has fallen by `log_survival` from its value at `log_least`."""
        at = (_log_shape(log_least, self.form) + log_survival - self.start) / _TABLE_STEP
        at = np.clip(at, 0, len(self.table) - 1.001)
        index = at.astype(np.int64)
        low = self.table[index]
        log_x: Values = low + (at - index) * (self.table[index + 1] - low)
        return log_x


_INVERSES = {form: _InverseYield(form) for form in (CONVENTIONAL, PROMPT)}


def _draw_log_x(log_least: Values, log_survival: Values, is_prompt: np.ndarray) -> Values:
    log_x = _INVERSES[CONVENTIONAL](log_least, log_survival)
    log_x[is_prompt] = _INVERSES[PROMPT](log_least[is_prompt], log_survival[is_prompt])
    return log_x
