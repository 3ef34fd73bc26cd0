"""Write tracks as lines of text: ppc's f2k, MUPAGE's table, SIREN's CSV.

Numbers are rounded to float32; nine digits are exact for it. Layouts: `f2k` in ppc (https://github.com/icecube/ppc,
ocl/f2k.cxx), the option -t of MUPAGE (https://github.com/giadac/MUPAGE, src/mupage.cc), PrimaryExternalDistribution in
SIREN (https://github.com/Harvard-Neutrino/SIREN).
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TextIO

import numpy as np

from crmuons.generation.formats.tracks import MUON_MASS_GEV, Sample, Tracks, origin_angles
from crmuons.simulation import propagation

GEANT_MUON = 6  # MUPAGE writes the number of mu- for every muon.
NAMES = {-1: "amu-", 0: "amu", 1: "amu+"}  # ppc knows all three.
LINES_AT_ONCE = 65_536


def write_f2k(path: Path, parts: Iterator[Tracks], sample: Sample) -> None:
    """Write events as f2k: TR gen igen name x y z theta phi length energy time, in m, degrees, GeV and ns.

    The angles give the direction from which the muon comes; the length is the mean range of a muon in ice.
    """
    del sample
    line = "TR %d %d %s" + 8 * " %.9g" + "\n"
    with path.open("w", encoding="ascii") as file:
        file.write("V 2000.1.2\nTBEGIN ? ? ?\n")
        first = 0
        for tracks in parts:
            theta, phi = np.rad2deg(origin_angles(tracks.direction))
            columns = (
                *tracks.position_m.T,
                theta,
                phi,
                mean_range_m(tracks.energy_gev),
                tracks.energy_gev,
                tracks.t_ns,
            )
            numbers = np.stack(columns, axis=1).astype(np.float32).tolist()
            names = [NAMES[charge] for charge in tracks.charge.tolist()]
            ends = np.cumsum(tracks.counts).tolist()
            for event, (end, count) in enumerate(zip(ends, tracks.counts.tolist(), strict=True), start=first):
                rows = zip(range(count), names[end - count : end], numbers[end - count : end], strict=True)
                muons = "".join(line % (event, number, name, *row) for number, name, row in rows)
                file.write(f"EM {event} 1 0 0 0 0\n{muons}EE\n")
            first += len(tracks.counts)
        file.write("TEND ? ? ?\nEND\n")


def mean_range_m(energy_gev: np.ndarray) -> np.ndarray:
    """Return the range in ice of a muon of this energy with mean losses, ln(1 + E b / a) / b."""
    radiation = propagation.SOFT_RADIATION + propagation.HARD_RADIATION
    return np.log1p(energy_gev * radiation / propagation.IONISATION) / radiation / propagation.ICE_DENSITY


def write_mupage(path: Path, parts: Iterator[Tracks], sample: Sample) -> None:
    """Write MUPAGE's table: event, multiplicity, muon, x y z (m), vx vy vz, E (GeV), t (ns), 6.

    Events are numbered from 1; events without muons have no line. The livetime in the header is 0: bundles of a spectrum
    have weights instead.
    """
    del sample
    with path.open("w", encoding="ascii") as file:
        file.write("Run Number: 1\nlivetime : 0 0\n")
        first = 1
        for tracks in parts:
            starts = np.repeat(np.cumsum(tracks.counts) - tracks.counts, tracks.counts)
            whole = (tracks.event + first, np.repeat(tracks.counts, tracks.counts), np.arange(len(starts)) - starts + 1)
            exact = (*tracks.position_m.T, *tracks.direction.T, tracks.energy_gev, tracks.t_ns)
            numbers = [column.astype(np.float32) for column in exact]
            _write_lines(file, "%d %d %d" + 8 * " %.9g" + f" {GEANT_MUON}\n", (*whole, *numbers))
            first += len(tracks.counts)


def write_siren(path: Path, parts: Iterator[Tracks], sample: Sample) -> None:
    """Write a CSV table of SIREN's primaries: E, px, py, pz in GeV, x0, y0, z0 in m. It has no events and no times."""
    del sample
    with path.open("w", encoding="ascii") as file:
        file.write("E,px,py,pz,x0,y0,z0\n")
        for tracks in parts:
            momentum = tracks.direction * np.sqrt(np.maximum(tracks.energy_gev**2 - MUON_MASS_GEV**2, 0.0))[:, None]
            columns = [column.astype(np.float32) for column in (tracks.energy_gev, *momentum.T, *tracks.position_m.T)]
            _write_lines(file, ",".join(7 * ["%.9g"]) + "\n", columns)


def _write_lines(file: TextIO, line: str, columns: Sequence[np.ndarray]) -> None:
    for start in range(0, len(columns[0]), LINES_AT_ONCE):
        rows = zip(*(column[start : start + LINES_AT_ONCE].tolist() for column in columns), strict=True)
        file.write("".join(line % row for row in rows))
