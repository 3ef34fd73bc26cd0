"""The simulator beside CORSIKA: the same primaries, muons above CORSIKA's cutoff at the observation level, cell by cell."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64, Int64

from crmuons.simulation import shower
from crmuons.simulation.corsika import CorsikaShower

LEAST_SHOWERS = 30  # A cell with fewer showers is shown, but says little.
NUM_MUONS = 20_000  # Simulated for each cell, as far as the next allows.
REPLICAS = (40, 2_000)  # Simulated showers for each of CORSIKA's: fewest, most.


@dataclass(frozen=True)
class ShowerSample:
    """Showers of one kind of primary: N of each, and all muons' distances from the axis."""

    counts: Int64[np.ndarray, " showers"]
    radius_m: Float64[np.ndarray, " muons"]

    @property
    def mean(self) -> float:
        """Mean N."""
        return float(self.counts.mean())

    @property
    def mean_error(self) -> float:
        """Statistical error of the mean."""
        return float(self.counts.std() / np.sqrt(len(self.counts)))

    @property
    def width(self) -> float:
        """Standard deviation of N; the cell's range of energies widens both samples alike."""
        return float(self.counts.std())

    @property
    def median_radius_m(self) -> float:
        """Median distance from the axis, NaN without muons."""
        return float(np.median(self.radius_m)) if len(self.radius_m) else float("nan")


@dataclass(frozen=True)
class Cell:
    """One nucleus in one decade of energy, from CORSIKA and from the simulator."""

    mass_number: int
    decade: int
    corsika: ShowerSample
    simulated: ShowerSample

    @property
    def num_showers(self) -> int:
        """CORSIKA's showers in the cell."""
        return len(self.corsika.counts)


def compare(showers: Sequence[CorsikaShower], *, seed: int = 0) -> list[Cell]:
    """Simulate every shower's primary some times, and sort both into cells of nucleus and decade of energy.

    The simulated side's statistical errors are small beside CORSIKA's: 1 % in N, 2 % in the median radius.
    """
    keys = sorted({(one.mass_number, int(np.log10(one.energy_gev))) for one in showers})
    rng = np.random.default_rng(seed)
    cells = []
    for mass_number, decade in keys:
        chosen = [one for one in showers if (one.mass_number, int(np.log10(one.energy_gev))) == (mass_number, decade)]
        cells.append(Cell(mass_number, decade, _corsika(chosen), _simulated(chosen, rng)))
    return cells


def table(cells: Sequence[Cell]) -> Iterator[str]:
    """The comparison as lines of a Markdown table."""
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


def _corsika(showers: Sequence[CorsikaShower]) -> ShowerSample:
    counts = np.array([int(one.surface.counts[0]) for one in showers])
    radius = np.concatenate([np.hypot(one.surface.x_m, one.surface.y_m) for one in showers])
    return ShowerSample(counts, radius)


def _simulated(showers: Sequence[CorsikaShower], rng: np.random.Generator) -> ShowerSample:
    energy, mass_number, cosine, cutoff = _primaries(showers)
    expected = shower.mean_yield(cutoff, energy, mass_number, cosine).sum()
    replicas = int(np.clip(NUM_MUONS / max(expected, 1e-9), *REPLICAS))
    energy, mass_number, cosine, cutoff = (np.tile(values, replicas) for values in _primaries(showers))
    altitude_m = showers[0].altitude_m
    drawn = shower.draw_showers(energy, mass_number, cosine, cutoff, altitude_m=altitude_m, rng=rng)
    return ShowerSample(drawn.counts, np.hypot(drawn.x_m, drawn.y_m))


def _primaries(showers: Sequence[CorsikaShower]) -> tuple[Float64[np.ndarray, " showers"], ...]:
    """Energy, mass number, cosine of the zenith and muon cutoff of each."""
    rows = [(one.energy_gev, one.mass_number, np.cos(one.zenith_rad), one.cutoff_gev) for one in showers]
    return tuple(np.array(rows, np.float64).T)
