"""A power law of the primaries' energies, E^-gamma, with breaks where the power changes: its quantiles and its density.

A law is written as its power, 1.4, or as powers with the energies in GeV of the breaks between them: 1 1e6 1.5 is E^-1
below 1e6 GeV and E^-1.5 above. It is continuous. Breaks outside of the range of the energies change nothing.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import numpy as np

from crmuons.data.geometry import FloatArray

Powers = float | tuple[float, ...]
MOST_POWER = 10.0


@dataclass(frozen=True)
class Segment:
    """A part of the range without a break.

    Attributes:
        low_gev, high_gev: ends of the part.
        gamma: power in this part.
        share: probability of an energy in this part.
    """

    low_gev: float
    high_gev: float
    gamma: float
    share: float


@dataclass(frozen=True)
class PowerLaw:
    """Energies of E^-gamma between two energies.

    Attributes:
        energy_gev: lowest and highest energy.
        gamma: one power, or powers with the energies of breaks between them.
    """

    energy_gev: tuple[float, float]
    gamma: Powers

    @cached_property
    def segments(self) -> list[Segment]:
        """Return the parts of the range, from low to high."""
        powers, breaks = split(self.gamma)
        low, high = self.energy_gev
        edges = [low, *np.clip(breaks, low, high).tolist(), high]
        # The law is continuous, so the height of each part at its lower edge follows from the part before. A range of no width
        # has one part with all of the probability.
        height, sizes = 1.0, []
        for (start, end), power in zip(pairwise(edges), powers, strict=True):
            sizes.append(height * _integral(end / start, power) * start)
            height *= (end / start) ** -power
        total = sum(sizes)
        parts = [
            Segment(start, end, power, size / total if total > 0 else 1.0)
            for (start, end), power, size in zip(pairwise(edges), powers, sizes, strict=True)
            if size > 0
        ]
        return parts or [Segment(low, high, powers[0], 1.0)]

    def quantile(self, uniform: FloatArray) -> FloatArray:
        """Return the energies below which the given shares of all energies lie."""
        parts = self.segments
        if len(parts) == 1:
            return _quantile(parts[0], uniform)
        below = np.cumsum([part.share for part in parts])
        number = np.minimum(np.searchsorted(below, uniform, side="right"), len(parts) - 1)
        energy = np.empty_like(uniform)
        for index, part in enumerate(parts):
            inside = number == index
            within = (uniform[inside] - (below[index] - part.share)) / part.share
            energy[inside] = _quantile(part, np.clip(within, 0.0, 1.0))
        return energy

    def density(self, energy_gev: FloatArray) -> FloatArray:
        """Return the probability per GeV of energies; 0 outside of the range.

        Energies in files are float32, so the range is wider by its rounding.
        """
        low, high = self.energy_gev
        inside = (energy_gev >= low * (1 - 1e-6)) & (energy_gev <= high * (1 + 1e-6))
        density = np.zeros(energy_gev.shape)
        for part in self.segments:
            here = inside & (energy_gev < part.high_gev if part.high_gev < high else True)
            norm = part.low_gev * _integral(part.high_gev / part.low_gev, part.gamma)
            density[here] = part.share / norm * (energy_gev[here] / part.low_gev) ** -part.gamma
            inside &= ~here
        return density

    def __str__(self) -> str:
        """Return the law in words."""
        first, *others = self.segments
        return f"E^-{first.gamma:g}" + "".join(f", E^-{part.gamma:g} from {part.low_gev:g} GeV" for part in others)


def split(gamma: Powers) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return the powers, and the energies of the breaks between them."""
    words = (gamma,) if isinstance(gamma, int | float) else tuple(gamma)
    return words[::2], words[1::2]


def joined(words: Sequence[float]) -> Powers:
    """Return the law that a user or a file gives as a list of numbers."""
    return words[0] if len(words) == 1 else tuple(words)


def fault(gamma: Powers) -> str:
    """Return the fault of a law, as the text after the name of its option; empty if there is no fault."""
    powers, breaks = split(gamma)
    for power in powers:
        if not 0 <= power <= MOST_POWER:
            return f"{power:g}: expected 0 to {MOST_POWER:g} (the spectrum is E^-gamma)"
    words = " ".join(f"{word:g}" for word in ((gamma,) if isinstance(gamma, int | float) else gamma))
    rising = all(0 < low < high for low, high in pairwise((*breaks, np.inf)))
    if len(powers) != len(breaks) + 1 or not rising:
        return (
            f"{words}: expected a power, or powers with rising energies in GeV between them at which the power changes, for "
            "example 1 1e6 1.5"
        )
    return ""


def _integral(ratio: float, gamma: float) -> float:
    """Return the integral of x^-gamma from 1 to `ratio`."""
    power = 1 - gamma
    return float(np.log(ratio)) if power == 0 else float((ratio**power - 1) / power)


def _quantile(part: Segment, uniform: FloatArray) -> FloatArray:
    low, ratio, power = part.low_gev, part.high_gev / part.low_gev, 1 - part.gamma
    scaled = ratio**uniform if power == 0 else (1 + uniform * (ratio**power - 1)) ** (1 / power)
    # For a steep law the last formula is exact only to 3e-5 at the upper end, and energies outside of the range would have
    # no weight.
    return np.clip(low * scaled, low, part.high_gev)
