"""Follow the muons of showers from the surface to one depth after the other."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float32, Int64

from crmuons.data.geometry import FloatArray
from crmuons.simulation import propagation, shower

Counts = Int64[np.ndarray, " events"]
Muons = Float32[np.ndarray, "muons features"]
FEATURES = ("t_ns", "dir_x", "dir_y", "charge", "energy_surface_gev")  # In addition to energy_gev, x_m, y_m.
DELAY = 5  # Row of the time in the state of `follow`; the charge and the energy at the surface follow.


def follow(
    surface: shower.Showers,
    slant_m: FloatArray,
    water_m: FloatArray,
    threshold_gev: float,
    rng: np.random.Generator,
    *,
    medium: propagation.Medium = propagation.ICE,
    features: Sequence[str] = (),
) -> tuple[Counts, Muons]:
    """Propagate muons from the surface to one depth after the other.

    Args:
        surface: the showers' muons.
        slant_m: depths along the track, in rising order, [showers, depths].
        water_m: the same depths in metres of water, [showers, depths].
        threshold_gev: a muon with less energy at a depth is lost there and below.
        rng: draws the energy losses.
        medium: the matter that the muons pass.
        features: names in FEATURES.

    Returns:
        The number of muons of each event, [showers * depths], and the muons of all events in this order, [muons, 3 + k]
        with the columns of the contract and the features.
    """
    num_showers, num_depths = slant_m.shape
    of_shower = np.repeat(np.arange(num_showers, dtype=np.int32), surface.counts)
    columns = [surface.energy_gev, surface.x_m, surface.y_m, surface.angle_x, surface.angle_y]
    if features:  # More rows of `state`, which stay with their muons.
        assert surface.t_ns is not None
        assert surface.charge is not None
        columns += [surface.t_ns, surface.charge, surface.energy_gev]
    state = np.stack([column.astype(np.float32) for column in columns])
    passed_m, passed_water = np.zeros(num_showers), np.zeros(num_showers)
    events: list[np.ndarray] = []
    muons: list[np.ndarray] = []
    for depth in range(num_depths):
        step, step_water = slant_m[:, depth] - passed_m, water_m[:, depth] - passed_water
        passed_m, passed_water = slant_m[:, depth], water_m[:, depth]
        step, step_water = step.astype(np.float32), step_water.astype(np.float32)
        least = propagation.least_surface_energy_gev(step_water, threshold_gev, medium) * (1 - 1e-6)
        alive = np.flatnonzero(state[0] >= least[of_shower])  # No other muon can arrive, even with the smallest losses.
        energy = propagation.propagate(state[0, alive], step_water[of_shower[alive]], rng, medium)
        arrived = np.flatnonzero(energy >= threshold_gev)
        energy, alive = energy[arrived], alive[arrived]
        state, of_shower = state[:, alive], of_shower[alive]
        shift, turn = propagation.scatter(state[0], energy, step_water[of_shower], rng, medium)
        before, slopes = state[0].copy(), state[3:5].copy()
        state[0] = energy
        metres = step / np.maximum(step_water, 1e-9)  # Metres of the medium for a metre of water.
        state[1:3] += state[3:5] * step[of_shower] + shift * metres[of_shower]
        state[3:5] += turn
        if features:
            mean_angle = np.sqrt(((slopes**2).sum(axis=0) + (state[3:5] ** 2).sum(axis=0)) / 2)
            state[DELAY] += shower.delay_ns(step[of_shower], mean_angle, before, state[0])
        events.append(of_shower * num_depths + depth)
        muons.append(np.concatenate([state[:3], _features(state, features)]).T if features else state[:3].T)
    event = np.concatenate(events)
    counts = np.bincount(event, minlength=num_showers * num_depths)
    return counts, np.concatenate(muons)[np.argsort(event, kind="stable")]


def _features(state: FloatArray, names: Sequence[str]) -> FloatArray:
    """Return the features of muons from the rows of `follow`, [k, muons]."""
    along = 1 / np.sqrt(1 + (state[3:5] ** 2).sum(axis=0))  # Turns slopes into components of a unit vector.
    made = dict(zip(FEATURES, (state[DELAY], state[3] * along, state[4] * along, *state[DELAY + 1 :]), strict=True))
    return np.stack([made[name] for name in names])
