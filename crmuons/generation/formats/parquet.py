"""Write tracks in Parquet: a row for each event, with lists for its muons."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa

from crmuons.data import schema
from crmuons.data.parquet import parquet_writer
from crmuons.generation.formats.tracks import Sample, Tracks

MUON_COLUMNS = ("energy_gev", "x_m", "y_m", "z_m", "dir_x", "dir_y", "dir_z", "t_ns", "charge")
COLUMNS = pa.schema(
    [
        *(pa.field(name, pa.uint64(), nullable=False) for name in schema.ID_COLUMNS),
        *(pa.field(f"primary_{name}", pa.float32(), nullable=False) for name in schema.PRIMARY_FEATURES),
        pa.field("primary_azimuth_rad", pa.float64(), nullable=False),
        *(pa.field(name, pa.list_(pa.float32()), nullable=False) for name in MUON_COLUMNS),
    ]
)


def write(path: Path, parts: Iterator[Tracks], sample: Sample) -> None:
    """Write the tracks of events."""
    del sample
    with parquet_writer(path, COLUMNS, compression="zstd") as writer:
        for tracks in parts:
            offsets = pa.array(np.concatenate([[0], np.cumsum(tracks.counts)]).astype(np.int32))
            muons = (tracks.energy_gev, *tracks.position_m.T, *tracks.direction.T, tracks.t_ns, tracks.charge)
            columns = [
                *(pa.array(column) for column in tracks.ids.T),
                *(pa.array(np.ascontiguousarray(column)) for column in tracks.primaries.T),
                pa.array(tracks.azimuth_rad),
                *(pa.ListArray.from_arrays(offsets, pa.array(column.astype(np.float32))) for column in muons),
            ]
            writer.write_table(pa.Table.from_arrays(columns, schema=COLUMNS))
