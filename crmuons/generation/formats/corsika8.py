"""Write tracks in the columns of CORSIKA 8's particles (ParticleWriterParquet), in one Parquet file.

shower, pdg, kinetic_energy (GeV), x, y, z (m), nx, ny, nz (direction of flight), time (s), weight. The frame is the
detector's: the origin is at its centre, and z points upward. (In CORSIKA 8 the origin is the centre of the observation
plane.)
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa

from crmuons.data.parquet import parquet_writer
from crmuons.generation.formats.tracks import MUON_MASS_GEV, Sample, Tracks

COLUMNS = pa.schema(
    [
        pa.field("shower", pa.int32(), nullable=False),
        pa.field("pdg", pa.int32(), nullable=False),
        *(pa.field(name, pa.float32(), nullable=False) for name in ("kinetic_energy", "x", "y", "z", "nx", "ny", "nz")),
        pa.field("time", pa.float64(), nullable=False),
        pa.field("weight", pa.float32(), nullable=False),
    ]
)
MU_MINUS = 13  # Number of the Particle Data Group; mu+ is -13.
NS = 1e-9


def write(path: Path, parts: Iterator[Tracks], sample: Sample) -> None:
    """Write the muons of events; the shower is the number of the event in the file, and every weight is 1."""
    del sample
    with parquet_writer(path, COLUMNS, compression="zstd") as writer:
        first = 0
        for tracks in parts:
            single = (tracks.energy_gev - MUON_MASS_GEV, *tracks.position_m.T, *tracks.direction.T)
            columns = [
                (tracks.event + first).astype(np.int32),
                -MU_MINUS * tracks.charge.astype(np.int32),
                *(column.astype(np.float32) for column in single),
                tracks.t_ns * NS,
                np.ones(len(tracks.event), np.float32),
            ]
            writer.write_table(pa.Table.from_arrays([pa.array(column) for column in columns], schema=COLUMNS))
            first += len(tracks.counts)
