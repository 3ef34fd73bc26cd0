"""Draw random events with a given mean multiplicity, for measurements that do not depend on their physics."""

import numpy as np

from crmuons.data.events import EventArrays


def draw(events: int, mean_muons: float, seed: int = 0) -> EventArrays:
    """Draw events with N from a negative binomial of shape 0.5: most are empty or small, a few have most muons."""
    random = np.random.default_rng(seed)
    counts = random.poisson(mean_muons * random.gamma(0.5, 2.0, events))
    muons = int(counts.sum())
    primaries = [
        10 ** random.uniform(5, 8, events),
        random.uniform(0, 1.2, events),
        random.choice([0.938, 3.727, 52.1], events),
        random.uniform(1500, 2500, events),
    ]
    radius, azimuth = 10 ** random.normal(1.0, 0.4, muons), random.uniform(0, 2 * np.pi, muons)
    columns = [10 ** random.normal(2.5, 0.5, muons), radius * np.cos(azimuth), radius * np.sin(azimuth)]
    ids = np.stack([np.full(events, seed + 1), np.arange(events)], axis=1)
    return EventArrays(
        ids.astype(np.uint64),
        np.stack(primaries, axis=1).astype(np.float32),
        counts.astype(np.int64),
        np.stack(columns, axis=1).astype(np.float32),
    )
