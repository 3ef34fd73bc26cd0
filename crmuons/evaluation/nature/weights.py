"""Weight events to a cosmic-ray flux: how the primaries were drawn, the events' weights, and what the data lack."""

from dataclasses import dataclass
from functools import cache

import numpy as np
from jaxtyping import Float64, Int64
from scipy.stats import nbinom

from crmuons.data.geometry import FloatArray
from crmuons.generation.weights import flux_named
from crmuons.simulation import power_law, propagation, shower
from crmuons.simulation.nuclei import NUCLEI
from crmuons.simulation.power_law import PowerLaw, Powers
from crmuons.simulation.propagation import MEDIA, Medium
from crmuons.simulation.yields import mean_yield

DEFAULT_FLUX = "GlobalSplineFit5Comp"  # Fitted to measurements (arXiv:1711.11432); it goes with daemonflux.
PRIMARY_GEV = np.geomspace(100, 1e11, 181)  # Energies of the primaries of all muons that matter below 0.5 km w.e.
PER_M2 = 1e4  # simweights' fluxes are per cm^2.


@dataclass(frozen=True)
class Drawn:
    """How a data set was made, as far as its weights need it.

    Attributes:
        energy_gev: range of the primaries' energies.
        gamma: exponent of the law E^-gamma from which the energies of each nucleus were drawn; or powers with the
            energies of breaks between them (`power_law`).
        threshold_gev: muons below this energy are missing at the depth, or are left out.
        surface_gev: muons below this energy at the surface are missing, such as below CORSIKA's cut; 0 if none are.
        medium: medium above the detector.
    """

    energy_gev: tuple[float, float]
    gamma: Powers
    threshold_gev: float = 10.0
    surface_gev: float = 0.0
    medium: str = "ice"

    def __post_init__(self) -> None:
        low, high = self.energy_gev
        _require(0 < low < high < np.inf, f"--energy-range {low:g} {high:g}: expected 0 < LOW < HIGH, in GeV")
        _require(not (why := power_law.fault(self.gamma)), f"--gamma {why}")
        _require(
            1 <= self.threshold_gev <= 100,
            f"threshold of {self.threshold_gev:g} GeV at the depth: the references hold from 1 to 100 GeV; leave out "
            "softer muons with --threshold-gev",
        )
        _require(0 <= self.surface_gev < np.inf, f"--surface-cut-gev {self.surface_gev:g}: expected 0 GeV or more")

    @property
    def passed(self) -> Medium:
        """Return the medium."""
        return MEDIA[self.medium]

    @property
    def law(self) -> PowerLaw:
        """Return the law of the energies."""
        return PowerLaw(self.energy_gev, self.gamma)


class Flux:
    """A cosmic-ray flux by the nucleons of the nucleus.

    Args:
        name: a model of simweights, in generation.weights.FLUXES.

    Attributes:
        name: the model.
        nuclei: number of nucleons of each nucleus that the model knows.
    """

    def __init__(self, name: str) -> None:
        self.name, self._model = name, flux_named(name, "--flux")
        self._pdg = {_nucleons(int(code)): int(code) for code in self._model.pdgids}
        self.nuclei = tuple(sorted(self._pdg))

    def __call__(self, energy_gev: FloatArray, nucleons: int) -> FloatArray:
        """Return the flux of one nucleus in 1 / (GeV m^2 s sr)."""
        energy = np.asarray(energy_gev, np.float64)
        flux: FloatArray = PER_M2 * self._model(energy, np.full(energy.shape, self._pdg[nucleons]))
        return flux

    def check_nuclei(self, nucleons: Int64[np.ndarray, " events"]) -> None:
        """Raise a ValueError if a nucleus has no flux."""
        missing = sorted(set(np.unique(nucleons).tolist()) - set(self.nuclei))
        if missing:
            names = ", ".join(_name(number) for number in missing)
            known = ", ".join(_name(number) for number in self.nuclei)
            msg = f"{names}: {self.name} has no flux of it (it has {known}); name another model with --flux"
            raise ValueError(msg)


