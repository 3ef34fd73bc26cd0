"""Simulate muon bundles in ice, water or rock from published parametrisations: the work of `crmuons simulate`.

Events are drawn in blocks. A block depends only on the settings, the seed and its number, so any number of processes
makes the same data set; ray_backend.simulate writes the files in Ray tasks. docs/simulator.md describes the physics and
its check against CORSIKA.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pyarrow as pa
from pydantic import BeforeValidator, Field

from crmuons.config.options import Events, Expected, Seed, check, check_value
from crmuons.data import arrow, geometry
from crmuons.data import features as muon_features
from crmuons.data.events import EventArrays, concat
from crmuons.progress import progress
from crmuons.simulation import power_law, propagation, shower
from crmuons.simulation.nuclei import mass_gev
from crmuons.simulation.power_law import PowerLaw, Powers
from crmuons.simulation.primaries import draw_primaries, undoing_weights
from crmuons.simulation.tracks import FEATURES, follow
from crmuons.simulation.unfinished import finished_files
from crmuons.simulation.yields import most_muons

SHOWERS_PER_BLOCK = 512  # Enough for numpy to be fast.
# Expected number of muons of the showers of a block that are drawn and followed together, in 0.5 GB. A single shower of
# 1e10 GeV may have more than a million muons.
MUONS_AT_ONCE = 2**20
MUONS_PER_WRITE = 2**22  # Muons that are encoded and written together (50 MB).
BLOCKS_PER_FILE = 32
FILES_IN_PROCESS = 20  # One process writes about this many files in the 5 to 10 s that Ray takes to start.
MASSES_GEV = tuple(round(float(mass), 6) for mass in shower.mass_gev(np.array([1, 4, 14, 27, 56])))  # p, He, N, Al, Fe
MOST_DEPTH_M = 1e5
MOST_DEPTHS = 1_000  # Largest number of depths of a shower.
MOST_EVENTS = 10**10
WEIGHT_FIELD = pa.field("weight", pa.float64(), nullable=False)  # Added to the contract's columns with expected_muons.
BYTES_PER_EVENT = 100  # Bytes in a file for an event with ten muons.

Energy = Annotated[float, Field(gt=0, le=1e10), Expected("an energy above 0 GeV, at most 1e10")]
Gamma = Annotated[Powers, Expected("0 to 10 (the spectrum is E^-gamma), or such powers with breaks between them")]
GammaWord = Annotated[  # A value of --gamma: a power, or the energy of a break.
    float,
    Field(ge=0, le=1e10),
    Expected("a power from 0 to 10 (the spectrum is E^-gamma), or the energy of a break in GeV"),
]
ExpectedNumber = Annotated[float, Field(ge=1e-3, le=1e7), Expected("a number of muons, 0.001 to 1e7")]
Nucleus = Annotated[
    float, BeforeValidator(mass_gev), Expected("a nucleus by name or its mass in GeV (proton 0.938, iron 52.1)")
]
ZenithDeg = Annotated[float, Field(ge=0, le=89), Expected("0 to 89 degrees")]
Depth = Annotated[float, Field(gt=0, le=MOST_DEPTH_M), Expected(f"a depth in metres, at most {MOST_DEPTH_M:g}")]
DepthsPerShower = Annotated[int, Field(ge=1, le=MOST_DEPTHS), Expected(f"at least 1, at most {MOST_DEPTHS}")]
# A threshold of 0 would keep muons that stopped.
Threshold = Annotated[float, Field(gt=0, le=1e6), Expected("more than 0 GeV, at most 1e+06")]


@dataclass(frozen=True)
class SimulationSettings:
    """Settings of a simulation.

    Attributes:
        energy_gev: range of the primaries' energies, drawn from E^-gamma. Few muons of primaries below 600 GeV reach 1.2
            km w.e.
        gamma: power of the spectrum, or powers with the energies of breaks between them (`power_law`). With 1 every decade
            has the same number of events; with 1.8 a similar number of muons.
        masses_gev: masses of the primaries, drawn in equal shares.
        max_zenith_deg: cos zenith is uniform between the cosine of this angle and 1.
        depth_range_m: range in which `depths_per_shower` vertical depths are drawn uniformly.
        depths_per_shower: number of depths at which each shower is recorded.
        depths_m: vertical depths at which every shower is recorded, instead of drawn depths.
        threshold_gev: muons that keep less than this at a depth are lost there.
        medium: the matter that the muons pass, a name in propagation.MEDIA.
        features: numbers of a muon beyond energy_gev, x_m, y_m, names in FEATURES.
        expected_muons: energies are drawn for this range of the expected number of muons at the shower's smallest depth,
            flat in its logarithm; files then have the column `weight`, which undoes this. None: draw them from E^-gamma.
    """

    energy_gev: tuple[Energy, Energy] = (600.0, 1e10)
    gamma: Gamma = (1.0, 1e6, 1.5)
    masses_gev: tuple[Nucleus, ...] = MASSES_GEV
    max_zenith_deg: ZenithDeg = 80.0
    depth_range_m: tuple[Depth, Depth] = (1_400.0, 2_600.0)
    depths_per_shower: DepthsPerShower = 3
    depths_m: tuple[Depth, ...] = ()
    threshold_gev: Threshold = 10.0
    medium: str = "ice"
    features: tuple[str, ...] = ()
    expected_muons: tuple[ExpectedNumber, ExpectedNumber] | None = None

    def __post_init__(self) -> None:
        check_features(self.features)
        check(
            self,
            energy_gev="--energy-range",
            masses_gev="--masses",
            depth_range_m="--depth-range",
            depths_m="--depths",
            expected_muons="--expected-muons",
        )
        check_medium(self.medium)
        _require(not (why := power_law.fault(self.gamma)), f"--gamma {why}")
        low, high = self.energy_gev
        _require(low <= high, f"--energy-range {low:g} {high:g}: expected 0 < LOW <= HIGH <= 1e10, in GeV")
        _require(bool(self.masses_gev), "--masses: expected at least one mass in GeV")
        _require(
            len(self.depths_m) <= MOST_DEPTHS, f"--depths: {len(self.depths_m)} depths, expected at most {MOST_DEPTHS}"
        )
        if self.expected_muons is not None:
            low, high = self.expected_muons
            _require(low < high, f"--expected-muons {low:g} {high:g}: expected LOW < HIGH")
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
    def law(self) -> PowerLaw:
        """Return the law of the primaries' energies."""
        return PowerLaw(self.energy_gev, self.gamma)

    @property
    def passed(self) -> propagation.Medium:
        """Return the medium."""
        return propagation.MEDIA[self.medium]


