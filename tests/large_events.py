"""Events of which a few are large, for the tests of hard cells."""

import numpy as np

from crmuons.data.events import EventArrays

PROTON, IRON = 0.938, 52.0


def large_events(
    showers: int, seed: int, *, first_id: int = 0, factor: float = 1.0, brighter: float = 0.0
) -> EventArrays:
    """Showers of which one in a hundred has more than 1,000 muons; the mean N grows with the energy."""
    rng = np.random.default_rng(seed)
    log_energy = 4 + rng.exponential(0.65, showers).clip(max=4.2)
    primaries = np.stack(
        [
            10**log_energy,
            rng.uniform(0, 1.48, showers),
            rng.choice([PROTON, IRON], showers),
            rng.uniform(1500, 3000, showers),
        ],
        axis=1,
    )
    counts = rng.poisson(factor * rng.gamma(10, 0.1, showers) * 10 ** (log_energy - 4))
    energies, radii = 10 ** rng.normal(2.5 + brighter, 0.4, counts.sum()), 10 ** rng.normal(1, 0.35, counts.sum())
    azimuth = rng.uniform(0, 2 * np.pi, counts.sum())
    muons = np.stack([energies, radii * np.cos(azimuth), radii * np.sin(azimuth)], axis=1)
    ids = np.stack([np.arange(showers) + first_id, np.full(showers, 7)], axis=1)
    return EventArrays(ids.astype(np.uint64), primaries.astype(np.float32), counts, muons.astype(np.float32))