def row_weights(
    energy_gev: Float64[np.ndarray, " events"], nucleons: Int64[np.ndarray, " events"], drawn: Drawn, flux: Flux
) -> Float64[np.ndarray, " events"]:
    """Return the weight of each event, F(E) / (share of its nucleus * p(E)), in 1 / (m^2 s sr).

    The mean of weight times N over events of any zenith and depth is the intensity of muons there. It does not depend
    on how zenith and depth were drawn. The shares of the nuclei are computed from the data.

    Raises:
        ValueError: if a nucleus has no flux, or an energy lies outside of the range.
    """
    flux.check_nuclei(nucleons)
    density = drawn.law.density(energy_gev)
    outside = np.flatnonzero(density == 0)
    if outside.size:
        low, high = drawn.energy_gev
        msg = (
            f"a primary of {energy_gev[outside[0]]:g} GeV lies outside of the range {low:g} to {high:g} GeV from which "
            "the primaries were drawn; give the range with --energy-range"
        )
        raise ValueError(msg)
    weights = np.empty(len(energy_gev))
    for number in np.unique(nucleons).tolist():
        rows = nucleons == number
        weights[rows] = flux(energy_gev[rows], number) / (rows.mean() * density[rows])
    return weights


class Coverage:
    """The share of the muons at a place that comes from primaries in the data.

    The yields are the simulator's (`simulation.shower`), with muons that lose energy at the mean rate. The share is
    accurate to a few per cent, which is enough to decide whether the data cover a quantity.

    Args:
        drawn: how the data were made.
        flux: the cosmic-ray flux.
        nuclei: nucleons of the nuclei in the data.
    """

    def __init__(self, drawn: Drawn, flux: Flux, nuclei: set[int]) -> None:
        self.drawn, self.flux, self.nuclei = drawn, flux, nuclei
        self.energy = PRIMARY_GEV
        low, high = drawn.energy_gev
        self.inside = (self.energy >= low) & (self.energy <= high)
        self._rates = {number: flux(self.energy, number) * self.energy for number in flux.nuclei}

    def surface_energy(self, water_km: float) -> float:
        """Return the energy from which about half of the muons reach a depth."""
        medium = self.drawn.passed
        radiation = medium.soft_radiation + 0.8 * medium.hard_radiation  # Half of the muons lose less than the mean.
        floor = medium.ionisation / radiation
        return float((self.drawn.threshold_gev + floor) * np.exp(radiation * 1e3 * water_km) - floor)

    def share(self, water_km: float, cosine: float, num_muons: int | None = None) -> float:
        """Return the share of the muons, or of the bundles of some number of muons, that the data can hold."""
        medium = self.drawn.passed
        least = propagation.least_surface_energy_gev(np.array(1e3 * water_km), self.drawn.threshold_gev, medium)
        if self.drawn.surface_gev > least:
            return 0.0
        return self.share_above(self.surface_energy(water_km), cosine, num_muons)

    def share_above(self, muon_gev: float, cosine: float, num_muons: int | None = None) -> float:
        """Return the share of the muons above an energy at the surface, or of their bundles, that the data can hold."""
        held = total = 0.0
        for number in self.flux.nuclei:
            rate = muons = _mean_yield(number, muon_gev, cosine)
            if num_muons is not None:
                shape = float(shower.gamma_shape(np.array(float(number))))
                rate = nbinom.pmf(num_muons, shape, shape / (shape + muons))
            rate = rate * self._rates[number]
            total += rate.sum()
            held += rate[self.inside].sum() if number in self.nuclei else 0.0
        return float(held / total) if total > 0 else 0.0


@cache
def _mean_yield(number: int, muon_gev: float, cosine: float) -> FloatArray:
    """Return the mean number of muons above an energy that a nucleus makes, at each energy of PRIMARY_GEV."""
    least, slope = np.full(len(PRIMARY_GEV), muon_gev), np.full(len(PRIMARY_GEV), cosine)
    return mean_yield(least, PRIMARY_GEV, np.full(len(PRIMARY_GEV), float(number)), slope)


def nucleons(mass_gev: FloatArray) -> Int64[np.ndarray, " events"]:
    """Return the number of nucleons in nuclei of these masses."""
    return shower.mass_number(mass_gev).astype(np.int64)


def _nucleons(pdg: int) -> int:
    return 1 if pdg == 2212 else pdg // 10 % 1000


def _name(number: int) -> str:
    names = {nucleus[1]: symbol for symbol, nucleus in NUCLEI.items()}
    return names.get(number, f"nucleus of {number} nucleons")


def _require(holds: bool, message: str) -> None:
    if not holds:
        raise ValueError(message)
