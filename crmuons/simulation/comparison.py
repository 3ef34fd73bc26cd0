"""Compare the simulator with CORSIKA in cells of nucleus and energy.

Both sides have the same primaries. Only muons above CORSIKA's energy cutoff, at the observation level, are compared.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64, Int64

from crmuons.simulation import shower
from crmuons.simulation.surface import SurfaceShower
from crmuons.simulation.yields import mean_yield

LEAST_SHOWERS = 30  # The table also shows cells with fewer showers, but their statistical errors are large.
NUM_MUONS = 20_000  # Muons to simulate for each cell, within the limits of REPLICAS.
REPLICAS = (40, 2_000)  # Fewest and most simulated showers for each CORSIKA shower.


@dataclass(frozen=True)
class ShowerSample:
    """Showers of one kind of primary.

    Attributes:
        counts: number of muons N of each shower.
        radius_m: distance of every muon from the shower axis.
    """

    counts: Int64[np.ndarray, " showers"]
    radius_m: Float64[np.ndarray, " muons"]

    @property
    def mean(self) -> float:
        """Return the mean of N."""
        return float(self.counts.mean())

    @property
    def mean_error(self) -> float:
        """Return the statistical error of the mean."""
        return float(self.counts.std() / np.sqrt(len(self.counts)))

    @property
    def width(self) -> float:
        """Return the standard deviation of N; the energy range of the cell widens both samples equally."""
        return float(self.counts.std())

    @property
    def median_radius_m(self) -> float:
        """Return the median distance from the axis; NaN without muons."""
        return float(np.median(self.radius_m)) if len(self.radius_m) else float("nan")


@dataclass(frozen=True)
class ComparisonCell:
    """The showers of one nucleus in one decade of energy, from CORSIKA and from the simulator."""

    mass_number: int
    decade: int
    corsika: ShowerSample
    simulated: ShowerSample

    @property
    def num_showers(self) -> int:
        """Return the number of CORSIKA showers in the cell."""
        return len(self.corsika.counts)


def compare_with_simulator(showers: Sequence[SurfaceShower], *, seed: int = 0) -> list[ComparisonCell]:
    """Simulate the primary of every shower many times, and sort all showers into cells of nucleus and decade of energy.

    The statistical errors of the simulated side are small: 1 % in N, 2 % in the median radius.
    """
    keys = sorted({_cell_of(cascade) for cascade in showers})
    rng = np.random.default_rng(seed)
    cells = []
    for mass_number, decade in keys:
        chosen = [cascade for cascade in showers if _cell_of(cascade) == (mass_number, decade)]
        cells.append(ComparisonCell(mass_number, decade, _corsika(chosen), _simulated(chosen, rng)))
    return cells


def _cell_of(cascade: SurfaceShower) -> tuple[int, int]:
    """Return the mass number and the decade of energy."""
    return cascade.mass_number, int(np.log10(cascade.energy_gev))


def comparison_table(cells: Sequence[ComparisonCell]) -> Iterator[str]:
    """Yield the comparison as the lines of a Markdown table."""
    yield (
        "| A | energy, GeV | showers | N CORSIKA | N simulated | ratio | width CORSIKA | width simulated | ratio "
        "| median r, m, CORSIKA | simulated | ratio |"
    )
    yield "|" + "---|" * 12
    for cell in cells:
        real, model = cell.corsika, cell.simulated
        columns = (
            str(cell.mass_number),
            f"1e{cell.decade}-1e{cell.decade + 1}",
            str(cell.num_showers),
            f"{real.mean:.2f} ± {real.mean_error:.2f}",
            f"{model.mean:.2f}",
            _ratio(model.mean, real.mean),
            f"{real.width:.2f}",
            f"{model.width:.2f}",
            _ratio(model.width, real.width),
            f"{real.median_radius_m:.1f}",
            f"{model.median_radius_m:.1f}",
            _ratio(model.median_radius_m, real.median_radius_m),
        )
        yield f"| {' | '.join(columns)} |"


def _ratio(simulated: float, real: float) -> str:
    return f"{simulated / real:.2f}" if real > 0 else "-"


def _corsika(showers: Sequence[SurfaceShower]) -> ShowerSample:
    counts = np.array([int(cascade.muons.counts[0]) for cascade in showers])
    radius = np.concatenate([np.hypot(cascade.muons.x_m, cascade.muons.y_m) for cascade in showers])
    return ShowerSample(counts, radius)


def _simulated(showers: Sequence[SurfaceShower], rng: np.random.Generator) -> ShowerSample:
    energy, mass_number, cosine, cutoff = _primaries(showers)
    expected = mean_yield(cutoff, energy, mass_number, cosine).sum()
    replicas = int(np.clip(NUM_MUONS / max(expected, 1e-9), *REPLICAS))
    energy, mass_number, cosine, cutoff = (np.tile(values, replicas) for values in _primaries(showers))
    altitude_m = showers[0].altitude_m
    drawn = shower.draw_showers(energy, mass_number, cosine, cutoff, altitude_m=altitude_m, rng=rng)
    return ShowerSample(drawn.counts, np.hypot(drawn.x_m, drawn.y_m))


def _primaries(showers: Sequence[SurfaceShower]) -> tuple[Float64[np.ndarray, " showers"], ...]:
    """Return the energies, mass numbers, cosines of the zenith angle and muon energy cutoffs of the showers."""
    rows = [
        (cascade.energy_gev, cascade.mass_number, np.cos(cascade.zenith_rad), cascade.cutoff_gev) for cascade in showers
    ]
    return tuple(np.array(rows, np.float64).T)
