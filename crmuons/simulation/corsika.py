"""Read CORSIKA 7 particle files (DAT...), and propagate their muons into the ice, for `crmuons convert corsika`.

The energy losses are the simulator's. The surface of the ice is taken to be at CORSIKA's observation level. Particle
ids and record layout: CORSIKA 7 user guide, section 10.
"""

import logging
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float64

from crmuons.data import arrow, geometry, schema
from crmuons.data.events import EventArrays
from crmuons.progress import progress
from crmuons.simulation import propagation, shower
from crmuons.simulation.simulate import follow, make_new_directory
from crmuons.storage import files

try:
    import corsikaio
    from corsikaio.io import open_compressed
except ImportError as error:
    missing = "reading CORSIKA files needs the package corsikaio: pip install 'crmuons[corsika]'"
    raise ImportError(missing) from error

logger = logging.getLogger(__name__)

MUON_IDS = (
    5,
    6,
)  # mu+, mu-. Others are left out: MUADDI's birth records have ids 75 and 76, EHIST's parents negative ids.
PROTON_ID, NEUTRON_ID = 14, 13
MUON_MASS_GEV = 0.105658
RUN_HEADER = b"RUNH"
READ_ERRORS = (ValueError, OSError, EOFError, zlib.error)  # Errors from reading a damaged file, plain or compressed.
CM = 0.01  # metres
DEPTHS_M = (1_500.0, 2_000.0, 2_500.0)
THRESHOLD_GEV = 10.0


@dataclass(frozen=True)
class CorsikaShower:
    """One shower: its primary, and its muons at the lowest observation level.

    Attributes:
        run, event: CORSIKA's numbers; they become the shower's ids.
        energy_gev, mass_number, zenith_rad: the primary.
        altitude_m: altitude of the observation level above sea level.
        cutoff_gev: energy below which CORSIKA dropped muons.
        surface: the muons, in the plane across the axis at the point where it meets the observation level.
    """

    run: int
    event: int
    energy_gev: float
    mass_number: int
    zenith_rad: float
    altitude_m: float
    cutoff_gev: float
    surface: shower.Showers


def read_showers(path: Path) -> Iterator[CorsikaShower]:
    """Yield the showers of one file, in order.

    Raises:
        ValueError: if the file is not a CORSIKA particle file, ends before its end record, or holds a primary that is
            not a nucleus. The showers before the fault are yielded first.
    """
    with _faults_named(path), _opened(path) as file:
        for event in file:
            yield _to_shower(event.header, event.particles)


def convert(
    paths: Sequence[str],
    out: Path,
    *,
    depths_m: Sequence[float] = DEPTHS_M,
    vertical: bool = False,
    threshold_gev: float = THRESHOLD_GEV,
    seed: int = 0,
) -> dict[str, str]:
    """Write the muons of CORSIKA files at some depths as events, one Parquet file for each CORSIKA file.

    A file that cannot be read to its end is left out completely, so that a data set never holds a part of a file.

    Args:
        paths: files, globs, or directories that hold only CORSIKA files.
        out: new directory.
        depths_m: slant depths, or vertical ones.
        vertical: whether the depths are vertical; they are then converted with the zenith of each shower.
        threshold_gev: muons that keep less than this at a depth are lost there.
        seed: seed of the energy losses; the losses of a shower depend on it and on the shower's ids alone.

    Returns:
        The files that were left out, each with the reason.

    Raises:
        FileNotFoundError: if a path matches nothing.
        ValueError: if a depth is not in metres, or the directory is not empty.
    """
    _check_depths(depths_m)
    urls = [file.url for file in files.list_files(paths, suffixes=("",))]
    make_new_directory(out)
    left_out: dict[str, str] = {}
    runs: dict[int, str] = {}
    with progress(len(urls), unit="files", what="convert") as bar:
        for url in urls:
            try:
                showers = _read_whole(Path(url), runs)
            except (ValueError, OSError) as error:
                left_out[url] = str(error)
                logger.warning("left out: %s", error)
            else:
                if showers and url == urls[0]:
                    _warn_about_cutoff(showers[0], depths_m, vertical, threshold_gev)
                events = [_events(cascade, depths_m, vertical, threshold_gev, seed) for cascade in showers]
                arrow.write_events(out / f"{Path(url).name}.parquet", [arrow.to_table(event) for event in events])
            bar.update()
    return left_out


def _check_depths(depths_m: Sequence[float]) -> None:
    for depth in depths_m:
        if not depth >= schema.MIN_DEPTH_M:
            msg = f"--depths {depth:g}: depths are in metres, {schema.MIN_DEPTH_M:g} or more; is it in kilometres?"
            raise ValueError(msg)


def _read_whole(path: Path, runs: dict[int, str]) -> list[CorsikaShower]:
    """Read all showers of a file, and refuse a run that an earlier file had.

    Args:
        path: the file.
        runs: the file of each run so far; this file's runs are added.
    """
    showers = list(read_showers(path))
    for run in sorted({cascade.run for cascade in showers}):
        if run in runs:
            msg = (
                f"{path}: run {run} is also in {runs[run]}; run and event number identify a shower, so convert only "
                "one of these files"
            )
            raise ValueError(msg)
    runs.update({cascade.run: str(path) for cascade in showers})
    return showers


@contextmanager
def _faults_named(path: Path) -> Iterator[None]:
    """Turn the errors from reading a damaged file into a ValueError that names it."""
    try:
        yield
    except READ_ERRORS as error:
        msg = f"{path}: {error}"
        raise ValueError(msg) from error


