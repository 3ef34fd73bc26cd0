"""Draw primaries from a spectrum, and give the simweights package the tables to weight them to a cosmic-ray flux.

Energies follow E^-gamma. Zenith angles follow the rate of an isotropic flux through a vertical cylinder, as in
simweights' `NaturalRateCylinder` and CORSIKA's VOLUMECORR: p(cos zenith) ~ pi r^2 cos + 2 r l sin.
"""

import dataclasses
import difflib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import pyarrow as pa

from crmuons.config.options import to_number
from crmuons.data import geometry, schema
from crmuons.data.parquet import open_parquet
from crmuons.generation.primaries import Primaries
from crmuons.generation.request_file import REQUEST_FILE, find_request
from crmuons.simulation import power_law, shower
from crmuons.simulation.nuclei import NUCLEI, symbol
from crmuons.simulation.power_law import PowerLaw, Powers
from crmuons.simulation.simulate import check_events
from crmuons.storage import files, records
from crmuons.storage.files import File
from crmuons.storage.output import Output

EVENTS_PER_DRAW = 65_536  # Events that share a random stream.
STREAM = 0x5EC  # Separates these random streams from the streams of the bundles, which have the same seed.
ANGLES = 4097  # Nodes of the zenith angle's distribution function; the interpolation error is 1e-7.


