"""Simulate muon bundles in ice, water or rock from published parametrisations: the work of `crmuons simulate`.

Events are drawn in blocks. A block depends on the settings, the seed and its number alone, so any number of processes
makes the same data set; ray_backend.simulate writes the files in Ray tasks. docs/simulator.md describes the physics and
its check against CORSIKA.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pyarrow as pa
from jaxtyping import Float32, Int64
from pydantic import BeforeValidator, Field

from crmuons.config.options import Events, Expected, Seed, check, check_value
from crmuons.data import arrow, geometry
from crmuons.data import features as muon_features
from crmuons.data.events import EventArrays
from crmuons.data.geometry import FloatArray
from crmuons.progress import progress
from crmuons.simulation import propagation, shower
from crmuons.simulation.nuclei import mass_gev
from crmuons.simulation.unfinished import finished_files

Counts = Int64[np.ndarray, " events"]
Muons = Float32[np.ndarray, "muons features"]

FEATURES = (
    "t_ns",
    "dir_x",
    "dir_y",
    "charge",
    "energy_surface_gev",
)  # That the simulator makes beside the first three.
DELAY = 5  # Row of the time in the state of `follow`; the charge and the energy at the surface follow.
SHOWERS_PER_BLOCK = 512  # Enough for numpy to be fast; few enough for showers of 10^5 muons to fit in memory.
BLOCKS_PER_FILE = 32
FILES_IN_PROCESS = 20  # One process writes about this many files in the 5 to 10 s that Ray takes to start.
MASSES_GEV = tuple(round(float(mass), 6) for mass in shower.mass_gev(np.array([1, 4, 14, 27, 56])))  # p, He, N, Al, Fe
MOST_DEPTH_M = 1e5
MOST_DEPTHS = 1_000  # of a shower
MOST_EVENTS = 10**10
BYTES_PER_EVENT = 100  # Of a file, for an event with ten muons.

Energy = Annotated[float, Field(gt=0, le=1e10), Expected("an energy above 0 GeV, at most 1e10")]
Gamma = Annotated[float, Field(ge=0, le=10), Expected("0 to 10 (the spectrum is E^-gamma)")]
Nucleus = Annotated[
    float, BeforeValidator(mass_gev), Expected("a nucleus by name or its mass in GeV (proton 0.938, iron 52.1)")
]
ZenithDeg = Annotated[float, Field(ge=0, le=89), Expected("0 to 89 degrees")]
Depth = Annotated[float, Field(gt=0, le=MOST_DEPTH_M), Expected(f"a depth in metres, at most {MOST_DEPTH_M:g}")]
DepthsPerShower = Annotated[int, Field(ge=1, le=MOST_DEPTHS), Expected(f"at least 1, at most {MOST_DEPTHS}")]
# With 0, muons that stopped would be kept.
Threshold = Annotated[float, Field(gt=0, le=1e6), Expected("more than 0 GeV, at most 1e+06")]


@dataclass(frozen=True)
class SimulationSettings:
    """Settings of a simulation.

    Attributes:
        energy_gev: range of the primaries' energies, drawn from E^-gamma.
        gamma: power of the spectrum. With 1 every decade has the same number of events; with 1.4 a similar number of
            muons.
        masses_gev: masses of the primaries, drawn in equal shares.
        max_zenith_deg: cos zenith is uniform between the cosine of this angle and 1.
        depth_range_m: range in which `depths_per_shower` vertical depths are drawn uniformly.
        depths_per_shower: number of depths at which each shower is recorded.
        depths_m: vertical depths at which every shower is recorded, instead of drawn ones.
        threshold_gev: muons that keep less than this at a depth are lost there.
        medium: what the muons pass, a name in propagation.MEDIA.
        features: numbers of a muon beyond energy_gev, x_m, y_m, names in FEATURES.
    """

    energy_gev: tuple[Energy, Energy] = (1e4, 1e9)
    gamma: Gamma = 1.4
    masses_gev: tuple[Nucleus, ...] = MASSES_GEV
    max_zenith_deg: ZenithDeg = 80.0
    depth_range_m: tuple[Depth, Depth] = (1_400.0, 2_600.0)
    depths_per_shower: DepthsPerShower = 3
    depths_m: tuple[Depth, ...] = ()
    threshold_gev: Threshold = 10.0
    medium: str = "ice"
    features: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_features(self.features)
        check(
            self, energy_gev="--energy-range", masses_gev="--masses", depth_range_m="--depth-range", depths_m="--depths"
        )
        check_medium(self.medium)
        low, high = self.energy_gev
        _require(low <= high, f"--energy-range {low:g} {high:g}: expected 0 < LOW <= HIGH <= 1e10, in GeV")
        _require(bool(self.masses_gev), "--masses: expected at least one mass in GeV")
        _require(
            len(self.depths_m) <= MOST_DEPTHS, f"--depths: {len(self.depths_m)} depths, expected at most {MOST_DEPTHS}"
        )
        low, high = self.depth_range_m
        _require(low <= high, f"--depth-range {low:g} {high:g}: expected LOW <= HIGH, in metres")
        least = self.passed.least_depth_m
        for depth in (*self.depth_range_m, *self.depths_m):
            _require(
                least <= depth <= MOST_DEPTH_M,
                f"vertical depth {depth:g} m: expected {least:g} m or more (muons below 100 GeV reach smaller depths of "
                f"{self.medium}, and the yield formula does not hold for them), and at most {MOST_DEPTH_M:g} m"
                + ("; is it in kilometres?" if depth < 10 else ""),
            )

    @property
    def rows_per_shower(self) -> int:
        """Return the number of depths, and so of rows, for each shower."""
        return len(self.depths_m) or self.depths_per_shower

    @property
    def passed(self) -> propagation.Medium:
        """Return the medium."""
        return propagation.MEDIA[self.medium]


def check_features(names: tuple[str, ...]) -> None:
    """Raise a ValueError unless the simulator makes features of these names."""
    for feature in muon_features.parse(names, "--features"):
        _require(
            feature.name in FEATURES, f"--features {feature.name}: the simulator makes {', '.join(FEATURES)} alone"
        )


def without_new(settings: dict[str, Any]) -> dict[str, Any]:
    """Return settings as files record them: without features, those of earlier versions are the same."""
    return {name: value for name, value in settings.items() if name != "features" or value}


def check_medium(name: str) -> None:
    """Raise a ValueError unless it is the name of a medium."""
    _require(name in propagation.MEDIA, f"--medium {name}: expected {', '.join(propagation.MEDIA)}")


def check_events(option: str, num_events: float) -> None:
    """Raise a ValueError for a number of events that no disk holds.

    Args:
        option: how the user wrote it, for the message.
        num_events: the number.
    """
    _require(
        num_events <= MOST_EVENTS,
        f"{option}: that would be about {num_events * BYTES_PER_EVENT / 1e12:,.0f} TB; expected at most {MOST_EVENTS:.0e}",
    )


def _require(holds: bool, message: str) -> None:
    if not holds:
        raise ValueError(message)


def draw_block(settings: SimulationSettings, seed: int, block: int) -> EventArrays:
    """Draw the events of one block: SHOWERS_PER_BLOCK showers, each at all its depths, in order of depth."""
    rng = np.random.Generator(np.random.SFC64(np.random.SeedSequence((seed, block))))
    energy, mass, zenith, vertical = _draw_primaries(settings, rng)
    cosine = np.cos(zenith)
    medium = settings.passed
    slant = geometry.slant_depth_m(vertical, cosine[:, None], medium.surface_m)
    water = propagation.water_equivalent_m(slant, cosine[:, None], medium)
    least = propagation.least_surface_energy_gev(water[:, 0], settings.threshold_gev, medium)
    surface = shower.draw_showers(energy, shower.mass_number(mass), cosine, least, altitude_m=medium.surface_m, rng=rng)
    counts, muons = follow(
        surface, slant, water, settings.threshold_gev, rng, medium=medium, features=settings.features
    )
    ids = np.empty((counts.size, 2), np.uint64)
    ids[:, 0] = seed
    ids[:, 1] = np.repeat(np.arange(len(energy)) + block * SHOWERS_PER_BLOCK, slant.shape[1])
    showers = np.stack([energy, zenith, mass], axis=1).repeat(slant.shape[1], axis=0)
    primaries = np.concatenate([showers, slant.reshape(-1, 1)], axis=1).astype(np.float32)
    return EventArrays(ids=ids, primaries=primaries, counts=counts, muons=muons)


def _draw_primaries(
    settings: SimulationSettings, rng: np.random.Generator
) -> tuple[FloatArray, FloatArray, FloatArray, FloatArray]:
    """Draw energies, masses and zeniths of a block's primaries, rounded to float32 like the files, and their depths."""
    num = SHOWERS_PER_BLOCK
    energy = draw_power_law(*settings.energy_gev, settings.gamma, rng.random(num))
    mass = rng.choice(np.array(settings.masses_gev), num)
    least_cosine = np.cos(np.deg2rad(settings.max_zenith_deg))
    zenith = np.arccos(least_cosine + (1 - least_cosine) * rng.random(num))
    if settings.depths_m:
        vertical = np.tile(np.sort(settings.depths_m), (num, 1))
    else:
        vertical = np.sort(rng.uniform(*settings.depth_range_m, (num, settings.depths_per_shower)), axis=1)
    energy, mass, zenith = (values.astype(np.float32).astype(np.float64) for values in (energy, mass, zenith))
    return energy, mass, zenith, vertical


