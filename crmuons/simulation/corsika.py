"""Read CORSIKA 7 particle files (DAT...) for `crmuons convert corsika`.

Particle ids and record layout: CORSIKA 7 user guide, section 10. Files of a build with THIN have blocks of 312 words
instead of 273, and records of 8 words instead of 7; the eighth is the weight.
"""

from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from crmuons.data.events import EventArrays
from crmuons.simulation import content
from crmuons.simulation.shower import LIGHT_M_PER_NS
from crmuons.simulation.surface import MUON_MASS_GEV, DepthSettings, SurfaceShower, across_axis, to_events

try:
    from corsikaio.io import iter_blocks
    from corsikaio.subblocks import (
        parse_event_header,
        parse_event_header_thin,
        parse_particle_data,
        parse_particle_data_thin,
    )
except ImportError as error:
    missing = "reading CORSIKA files needs the package corsikaio: pip install 'crmuons[corsika]'"
    raise ImportError(missing) from error

# mu+, mu-. Other ids are left out: MUADDI's birth records have ids 75 and 76, EHIST's parents negative ids.
MUON_IDS = (5, 6)
PROTON_ID, NEUTRON_ID = 14, 13
RUN_HEADER, RUN_END, EVENT_HEADER, EVENT_END, PROFILE = b"RUNH", b"RUNE", b"EVTH", b"EVTE", b"LONG"
THIN_BLOCK_BYTES = 312 * 4
LEAST_DESCRIPTION = 1_000  # A particle's first word is id * 1000 + ...; for a bunch of photons it is their number.
MOST_DESCRIPTION = 1e8  # Nuclei are id 5656 and below; photon bunches among the particles are about 9.9e6.
VERSION_WORD, VERSIONS = 45, (6.5, 8.0)  # corsikaio knows headers from 6.5 on; CORSIKA 8 does not write this format.
THINNING_LEVELS = ("energy_fraction_if_thinning_level_hadronic", "energy_fraction_if_thinning_level_em")
CM = 0.01  # metres
TOP_OF_ATMOSPHERE_M = 112_829.2  # The end of CORSIKA 7's standard atmospheres.


def run_number(start: bytes) -> int:
    """Return the run number of a file with these first bytes.

    Raises:
        ValueError: if they do not begin a CORSIKA particle file; the message names the format.
    """
    at = start.find(RUN_HEADER, 0, 8)
    if at not in (0, 4):  # Fortran's record length may come first.
        what = content.foreign(start)
        msg = "not a CORSIKA particle file: " + (what or "no run header (RUNH) at its start")
        raise ValueError(msg)
    if len(start) < at + 8:
        msg = "ends within its run header"
        raise ValueError(msg)
    number = float(np.frombuffer(start, "<f4", 1, at + 4)[0])
    if not (number.is_integer() and number >= 0):
        msg = f"the run number {number:g} in its header cannot be right"
        raise ValueError(msg)
    return int(number)


def read_events(
    url: str, size: int, settings: DepthSettings, notes: Counter[str], *, base: int = 0
) -> Iterator[EventArrays]:
    """Yield the events of a file at some depths. It raises the errors of `read_showers`, without the file's name.

    Args:
        url: the file.
        size: its size in bytes.
        settings: the depths.
        notes: see `to_events`.
        base: added to the run numbers, which are the showers' first ids.
    """
    with content.opened(url, size) as stream:
        showers = _showers(stream, content.head(url, size), Path(url).name)
        yield from to_events((replace(one, run=base + one.run) for one in showers), settings, notes)


def read_showers(path: Path) -> Iterator[SurfaceShower]:
    """Yield the showers of one file, in order.

    Raises:
        ValueError: if the file is not a CORSIKA particle file, is thinned, ends before its end record, or holds
            Cherenkov photons or a primary that is not a nucleus. The showers before the fault are yielded first.
    """
    with _faults_named(path), content.opened(str(path)) as stream:
        yield from _showers(stream, content.head(str(path)), path.name)


@contextmanager
def _faults_named(path: Path) -> Iterator[None]:
    """Turn the errors from reading a damaged file into a ValueError that names it."""
    try:
        yield
    except content.READ_ERRORS as error:
        msg = f"{path}: {error}"
        raise ValueError(msg) from error


def _showers(stream: Any, start: bytes, name: str) -> Iterator[SurfaceShower]:
    run_number(start)
    thin = start[start.find(RUN_HEADER) + THIN_BLOCK_BYTES :][:4] in (EVENT_HEADER, RUN_END)
    num_particles = 0
    for header, particles in _events(iter_blocks(stream, thinning=thin), thin):
        num_particles += len(particles)
        _refuse_thinned(header, particles)
        _refuse_photons(particles)
        if num_particles == 0 and _named_cherenkov(name, header):
            msg = "a Cherenkov file by its name and header, and no particle in it; the muons are in the run's DAT file"
            raise ValueError(msg)
        yield _to_shower(header, particles)


def _events(blocks: Iterable[bytes], thin: bool) -> Iterator[tuple[Any, Any]]:
    """Yield the header and the particle records of each event."""
    parse_header, parse_particles = (
        (parse_event_header_thin, parse_particle_data_thin) if thin else (parse_event_header, parse_particle_data)
    )
    header, records, ended = None, bytearray(), False
    for block in blocks:
        kind = block[:4]
        if header is None:
            if kind == EVENT_HEADER and not ended:
                _check_version(block)
                header, records = parse_header(block)[0], bytearray()
            elif kind in (RUN_END, RUN_HEADER):  # A file may have several runs, joined with `cat`.
                ended = kind == RUN_END
            elif not ended or any(block):  # Zeros fill the last record.
                msg = f"a run or event header was expected, but {kind!r} found"
                raise ValueError(msg)
        elif kind == EVENT_END:
            yield header, _checked(parse_particles(bytes(records)))
            header = None
        elif kind in (EVENT_HEADER, RUN_END, RUN_HEADER):
            msg = f"{kind.decode()} comes before the end record (EVTE) of event {header['event_number']:.0f}"
            raise ValueError(msg)
        elif kind != PROFILE:
            records += block
    if ended and header is None:
        return
    msg = "it ends before its end record (RUNE); the run was killed, or the file is cut short"
    raise ValueError(msg)


