"""Events beside nature for the tests: simulated ones, and flat ones whose muons are all alike."""

import numpy as np

from crmuons.data import arrow
from crmuons.data.events import EventArrays
from crmuons.evaluation.nature import compare
from crmuons.evaluation.nature.sample import Sample
from crmuons.evaluation.nature.weights import Drawn, Flux
from crmuons.simulation.simulate import MASSES_GEV, SimulationSettings

DEPTHS_M = (1109.1, 2199.6)  # 1 and 2 km w.e. of firn and ice.
SETTINGS = SimulationSettings(
    energy_gev=(400, 1e8), gamma=1.8, max_zenith_deg=0, depths_m=DEPTHS_M, threshold_gev=10
)  # fmt: skip
FLUX = Flux("GlobalSplineFit5Comp")


def rows_of(events, **drawn):
    made = Drawn(SETTINGS.energy_gev, SETTINGS.gamma, **({"threshold_gev": 10.0} | drawn))
    return {
        (row.quantity.split(",")[0], row.label, row.source): row
        for row in compare.compare(Sample.of(events, made, FLUX, None))
    }


def flat_events(num, *, energy_gev, gamma, masses=MASSES_GEV, depth_m=1109.1, muons=1, seed=0):
    """Vertical primaries of E^-gamma with `muons` muons of 100 GeV each."""
    rng = np.random.default_rng(seed)
    low, high = energy_gev
    uniform, power = rng.random(num), 1 - gamma
    energy = (
        low * (high / low) ** uniform
        if not power
        else (low**power + uniform * (high**power - low**power)) ** (1 / power)
    )
    primaries = np.stack([energy, np.zeros(num), rng.choice(masses, num), np.full(num, depth_m)], axis=1)
    ids = np.stack([np.arange(num), np.zeros(num)], axis=1).astype(np.uint64)
    return EventArrays(
        ids, primaries.astype(np.float32), np.full(num, muons), np.tile(np.float32([100, 3, 4]), (num * muons, 1))
    )


def write(path, events, **origin):
    path.parent.mkdir(parents=True, exist_ok=True)
    arrow.write_events(path, [arrow.to_table(events)], origin=(lambda: origin) if origin else None)
    return str(path)
