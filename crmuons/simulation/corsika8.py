"""Read the output directories of CORSIKA 8 for `crmuons convert corsika`.

The layout is defined by its writers ParticleWriterParquet, ObservationPlane and PrimaryWriter in the CORSIKA 8 sources
(https://gitlab.iap.kit.edu/AirShowerPhysics/corsika, corsika/detail/modules and corsika/detail/output):

    LIBRARY/particles/particles.parquet  shower, pdg, kinetic_energy (GeV), x, y, [z] (m), nx, ny, nz, time (s), weight
    LIBRARY/particles/config.yaml        plane: center and normal, from the Earth's centre in m
    LIBRARY/primary/summary.yaml         shower_0: pdg, kinetic_energy (GeV), x, y, z (m), nx, ny, nz; shower_1: ...

Positions are relative to the plane's centre. Components of positions and directions are along the plane's two axes and
along its normal, which points upward.
"""

import hashlib
import os
from collections import Counter
from collections.abc import Collection, Iterator
from typing import IO, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import yaml

from crmuons.data.events import EventArrays
from crmuons.data.parquet import open_parquet
from crmuons.simulation import shower
from crmuons.simulation.shower import LIGHT_M_PER_NS
from crmuons.simulation.surface import MUON_MASS_GEV, DepthSettings, SurfaceShower, across_axis, to_events
from crmuons.storage import files

PARTICLES, CONFIG, PRIMARIES = "particles/particles.parquet", "particles/config.yaml", "primary/summary.yaml"
OTHER_SUFFIXES = (".yaml", ".parquet", ".npz")
COLUMNS = ("shower", "pdg", "kinetic_energy", "x", "y", "nx", "ny", "nz", "time", "weight")
NS_PER_S = 1e9
MUON_PDG = 13
PROTON_PDG, NEUTRON_PDG, NUCLEUS_PDG = 2212, 2112, 1_000_000_000  # A nucleus is 10LZZZAAAI.
EARTH_RADIUS_M = 6_371_000.0  # CORSIKA 8's constants::EarthRadius::Mean
FOOTER_BYTES = 65_536  # At the end of the particles' file: sizes and value ranges of the columns.
LARGEST_TILT = 1e-3  # Largest tilt of the observation plane in rad: the Earth bends by this angle over 6 km.


def library_of(url: str) -> str | None:
    """Return the library of a file that has the name of CORSIKA 8's particles; None for another name."""
    return url.removesuffix(f"/{PARTICLES}") if url.endswith(f"/{PARTICLES}") else None


def is_other_output(url: str, libraries: Collection[str]) -> bool:
    """Return whether a file is another output that CORSIKA 8 writes into one of these libraries."""
    return url.endswith(OTHER_SUFFIXES) and any(url.startswith(f"{library}/") for library in libraries)


def is_particles(url: str, size: int, library: str | None) -> bool:
    """Return whether a Parquet file has the columns of CORSIKA 8's particles.

    Raises:
        ValueError: if it has them but is not in a library, so that its primaries cannot be found.
    """
    with files.open_file(url, size) as opened:
        found = set(COLUMNS) <= set(pq.read_schema(opened).names)
    if found and library is None:
        msg = f"particles of CORSIKA 8, but not at DIRECTORY/{PARTICLES}, so DIRECTORY/{PRIMARIES} has no primaries for them"
        raise ValueError(msg)
    return found


def read_events(library: str, settings: DepthSettings, notes: Counter[str]) -> Iterator[EventArrays]:
    """Yield the events of a library at some depths.

    Raises:
        ValueError: if a file is missing or not as CORSIKA 8 writes it, a muon has a weight other than 1, the plane is
            tilted, or a primary is not a nucleus.
    """
    yield from to_events(read_showers(library), settings, notes)


def read_showers(library: str) -> Iterator[SurfaceShower]:
    """Yield the showers of a library. It raises the same errors as `read_events`."""
    primaries_text = _read(library, PRIMARIES)
    altitude_m = _altitude_m(_read(library, CONFIG))
    primaries = _mapping(primaries_text, PRIMARIES)
    with files.open_file(f"{library}/{PARTICLES}") as opened:
        run = _run(opened, primaries_text)
        muons = _muons(opened)
    numbers = {_number(name): values for name, values in primaries.items()}
    unknown = set(muons["shower"].tolist()) - set(numbers)
    if unknown:
        msg = f"{PRIMARIES} has no primary for shower {min(unknown)}, which has muons in {PARTICLES}"
        raise ValueError(msg)
    for number, primary in sorted(numbers.items()):
        yield _to_shower(run, number, primary, muons[muons["shower"] == number], altitude_m)


def _read(library: str, name: str) -> bytes:
    try:
        return files.read_bytes(f"{library}/{name}")
    except FileNotFoundError as error:
        msg = f"the output directory of CORSIKA 8 has no {name}; give the whole directory, as CORSIKA 8 wrote it"
        raise ValueError(msg) from error


def _run(opened: IO[bytes], primaries: bytes) -> int:
    """Return a number for the run, because CORSIKA 8 has none: different libraries get different numbers, copies the same."""
    size = opened.seek(0, os.SEEK_END)
    opened.seek(max(size - FOOTER_BYTES, 0))
    return int.from_bytes(hashlib.sha256(primaries + opened.read()).digest()[:7], "big")