def check_features(names: tuple[str, ...]) -> None:
    """Raise a ValueError unless the simulator makes features of these names."""
    for feature in muon_features.parse(names, "--features"):
        _require(feature.name in FEATURES, f"--features {feature.name}: the simulator makes only {', '.join(FEATURES)}")


def without_new(settings: dict[str, Any]) -> dict[str, Any]:
    """Return settings as files record them: newer settings that are not used are left out, as in earlier versions."""
    return {name: value for name, value in settings.items() if name not in {"features", "expected_muons"} or value}


def check_medium(name: str) -> None:
    """Raise a ValueError unless it is the name of a medium."""
    _require(name in propagation.MEDIA, f"--medium {name}: expected {', '.join(propagation.MEDIA)}")


def check_events(option: str, num_events: float) -> None:
    """Raise a ValueError for a number of events that no disk holds.

    Args:
        option: the user's words, for the message.
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
    return concat(list(draw_parts(settings, seed, block)))


def draw_parts(settings: SimulationSettings, seed: int, block: int) -> Iterator[EventArrays]:
    """Draw the events of one block in parts of about MUONS_AT_ONCE muons; most blocks have one part."""
    rng = np.random.Generator(np.random.SFC64(np.random.SeedSequence((seed, block))))
    energy, mass, zenith, vertical = draw_primaries(settings, SHOWERS_PER_BLOCK, rng)
    cosine = np.cos(zenith)
    medium = settings.passed
    slant = geometry.slant_depth_m(vertical, cosine[:, None], medium.surface_m)
    water = propagation.water_equivalent_m(slant, cosine[:, None], medium)
    least = propagation.least_surface_energy_gev(water[:, 0], settings.threshold_gev, medium)
    nucleons = shower.mass_number(mass)
    expected = most_muons(energy, nucleons, cosine, least, altitude_m=medium.surface_m)
    part = (np.cumsum(expected) // MUONS_AT_ONCE).astype(np.int64)
    for number in np.unique(part):
        rows = np.flatnonzero(part == number)
        surface = shower.draw_showers(
            energy[rows], nucleons[rows], cosine[rows], least[rows], altitude_m=medium.surface_m, rng=rng
        )
        counts, muons = follow(
            surface, slant[rows], water[rows], settings.threshold_gev, rng, medium=medium, features=settings.features
        )
        ids = np.empty((counts.size, 2), np.uint64)
        ids[:, 0] = seed
        ids[:, 1] = np.repeat(rows + block * SHOWERS_PER_BLOCK, slant.shape[1])
        showers = np.stack([energy[rows], zenith[rows], mass[rows]], axis=1).repeat(slant.shape[1], axis=0)
        primaries = np.concatenate([showers, slant[rows].reshape(-1, 1)], axis=1).astype(np.float32)
        yield EventArrays(ids=ids, primaries=primaries, counts=counts, muons=muons)


def num_files(num_events: int, settings: SimulationSettings) -> int:
    """Return the number of files that hold this many events."""
    return -(-num_events // _rows_per_file(settings))


def _rows_per_file(settings: SimulationSettings) -> int:
    return BLOCKS_PER_FILE * SHOWERS_PER_BLOCK * settings.rows_per_shower


def _name(number: int) -> str:
    return f"events-{number:05d}.parquet"


def write_file(out: Path, settings: SimulationSettings, seed: int, num_events: int, number: int) -> int:
    """Draw and write file `number` of a data set of `num_events` events; return how many events it holds."""
    first = number * _rows_per_file(settings)
    num_rows = min(_rows_per_file(settings), num_events - first)
    tables = _tables(settings, seed, number * BLOCKS_PER_FILE, num_rows)
    declared = (*muon_features.BASE, *muon_features.parse(settings.features))
    arrow.write_events(
        out / _name(number),
        tables,
        origin=lambda: _origin(settings, seed),
        features=declared,
        columns=() if settings.expected_muons is None else (WEIGHT_FIELD,),
    )
    return num_rows


def _tables(settings: SimulationSettings, seed: int, block: int, num_rows: int) -> Iterator[pa.Table]:
    """Draw blocks from a first one on, and yield `num_rows` of their events in tables of about MUONS_PER_WRITE muons."""
    tables: list[pa.Table] = []
    declared = (*muon_features.BASE, *muon_features.parse(settings.features))
    muons = 0
    while num_rows:
        for part in draw_parts(settings, seed, block):
            table = arrow.to_table(part, declared)
            if settings.expected_muons is not None:
                table = table.append_column(WEIGHT_FIELD, pa.array(undoing_weights(settings, part.primaries)))
            tables.append(table.slice(0, num_rows))
            num_rows -= tables[-1].num_rows
            muons += len(part.muons)
            if muons >= MUONS_PER_WRITE:
                yield pa.concat_tables(tables)
                tables, muons = [], 0
            if not num_rows:
                break
        block += 1
    if tables:
        yield pa.concat_tables(tables)


def _origin(settings: SimulationSettings, seed: int) -> dict[str, object]:
    """Return the metadata that say how the files were made."""
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
        ValueError: if `num_events` is 0 or more than a disk holds, the seed is negative, or the directory holds other
            things than files of the same simulation.
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