def _check_version(header: bytes) -> None:
    """Refuse versions whose fields are not known; a damaged version number looks like one of them."""
    version = float(np.frombuffer(header, "<f4", 1, VERSION_WORD * 4)[0])
    if not VERSIONS[0] <= version < VERSIONS[1]:
        msg = f"an event header of CORSIKA {version:.4g}; versions {VERSIONS[0]} to {VERSIONS[1]} are read, or the file is damaged"
        raise ValueError(msg)


def _checked(particles: Any) -> Any:
    """Return particle records, and refuse numbers that CORSIKA does not write."""
    numbers = particles.view(np.float32)
    if not np.isfinite(numbers).all() or (np.abs(particles["particle_description"]) > MOST_DESCRIPTION).any():
        msg = "it is damaged: a particle record holds NaN, infinity or an id that does not exist"
        raise ValueError(msg)
    return particles


def _refuse_thinned(header: Any, particles: Any) -> None:
    level = max(float(header[name]) for name in THINNING_LEVELS)
    weights = particles["thinning_weight"] if "thinning_weight" in particles.dtype.names else np.ones(1)
    heaviest = float(weights.max(initial=1.0))
    if level > 0 or (weights != 1).any():
        msg = (
            f"thinned (level {level:g}, largest weight {heaviest:g}): a particle of weight w stands for w similar particles "
            "that are not in the file, so its bundles have the wrong muons; simulate without THIN"
        )
        raise ValueError(msg)


def _refuse_photons(particles: Any) -> None:
    """Refuse the bunches of a Cherenkov file (CER...), which has the same headers as the run's particle file."""
    if not len(particles):
        return
    few = np.abs(particles["particle_description"]) < LEAST_DESCRIPTION
    # MAGIC's version MMCS writes larger first words. Words 4 and 5 are direction cosines for a bunch; for a particle they
    # are in GeV and cm.
    cosines = np.hypot(particles["pz"], particles["x"]) <= 1
    if few.any() or cosines.all():
        msg = "a Cherenkov file: it holds bunches of photons, no particles; the muons are in the run's DAT file"
        raise ValueError(msg)


def _named_cherenkov(name: str, header: Any) -> bool:
    """Return whether a file without any particle is a Cherenkov file by its name and header."""
    return name.upper().startswith("CER") and int(header["cerenkov_flag"]) % 2 == 1


def _to_shower(header: Any, particles: Any) -> SurfaceShower:
    levels = int(header["n_observation_levels"])
    momentum = np.array([header["momentum_x"], header["momentum_y"], header["momentum_minus_z"]], np.float64)
    if not (1 <= levels <= 10 and np.linalg.norm(momentum) > 0):
        msg = f"event {header['event_number']:.0f}: its header has {levels} observation levels, momentum {momentum}"
        raise ValueError(msg)
    # particle_description is id * 1000 + generation * 10 + observation level; the lowest level has the highest number.
    code = particles["particle_description"].astype(np.int64)
    chosen_rows = np.isin(code // 1000, MUON_IDS) & (code % 10 == levels % 10)
    chosen = particles[chosen_rows]
    position = np.stack([chosen["x"], chosen["y"], np.zeros(len(chosen))]).astype(np.float64) * CM
    momenta = np.stack([chosen["px"], chosen["py"], chosen["pz"]]).astype(np.float64)
    energy = np.sqrt((momenta**2).sum(axis=0) + MUON_MASS_GEV**2)
    return SurfaceShower(
        run=int(header["run_number"]),
        event=int(header["event_number"]),
        energy_gev=float(header["total_energy"]),
        mass_number=_mass_number(int(header["particle_id"])),
        zenith_rad=float(header["zenith"]),
        altitude_m=float(header["observation_height"][levels - 1]) * CM,
        cutoff_gev=float(header["energy_cutoff_muons"]),
        muons=across_axis(
            position,
            momenta,
            energy,
            momentum / np.linalg.norm(momentum),
            t_ns=chosen["t"].astype(np.float64) - _front_ns(header, levels),
            charge=np.where(code[chosen_rows] // 1000 == MUON_IDS[0], 1.0, -1.0),
        ),
    )


def _front_ns(header: Any, levels: int) -> float:
    """Return the time on CORSIKA's clock when the plane front is at the foot of the axis.

    The clock starts at the first interaction. If the height of the first interaction is negative, it starts at the top of
    the atmosphere.
    """
    first = float(header["first_interaction_height"])
    start_m = first * CM if first > 0 else TOP_OF_ATMOSPHERE_M
    height = start_m - float(header["observation_height"][levels - 1]) * CM
    return height / float(np.cos(header["zenith"])) / LIGHT_M_PER_NS


def _mass_number(particle_id: int) -> int:
    """Return the nucleons of a nucleus with CORSIKA's id: 14 is the proton, 13 the neutron, 100 A + Z a heavier one."""
    if particle_id in (PROTON_ID, NEUTRON_ID):
        return 1
    if particle_id < 200:
        msg = f"the primary with CORSIKA id {particle_id} is not a nucleus"
        raise ValueError(msg)
    return particle_id // 100
