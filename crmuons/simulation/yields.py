"""The mean number of muons of a shower above an energy, and the shape of their spectrum.

The yield is a formula for the muons that there would be if all mesons decayed, times the probability that a meson decays
and that its muon arrives. A nucleus of A nucleons and energy E0 counts as A nucleons of E_N = E0/A.
"""

from dataclasses import dataclass

import numpy as np

from crmuons.data.geometry import FloatArray
from crmuons.simulation.atmosphere import air_loss_gev, effective_cosine, survival, typical_path_m


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
# (arXiv:2303.00022) from 150 GeV to 20 TeV, with the cosmic rays of Global Spline Fit. Published values of K, p1, p2, for a
# form without critical energies, are 14.5, 1.757, 5.25 (Gaisser) and 12.4, 1.787, 5.99 (Verpoest and Gaisser,
# arXiv:2107.11068).
CONVENTIONAL = Yield(scale_gev=12.62, p1=1.825, p2=2.874, p3=1.0)
# Critical energies of pions and kaons in Gaisser's flux (115 and 850 GeV), divided by its factor of 1.1 for muons. His share
# of kaons, 0.054 * 850 / (115 + 0.054 * 850), is 0.29.
PION_GEV, KAON_GEV, KAON_SHARE = 115 / 1.1, 850 / 1.1, 0.246
# Muons from charm, for each nucleon and without 1 / (E_N cos*): 2.8e-5 x^-1 (1 - x^0.78)^6.73. This is MCEq's fit to
# SIBYLL 2.3c, as in CORSIKA's leading-muon bias.
PROMPT = Yield(scale_gev=2.8e-5, p1=1.0, p2=6.73, p3=0.78)

# Gauss-Legendre nodes and weights for the integral over the energies at birth. They are computed once, because this takes
# 2 ms, and a draw integrates 400 times.
NODES, WEIGHTS = np.polynomial.legendre.leggauss(96)


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
    # The integral over the energies at birth: muons born in dlnE, times their probabilities to exist and to arrive.
    log_x = log_least * (1 - NODES) / 2
    primary, nucleons, slope = (values[..., None] for values in (primary_gev, mass_number, cosine))
    energy = np.exp(log_x) * primary / nucleons
    arriving = survival(energy - air_loss_gev(slope, altitude_m) / 2, typical_path_m(slope, altitude_m))
    effective = effective_cosine(slope)
    conventional = _born(CONVENTIONAL, log_x, nucleons) / (primary / nucleons * effective)
    density = conventional * decay_probability(energy * effective) + _born(PROMPT, log_x, nucleons)
    mean: FloatArray = (density * arriving * WEIGHTS).sum(-1) * -log_least[..., 0] / 2
    return mean


def decay_probability(scaled_gev: FloatArray) -> FloatArray:
    """Return the share of mesons that decay before they interact, divided by the share that the yield's form assumes.

    The form holds far above the critical energies, where decay is rare, and grows without limit below them. E cos* is the
    muon's energy at birth times the cosine of the zenith angle there. The result is (1 - w) E cos* / (E cos* + E_pi) +
    w E cos* / (E cos* + E_K) (Gaisser, Engel, Resconi, Cosmic Rays and Particle Physics, section 6.4).
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


def most_muons(
    primary_gev: FloatArray,
    mass_number: FloatArray,
    cosine: FloatArray,
    threshold_gev: FloatArray,
    *,
    altitude_m: float,
) -> FloatArray:
    """Return the mean number of muons of each shower if all mesons decayed: a bound on the mean of `shower.draw_showers`."""
    born = threshold_gev + air_loss_gev(cosine, altitude_m)
    return sum(split_most_muons(primary_gev, mass_number, effective_cosine(cosine), born), np.zeros(()))


def split_most_muons(
    primary_gev: FloatArray, mass_number: FloatArray, effective: FloatArray, born_gev: FloatArray
) -> tuple[FloatArray, FloatArray]:
    """Return the numbers of `most_muons` for conventional and for prompt muons, above an energy at birth."""
    conventional = _mean_born(CONVENTIONAL, born_gev, primary_gev, mass_number)
    return conventional / (primary_gev / mass_number * effective), _mean_born(
        PROMPT, born_gev, primary_gev, mass_number
    )


_TABLE_STEP = 1 / 256  # Step in ln g; with it, the interpolation is exact to 1e-5 in ln x.


class InverseYield:
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


INVERSES = {form: InverseYield(form) for form in (CONVENTIONAL, PROMPT)}