@dataclass(frozen=True)
class Spectrum:
    """A source of primaries drawn from a spectrum.

    Attributes:
        events: number of primaries.
        seed: seed of the random numbers.
        energy_gev: range of the energies.
        gamma: index of the power law E^-gamma, or indices with the energies of breaks between them (`power_law`).
        composition: symbols of nuclei (simulation.nuclei) and their relative shares.
        zenith_deg: range of the zenith angles.
        depth_m: range of the vertical depths, drawn uniformly; events carry the slant depth.
        cylinder_m: length and radius of the cylinder through which the flux passes.
    """

    events: int
    seed: int = 0
    energy_gev: tuple[float, float] = (600.0, 1e10)
    gamma: Powers = (1.0, 1e6, 1.5)
    composition: tuple[tuple[str, float], ...] = (("p", 1.0), ("He", 1.0), ("N", 1.0), ("Al", 1.0), ("Fe", 1.0))
    zenith_deg: tuple[float, float] = (0.0, 70.0)
    depth_m: tuple[float, float] = (1_450.0, 2_450.0)
    cylinder_m: tuple[float, float] = (1_600.0, 800.0)

    def __post_init__(self) -> None:
        _require(
            self.events >= 1 and float(self.events).is_integer(),
            f"events={self.events}: expected a whole number, at least 1",
        )
        check_events(f"--spectrum: events={self.events:g}", self.events)
        for name, (least, most) in _LIMITS.items():
            low, high = getattr(self, name)
            _require(
                least <= low <= high <= most, f"{name}={low:g}:{high:g}: expected {least:g} <= LOW <= HIGH <= {most:g}"
            )
        _require(not (why := power_law.fault(self.gamma)), f"gamma={why}")
        _require(bool(self.composition), "composition: expected at least one nucleus, for example p:0.5,Fe:0.5")
        for name, share in self.composition:
            _require(name in NUCLEI, f"composition: '{name}' is none of {', '.join(NUCLEI)}")
            _require(
                0 < share < np.inf, f"composition: the share of {name} is {share:g}, expected a finite share above 0"
            )
        names = [name for name, _ in self.composition]
        _require(len(set(names)) == len(names), f"composition: {', '.join(names)} names a nucleus twice")
        nucleons = [NUCLEI[name][1] for name in names]
        _require(
            len(set(nucleons)) == len(nucleons),
            f"composition: two of {', '.join(names)} have the same number of nucleons, and the mass alone identifies a nucleus",
        )
        length, radius = self.cylinder_m
        _require(
            0 <= length < np.inf and 0 < radius < np.inf,
            f"cylinder_m={length:g}:{radius:g}: expected finite LENGTH >= 0 and RADIUS > 0",
        )

    @classmethod
    def parse(cls, words: Sequence[str], seed: int) -> Self:
        """Return the spectrum for words like events=1000000 energy_gev=1e5:1e8 gamma=2 composition=p:0.5,Fe:0.5.

        Raises:
            ValueError: for an unknown word (the message names the nearest valid one), or a value that is malformed or
                out of range.
        """
        values: dict[str, Any] = {"seed": seed}
        known = [field.name for field in dataclasses.fields(cls) if field.name != "seed"]
        for word in words:
            name, equals, text = word.partition("=")
            if name not in known or not equals:
                near = difflib.get_close_matches(name, known, n=1, cutoff=0.0)[0]
                msg = f"--spectrum: '{word}' is not of the form NAME=VALUE with a known name; the nearest is '{near}='"
                raise ValueError(msg)
            values[name] = _value(name, text)
        if "events" not in values:
            msg = "--spectrum: say how many primaries to draw, for example --spectrum events=1000000"
            raise ValueError(msg)
        return cls(**values)

    @property
    def law(self) -> PowerLaw:
        """Return the law of the energies."""
        return PowerLaw(self.energy_gev, self.gamma)

    @classmethod
    def recorded(cls, values: dict[str, Any]) -> Self:
        """Return the spectrum that JSON holds."""
        return cls(**_tuples(dict(values)))

    def about(self) -> dict[str, object]:
        """Return the spectrum."""
        return {"spectrum": dataclasses.asdict(self)}

    def __iter__(self) -> Iterator[Primaries]:
        """Draw the primaries. A smaller number of events gives the first primaries of a larger number."""
        for number in range(-(-self.events // EVENTS_PER_DRAW)):
            first = number * EVENTS_PER_DRAW
            yield self._draw(number, first).slice(0, self.events - first)

    def _draw(self, number: int, first: int) -> Primaries:
        rng = np.random.default_rng([self.seed, number, STREAM])
        uniform = rng.random((3, EVENTS_PER_DRAW))
        zenith = self._zenith(uniform[1])
        vertical = self.depth_m[0] + uniform[2] * (self.depth_m[1] - self.depth_m[0])
        shares = np.array([share for _, share in self.composition])
        mass = self.masses_gev[rng.choice(len(shares), EVENTS_PER_DRAW, p=shares / shares.sum())]
        energy = _inside(self.law.quantile(uniform[0]), *self.energy_gev)
        values = np.stack([energy, zenith, mass, geometry.slant_depth_m(vertical, np.cos(zenith))], axis=1)
        numbers = np.arange(first, first + EVENTS_PER_DRAW, dtype=np.uint64)
        return Primaries(np.stack([numbers, np.zeros_like(numbers)], axis=1), values.astype(np.float32))

    def _zenith(self, uniform: np.ndarray) -> np.ndarray:
        low, high = np.deg2rad(self.zenith_deg)
        length, radius = self.cylinder_m
        angle = np.linspace(low, high, ANGLES)
        # The integral of (pi r cos + 2 l sin) sin d(angle).
        below = np.pi * radius * np.sin(angle) ** 2 / 2 + length * (angle - np.sin(angle) * np.cos(angle))
        zenith = np.interp(below[0] + uniform * (below[-1] - below[0]), below, angle)
        return _inside(zenith, float(low), float(high))

    @property
    def masses_gev(self) -> np.ndarray:
        """Return the masses of the composition's nuclei."""
        return shower.mass_gev(np.array([NUCLEI[name][1] for name, _ in self.composition]))


def simweights_tables(directory: str | Path) -> dict[str, dict[str, np.ndarray]]:
    """Return the tables of a generated data set, at a path or a URL, for `simweights.CorsikaWeighter`.

    The weights are rates in Hz of primaries through the cylinder, in the order of the events in the shards. The depth
    is drawn uniformly and is not part of the flux.

    Raises:
        ValueError: if the primaries were not drawn from a spectrum, or if events are missing.
    """
    spectrum = recorded_spectrum(directory)
    check_ranges(spectrum, str(directory))
    columns = [_primary_column(file) for file in files.list_files(Output.at(directory).url)]
    primary = np.concatenate([column.flatten().to_numpy() for column in columns]).reshape(-1, 4)
    if len(primary) != spectrum.events:
        msg = f"{directory} holds {len(primary)} of {spectrum.events} events; run its command again to make the rest"
        raise ValueError(msg)
    return weight_tables(spectrum, primary)


def recorded_spectrum(directory: str | Path) -> Spectrum:
    """Return the spectrum of a generated data set; raise a ValueError if its primaries come from files."""
    output = Output.at(directory)
    record = records.read(output.of(find_request(output) or REQUEST_FILE), keys=("primaries",))
    if "spectrum" not in record["primaries"]:
        msg = f"{directory}: its primaries come from files; only primaries of --spectrum have a known probability"
        raise ValueError(msg)
    return Spectrum.recorded(record["primaries"]["spectrum"])


def check_ranges(spectrum: Spectrum, what: str) -> None:
    """Raise a ValueError that begins with `what` if a range of the spectrum has no width."""
    for name in ("energy_gev", "zenith_deg"):
        low, high = getattr(spectrum, name)
        if low == high:
            msg = f"{what}: {name} is the single value {low:g}, and a flux has no weight for a range of no width"
            raise ValueError(msg)


def weight_tables(spectrum: Spectrum, primary: np.ndarray) -> dict[str, dict[str, np.ndarray]]:
    """Return the tables of primaries [events, 4] that were drawn from a spectrum: all of them, or a part.

    simweights' main branch reads CorsikaWeightMap; its releases do not.
    """
    energy, kinds = primary[:, 0], primary_types(primary[:, 2], spectrum)
    return {
        "I3CorsikaInfo": corsika_info(spectrum, spectrum.events),
        "PolyplopiaPrimary": {"energy": energy, "zenith": primary[:, 1], "type": kinds},
        "CorsikaWeightMap": {"PrimaryEnergy": energy, "PrimaryType": kinds, "Weight": np.ones(len(energy))},
    }


def corsika_info(spectrum: Spectrum, num_events: int) -> dict[str, np.ndarray]:
    """Return the columns of I3CorsikaInfo for this many events of a spectrum."""
    kinds = np.array([pdg(name) for name, _ in spectrum.composition])
    return _surface(dataclasses.replace(spectrum, events=num_events), kinds)


def primary_types(mass_gev: np.ndarray, spectrum: Spectrum | None) -> np.ndarray:
    """Return the Particle Data Group's numbers of the nuclei with these masses, among the spectrum's nuclei or all."""
    names = list(NUCLEI) if spectrum is None else [name for name, _ in spectrum.composition]
    masses = shower.mass_gev(np.array([NUCLEI[name][1] for name in names]))
    nearest = np.abs(mass_gev[:, None] - masses).argmin(axis=1)
    return np.array([pdg(name) for name in names])[nearest]


def _primary_column(file: File) -> pa.Array:
    with files.open_file(file.url, file.size) as opened, open_parquet(opened, file.url) as parquet:
        return parquet.read(columns=[schema.PRIMARY_COLUMN])[schema.PRIMARY_COLUMN].combine_chunks()


def _surface(spectrum: Spectrum, kinds: np.ndarray) -> dict[str, np.ndarray]:
    """Return a row for each nucleus and part of the spectrum, with the column names of IceCube's I3CorsikaInfo."""
    shares = np.array([share for _, share in spectrum.composition])
    parts = spectrum.law.segments
    low, high = np.deg2rad(spectrum.zenith_deg)
    constant = {
        "cylinder_height": spectrum.cylinder_m[0],
        "cylinder_radius": spectrum.cylinder_m[1],
        "min_zenith": low,
        "max_zenith": high,
        "oversampling": 1.0,
    }
    rows = {name: np.full(len(kinds) * len(parts), value) for name, value in constant.items()}
    columns = {"min_energy": "low_gev", "max_energy": "high_gev"}
    of_part = {name: np.tile([getattr(part, field) for part in parts], len(kinds)) for name, field in columns.items()}
    of_part["power_law_index"] = np.tile([-part.gamma for part in parts], len(kinds))
    num_events = spectrum.events * np.outer(shares / shares.sum(), [part.share for part in parts]).ravel()
    return rows | of_part | {"primary_type": np.repeat(kinds, len(parts)), "n_events": num_events}


_LIMITS = {"energy_gev": (1.0, 1e12), "zenith_deg": (0.0, 90.0), "depth_m": (schema.MIN_DEPTH_M, 1e5)}
_PAIRS = (*_LIMITS, "cylinder_m")


def _value(name: str, text: str) -> Any:
    try:
        if name == "composition":
            pairs = [part.split(":") for part in text.split(",")]
            return tuple((symbol(nucleus), to_number(share)) for nucleus, share in pairs)
        if name in _PAIRS:
            low, high = text.split(":")
            return to_number(low), to_number(high)
        if name == "gamma":
            return power_law.joined([to_number(word) for word in text.split(":")])
        value = to_number(text)
        return int(value) if name == "events" and value.is_integer() else value
    except ValueError as error:
        if "is none of" in str(error):
            msg = f"--spectrum: composition: {error}"
            raise ValueError(msg) from error
        forms = {"composition": "p:0.5,He:0.2,Fe:0.3", "events": "1000000", "gamma": "2.0", "zenith_deg": "0:60",
                 "depth_m": "1950:1950", "cylinder_m": "1000:500"}  # fmt: skip
        msg = f"--spectrum: {name}={text} cannot be read; write for example {name}={forms.get(name, '1e5:1e8')}"
        raise ValueError(msg) from error


def _tuples(values: dict[str, Any]) -> dict[str, Any]:
    """Convert the lists that JSON made of tuples back to tuples."""
    values["composition"] = tuple((name, share) for name, share in values["composition"])
    if isinstance(values["gamma"], list):
        values["gamma"] = tuple(values["gamma"])
    return values | {name: tuple(values[name]) for name in _PAIRS}


def pdg(name: str) -> int:
    """Return the Particle Data Group's number of a nucleus, 10LZZZAAAI, or of the proton, 2212."""
    charge, nucleons = NUCLEI[name]
    return 2212 if name == "p" else 1_000_000_000 + charge * 10_000 + nucleons * 10


def _inside(values: np.ndarray, low: float, high: float) -> np.ndarray:
    """Round to single precision and stay within the limits, because simweights gives primaries outside no weight."""
    lowest, highest = np.float32(low), np.float32(high)
    if lowest < low:
        lowest = np.nextafter(lowest, np.float32(np.inf))
    if highest > high:
        highest = np.nextafter(highest, np.float32(-np.inf))
    return np.clip(values.astype(np.float32), lowest, highest).astype(np.float64)


def _require(condition: bool, message: str) -> None:
    if not condition:
        msg = f"--spectrum: {message}"
        raise ValueError(msg)