def _mapping(text: bytes, name: str) -> dict[str, Any]:
    try:
        values = yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError) as error:
        msg = f"{name} is damaged ({' '.join(str(error).split())})"
        raise ValueError(msg) from error
    if not isinstance(values, dict) or not values:
        msg = f"{name} is empty or damaged"
        raise ValueError(msg)
    return values


def _altitude_m(config: bytes) -> float:
    """Return the altitude of the observation plane above sea level."""
    plane = _field(_mapping(config, CONFIG), "plane", CONFIG)
    try:
        centre, normal = (np.array(_field(plane, name, CONFIG), np.float64).reshape(3) for name in ("center", "normal"))
    except (TypeError, ValueError) as error:
        msg = f"{CONFIG}: plane: center and normal should have three numbers each ({error})"
        raise ValueError(msg) from error
    distance = float(np.linalg.norm(centre))
    vertical = float(centre @ normal) / (distance * float(np.linalg.norm(normal)))
    if not vertical >= np.cos(LARGEST_TILT):
        msg = (
            f"{CONFIG}: the observation plane is not horizontal (center {centre}, normal {normal}); only horizontal planes "
            "are read"
        )
        raise ValueError(msg)
    return distance - EARTH_RADIUS_M


def _field(values: Any, name: str, source: str) -> Any:
    try:
        return values[name]
    except (KeyError, TypeError) as error:
        msg = f"{source} has no '{name}'"
        raise ValueError(msg) from error


def _value(values: Any, name: str, source: str) -> float:
    """Return a number of a mapping; YAML 1.1 reads 1e+06 as text, so text is converted."""
    found = _field(values, name, source)
    try:
        return float(found)
    except (TypeError, ValueError) as error:
        msg = f"{source}: '{name}' is no number ({found})"
        raise ValueError(msg) from error


def _number(name: str) -> int:
    prefix, _, number = str(name).partition("_")
    if prefix != "shower" or not number.isdecimal():
        msg = f"{PRIMARIES}: '{name}' was expected to be shower_NUMBER"
        raise ValueError(msg)
    return int(number)


def _muons(opened: IO[bytes]) -> np.ndarray:
    """Return the muons' columns as a structured array, and refuse weights."""
    opened.seek(0)
    with open_parquet(opened, PARTICLES) as parquet:
        table = parquet.read(columns=list(COLUMNS))
    table = table.filter(pc.is_in(table["pdg"], pa.array([MUON_PDG, -MUON_PDG], table.schema.field("pdg").type)))
    muons = np.empty(table.num_rows, [(name, np.float64) for name in COLUMNS])
    for name in COLUMNS:
        muons[name] = table[name].to_numpy()
    weights = muons["weight"]
    if (weights != 1).any():
        msg = (
            f"thinned ({(weights != 1).sum()} of {len(weights)} muons have weights other than 1, the largest "
            f"{weights.max():g}): a muon of weight w stands for w similar muons that are not in the file, so its bundles "
            "have the wrong muons; simulate without thinning"
        )
        raise ValueError(msg)
    return muons


def _to_shower(run: int, number: int, primary: Any, muons: np.ndarray, altitude_m: float) -> SurfaceShower:
    source = f"{PRIMARIES}, shower_{number}"
    mass_number = _mass_number(int(_value(primary, "pdg", source)))
    point, direction = (
        np.array([_value(primary, name, source) for name in names]) for names in (("x", "y", "z"), ("nx", "ny", "nz"))
    )
    if not direction[2] < 0:
        msg = f"{source}: the primary does not come from above (nz = {direction[2]:g})"
        raise ValueError(msg)
    direction /= np.linalg.norm(direction)
    # The foot of the axis on the plane: the origin, unless the core was moved.
    foot = point - direction * (point[2] / direction[2])
    down = np.array([1.0, 1.0, -1.0])
    position = np.stack([muons["x"] - foot[0], muons["y"] - foot[1], np.zeros(len(muons))])
    directions = np.stack([muons["nx"], muons["ny"], muons["nz"]]) * down[:, None]
    mass_gev = float(shower.mass_gev(np.array(mass_number)))
    return SurfaceShower(
        run=run,
        event=number,
        energy_gev=_value(primary, "kinetic_energy", source) + mass_gev,
        mass_number=mass_number,
        zenith_rad=float(np.arccos(-direction[2])),
        altitude_m=altitude_m,
        cutoff_gev=0.0,
        muons=across_axis(
            position,
            directions,
            muons["kinetic_energy"] + MUON_MASS_GEV,
            direction * down,
            t_ns=muons["time"] * NS_PER_S - float(np.linalg.norm(foot - point)) / LIGHT_M_PER_NS,
            charge=-np.sign(muons["pdg"]),
        ),
    )


def _mass_number(pdg: int) -> int:
    if pdg in (PROTON_PDG, NEUTRON_PDG):
        return 1
    nucleons = pdg // 10 % 1000
    if pdg < NUCLEUS_PDG or not nucleons:
        msg = f"the primary with PDG number {pdg} is not a nucleus"
        raise ValueError(msg)
    return nucleons