def draw_power_law(low: float, high: float, gamma: float, uniform: FloatArray) -> FloatArray:
    """Return quantiles of E^-gamma between two energies."""
    if gamma == 1:
        return np.asarray(low * np.exp(uniform * np.log(high / low)))
    power = 1 - gamma
    energy: FloatArray = (low**power + uniform * (high**power - low**power)) ** (1 / power)
    return energy


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
        water_m: the same in metres of water, [showers, depths].
        threshold_gev: a muon with less energy at a depth is lost there and below.
        rng: draws the energy losses.
        medium: what the muons pass.
        features: names in FEATURES.

    Returns:
        The number of muons of each event, [showers * depths], and the muons of all events in this order, [muons, 3 + k]
        with the columns of the contract and the features.
    """
    num_showers, num_depths = slant_m.shape
    of_shower = np.repeat(np.arange(num_showers), surface.counts)
    rows = [surface.energy_gev, surface.x_m, surface.y_m, surface.angle_x, surface.angle_y]
    if features:  # Rows that stay with their muons: DELAY, CHARGE and the energy at the surface.
        assert surface.t_ns is not None
        assert surface.charge is not None
        rows += [surface.t_ns, surface.charge, surface.energy_gev]
    state = np.stack(rows)
    passed_m, passed_water = np.zeros(num_showers), np.zeros(num_showers)
    events: list[np.ndarray] = []
    muons: list[np.ndarray] = []
    for depth in range(num_depths):
        step, step_water = slant_m[:, depth] - passed_m, water_m[:, depth] - passed_water
        passed_m, passed_water = slant_m[:, depth], water_m[:, depth]
        energy = propagation.propagate(state[0], step_water[of_shower], rng, medium)
        alive = np.flatnonzero(energy >= threshold_gev)
        state, of_shower = state[:, alive], of_shower[alive]
        water = step_water[of_shower]
        shift, turn = propagation.scatter(state[0], energy[alive], water, rng, medium)
        before, slopes = state[0], state[3:5].copy()
        state[0] = energy[alive]
        state[1:3] += state[3:5] * step[of_shower] + shift * (step[of_shower] / np.maximum(water, 1e-9))
        state[3:5] += turn
        if features:
            mean_angle = np.sqrt(((slopes**2).sum(axis=0) + (state[3:5] ** 2).sum(axis=0)) / 2)
            state[DELAY] += shower.delay_ns(step[of_shower], mean_angle, before, state[0])
        events.append(of_shower * num_depths + depth)
        muons.append(np.concatenate([state[:3], _features(state, features)]).T.astype(np.float32))
    event = np.concatenate(events)
    counts = np.bincount(event, minlength=num_showers * num_depths)
    return counts, np.concatenate(muons)[np.argsort(event, kind="stable")]


def _features(state: FloatArray, names: Sequence[str]) -> FloatArray:
    """Return the features of muons from the rows of `follow`, [k, muons]."""
    if not names:
        return np.empty((0, state.shape[1]))
    along = 1 / np.sqrt(1 + (state[3:5] ** 2).sum(axis=0))  # The slopes of a unit vector.
    made = dict(zip(FEATURES, (state[DELAY], state[3] * along, state[4] * along, *state[DELAY + 1 :]), strict=True))
    return np.stack([made[name] for name in names])


def num_files(num_events: int, settings: SimulationSettings) -> int:
    """Return the number of files that hold this many events."""
    return -(-num_events // _rows_per_file(settings))


def _rows_per_file(settings: SimulationSettings) -> int:
    return BLOCKS_PER_FILE * SHOWERS_PER_BLOCK * settings.rows_per_shower


def _name(number: int) -> str:
    return f"events-{number:05d}.parquet"


def write_file(out: Path, settings: SimulationSettings, seed: int, num_events: int, number: int) -> int:
    """Draw and write file `number` of a data set of `num_events` events; return how many events it holds."""
    rows_per_block = SHOWERS_PER_BLOCK * settings.rows_per_shower
    first = number * BLOCKS_PER_FILE
    last = min(first + BLOCKS_PER_FILE, -(-num_events // rows_per_block))
    declared = (*muon_features.BASE, *muon_features.parse(settings.features))
    blocks = [arrow.to_table(draw_block(settings, seed, block), declared) for block in range(first, last)]
    table = pa.concat_tables(blocks).slice(0, num_events - first * rows_per_block)
    arrow.write_events(out / _name(number), [table], origin=lambda: _origin(settings, seed), features=declared)
    return int(table.num_rows)


def _origin(settings: SimulationSettings, seed: int) -> dict[str, object]:
    """Return what the files say of their making."""
    return {
        "command": "simulate",
        "settings": without_new(asdict(settings)) | {"seed": seed},
        "medium": asdict(settings.passed),
    }


def simulate(settings: SimulationSettings, *, num_events: int, out: Path, seed: int) -> None:
    """Write a data set of events, in this process. Files that an earlier, interrupted call has finished are kept.

    Raises:
        ValueError: see `plan_files`.
    """
    numbers, done = plan_files(settings, num_events, out, seed)
    with progress(num_events, unit="events", what="simulate", initial=done) as bar:
        for number in numbers:
            bar.update(write_file(out, settings, seed, num_events, number))


def plan_files(settings: SimulationSettings, num_events: int, out: Path, seed: int) -> tuple[list[int], int]:
    """Check the request, make the output directory, and find what an interrupted command has finished there.

    Returns:
        The numbers of the files to write, and the number of events in the others.

    Raises:
        ValueError: if `num_events` is 0 or more than a disk holds, the seed is negative, or the directory holds anything
            but files of the same simulation.
    """
    check_events(f"--events {num_events}", num_events)
    check_value("--events", Events, num_events)
    check_value("--seed", Seed, seed)
    out.mkdir(parents=True, exist_ok=True)
    size = _rows_per_file(settings)
    expected = {_name(n): min(size, num_events - n * size) for n in range(num_files(num_events, settings))}
    done = finished_files(out, expected, _origin(settings, seed))
    numbers = [number for number, name in enumerate(expected) if name not in done]
    return numbers, sum(expected[name] for name in done)