def _opened(path: Path) -> Any:
    with open_compressed(path) as file:
        start = file.read(8)
    if RUN_HEADER not in (start[:4], start[4:]):  # Fortran's record length may come first.
        msg = "not a CORSIKA particle file: no run header (RUNH) at its start"
        raise ValueError(msg)
    return _ParticleFile(str(path))


class _ParticleFile(corsikaio.CorsikaParticleFile):  # type: ignore[misc]  # corsikaio has no types
    """A CORSIKA file that also closes itself if its first record is damaged."""

    def __init__(self, path: str) -> None:
        try:
            super().__init__(path)
        except READ_ERRORS:
            self.close()
            raise


def _to_shower(header: Any, particles: Any) -> CorsikaShower:
    levels = int(header["n_observation_levels"])
    momentum = np.array([header["momentum_x"], header["momentum_y"], header["momentum_minus_z"]], np.float64)
    # particle_description is id * 1000 + generation * 10 + observation level; the lowest level has the highest number.
    code = particles["particle_description"].astype(np.int64)
    chosen = particles[np.isin(code // 1000, MUON_IDS) & (code % 10 == levels % 10)]
    return CorsikaShower(
        run=int(header["run_number"]),
        event=int(header["event_number"]),
        energy_gev=float(header["total_energy"]),
        mass_number=_mass_number(int(header["particle_id"])),
        zenith_rad=float(header["zenith"]),
        altitude_m=float(header["observation_height"][levels - 1]) * CM,
        cutoff_gev=float(header["energy_cutoff_muons"]),
        surface=_across_axis(chosen, momentum / np.linalg.norm(momentum)),
    )


def _mass_number(particle_id: int) -> int:
    """Return the nucleons of a nucleus with CORSIKA's id: 14 is the proton, 13 the neutron, 100 A + Z a heavier one."""
    if particle_id in (PROTON_ID, NEUTRON_ID):
        return 1
    if particle_id < 200:
        msg = f"the primary with CORSIKA id {particle_id} is not a nucleus"
        raise ValueError(msg)
    return particle_id // 100


def _across_axis(particles: Any, axis: Float64[np.ndarray, "3"]) -> shower.Showers:
    """Return the muons in the plane across the shower axis at its foot, on straight lines through their positions.

    Args:
        particles: records at one observation level: positions in cm from the foot of the axis, momenta in GeV, z
            downward.
        axis: the shower's direction, z downward.
    """
    position = np.stack([particles["x"], particles["y"], np.zeros(len(particles))]).astype(np.float64) * CM
    momentum = np.stack([particles["px"], particles["py"], particles["pz"]]).astype(np.float64)
    plane = _plane_across(axis)
    slope = (plane @ momentum) / (axis @ momentum)
    x_m, y_m = plane @ position - slope * (axis @ position)
    energy = np.sqrt((momentum**2).sum(axis=0) + MUON_MASS_GEV**2)
    return shower.Showers(np.array([len(energy)]), energy, x_m, y_m, slope[0], slope[1])


def _plane_across(axis: Float64[np.ndarray, "3"]) -> Float64[np.ndarray, "2 3"]:
    """Return two unit vectors across the axis: the first in the vertical plane of the axis, the second horizontal."""
    azimuth = np.arctan2(axis[1], axis[0])
    horizontal = np.array([-np.sin(azimuth), np.cos(azimuth), 0.0])
    return np.stack([np.cross(horizontal, axis), horizontal])


def _slant_and_water(
    cascade: CorsikaShower, depths_m: Sequence[float], vertical: bool
) -> tuple[np.ndarray, np.ndarray]:
    cosine = np.array([np.cos(cascade.zenith_rad)])
    slant = np.sort(np.array(depths_m, np.float64))
    if vertical:
        slant = geometry.slant_depth_m(slant, cosine, cascade.altitude_m)
    return slant[None], propagation.water_equivalent_m(slant, cosine)[None]


def _events(
    cascade: CorsikaShower, depths_m: Sequence[float], vertical: bool, threshold_gev: float, seed: int
) -> EventArrays:
    """Make the events of a shower, one for each depth."""
    slant, water = _slant_and_water(cascade, depths_m, vertical)
    rng = np.random.default_rng((seed, cascade.run, cascade.event))
    counts, muons = follow(cascade.surface, slant, water, threshold_gev, rng)
    mass = float(shower.mass_gev(np.array([cascade.mass_number]))[0])
    primaries = [(cascade.energy_gev, cascade.zenith_rad, mass, depth) for depth in slant[0]]
    ids = np.tile(np.array([cascade.run, cascade.event], np.uint64), (len(primaries), 1))
    return EventArrays(ids=ids, primaries=np.array(primaries, np.float32), counts=counts, muons=muons)


def _warn_about_cutoff(cascade: CorsikaShower, depths_m: Sequence[float], vertical: bool, threshold_gev: float) -> None:
    """Warn if CORSIKA dropped muons that could have reached the shallowest depth."""
    _, water = _slant_and_water(cascade, depths_m, vertical)
    least = float(propagation.least_surface_energy_gev(water[0, :1], threshold_gev)[0])
    if cascade.cutoff_gev > least:
        logger.warning(
            "CORSIKA dropped muons below %.0f GeV, but muons above %.0f GeV can reach the first depth: the events lack "
            "some of their muons",
            cascade.cutoff_gev,
            least,
        )
