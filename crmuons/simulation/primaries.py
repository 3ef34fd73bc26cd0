"""Draw the primaries of a simulation, with energies of a power law or for a wanted number of muons.

For a wanted number of muons, mass, zenith and depths are drawn as always. The energy is drawn such that the logarithm of
the expected number of muons at the shower's smallest depth is uniform. Primaries that cannot send this number are drawn
again. With the weights of `undoing_weights`, averages over such events are the averages of the power law.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from crmuons.data import geometry
from crmuons.data.geometry import FloatArray
from crmuons.simulation import propagation, shower
from crmuons.simulation.yields import mean_yield

if TYPE_CHECKING:
    from crmuons.simulation.simulate import SimulationSettings

# Points of the table of expected numbers, with lines between them. Weights use the same table: they are exact.
POINTS = 33
MOST_ROUNDS = 200  # Largest number of draws: if one primary in 200 is suitable, a block of 512 is full after 200.

Primaries = tuple[FloatArray, FloatArray, FloatArray, FloatArray]


def draw_primaries(settings: "SimulationSettings", num: int, rng: np.random.Generator) -> Primaries:
    """Draw energies, masses and zeniths of primaries, rounded to float32 like the files, and their depths.

    Raises:
        ValueError: if hardly any primary is expected to send the wanted number of muons.
    """
    if settings.expected_muons is None:
        return _drawn(settings, num, rng)
    found: list[Primaries] = []
    missing = num
    for _ in range(MOST_ROUNDS):
        _, mass, zenith, vertical = _drawn(settings, num, rng)
        slant = geometry.slant_depth_m(vertical[:, 0], np.cos(zenith), settings.passed.surface_m)
        # The two ends of the table are enough to find suitable primaries; the whole table takes 16 times longer.
        low, high = ExpectedMuons.of(settings, mass, zenith, slant, points=2).ends(settings.expected_muons)
        kept = np.flatnonzero(low < high)[:missing]
        wanted = low[kept] + (high - low)[kept] * rng.random(len(kept))
        table = ExpectedMuons.of(settings, mass[kept], zenith[kept], slant[kept])
        energy = np.clip(table.energy_gev(wanted), *settings.energy_gev).astype(np.float32).astype(np.float64)
        found.append((energy, mass[kept], zenith[kept], vertical[kept]))
        missing -= len(kept)
        if not missing:
            energy, mass, zenith, vertical = (np.concatenate(parts) for parts in zip(*found, strict=True))
            return energy, mass, zenith, vertical
    low_muons, high_muons = settings.expected_muons
    low_energy, high_energy = settings.energy_gev
    msg = (
        f"--expected-muons {low_muons:g} {high_muons:g}: hardly any primary of {low_energy:g} to {high_energy:g} GeV sends "
        "such a number of muons to these depths; give another range, a wider --energy-range or smaller depths"
    )
    raise ValueError(msg)


def undoing_weights(settings: "SimulationSettings", primaries: np.ndarray) -> FloatArray:
    """Return weights with which averages over events are the averages of the power law, for the same primaries.

    The weight is the power law's density of the energy divided by the density of the draw, up to a common factor.

    Args:
        settings: settings with `expected_muons`.
        primaries: primaries of the events of whole showers in their order, [events, 4], as in the files.
    """
    assert settings.expected_muons is not None
    rows = settings.rows_per_shower
    first = primaries[::rows].astype(np.float64)
    energy, zenith, mass, slant = first.T
    table = ExpectedMuons.of(settings, mass, zenith, slant)
    low, high = table.ends(settings.expected_muons)
    weight = settings.law.density(energy) * energy * (high - low) / table.slope(energy)
    return np.repeat(weight, rows)[: len(primaries)]


def _drawn(settings: "SimulationSettings", num: int, rng: np.random.Generator) -> Primaries:
    energy = settings.law.quantile(rng.random(num))
    mass = rng.choice(np.array(settings.masses_gev), num)
    least_cosine = np.cos(np.deg2rad(settings.max_zenith_deg))
    zenith = np.arccos(least_cosine + (1 - least_cosine) * rng.random(num))
    if settings.depths_m:
        vertical = np.tile(np.sort(settings.depths_m), (num, 1))
    else:
        vertical = np.sort(rng.uniform(*settings.depth_range_m, (num, settings.depths_per_shower)), axis=1)
    energy, mass, zenith = (values.astype(np.float32).astype(np.float64) for values in (energy, mass, zenith))
    return energy, mass, zenith, vertical


@dataclass(frozen=True)
class ExpectedMuons:
    """The expected number of muons of showers at a depth, as a table in the primary's energy.

    Attributes:
        log_energy: natural logarithms of energies in GeV, at even distances.
        log_muons: natural logarithms of the numbers, [showers, energies], rising.
    """

    log_energy: FloatArray
    log_muons: FloatArray

    @classmethod
    def of(
        cls,
        settings: "SimulationSettings",
        mass_gev: FloatArray,
        zenith_rad: FloatArray,
        slant_m: FloatArray,
        points: int = POINTS,
    ) -> "ExpectedMuons":
        """Compute the table of showers, at one slant depth each."""
        medium = settings.passed
        cosine = np.cos(zenith_rad)
        water = propagation.water_equivalent_m(slant_m, cosine, medium)
        needed = propagation.mean_surface_energy_gev(water, settings.threshold_gev, medium)
        low, high = settings.energy_gev
        log_energy = np.linspace(np.log(low), np.log(high), points)
        energy = np.exp(log_energy)[None, :]
        nucleons = shower.mass_number(mass_gev)[:, None]
        mean = mean_yield(
            needed[:, None], energy, nucleons * np.ones_like(energy), cosine[:, None], altitude_m=medium.surface_m
        )
        # A primary below its threshold sends no muon: it gets a number far below every wanted number.
        return cls(log_energy, np.maximum.accumulate(np.log(np.maximum(mean, 1e-12)), axis=1))

    def ends(self, wanted: tuple[float, float]) -> tuple[FloatArray, FloatArray]:
        """Return the lowest and the highest logarithm of a wanted number that each shower can have."""
        low, high = np.log(wanted)
        return np.maximum(self.log_muons[:, 0], low), np.minimum(self.log_muons[:, -1], high)

    def energy_gev(self, log_muons: FloatArray) -> FloatArray:
        """Return the energy at which each shower has an expected number, given as its logarithm."""
        rows = zip(log_muons, self.log_muons, strict=True)
        return np.exp([np.interp(value, numbers, self.log_energy) for value, numbers in rows])

    def slope(self, energy_gev: FloatArray) -> FloatArray:
        """Return d ln(number) / d ln(energy) at an energy of each shower."""
        edges = self.log_energy[1:-1]
        part = np.searchsorted(edges, np.log(energy_gev), side="right")
        rows = np.arange(len(energy_gev))
        step = self.log_energy[1] - self.log_energy[0]
        slope: FloatArray = (self.log_muons[rows, part + 1] - self.log_muons[rows, part]) / step
        return slope
