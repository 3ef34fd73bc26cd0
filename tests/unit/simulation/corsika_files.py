"""Files of CORSIKA 7, written here to the format's letter (CORSIKA 7 user guide, section 10)."""

import numpy as np
import pyarrow.parquet as pq
from corsikaio.subblocks.data import particle_data_dtype, particle_data_thin_dtype
from corsikaio.subblocks.event_header import get_event_header_dtype
from corsikaio.subblocks.run_header import get_run_header_dtype

from crmuons import cli
from crmuons.data import arrow

BLOCK, THIN_BLOCK = 273 * 4, 312 * 4  # bytes
VERSION = 7.75


def header(dtype, name, size=BLOCK, **fields):
    block = np.zeros(1, dtype)
    block[dtype.names[0]] = name
    for field, value in fields.items():
        block[field] = value
    return block.tobytes().ljust(size, b"\0")


def event_blocks(event, particles, *, run=1, particle_id=14, zenith=0.0, azimuth=0.0, energy=1e6, thin=False, **fields):
    """An event's blocks. particles: description, px, py, pz (downward), x, y (cm), t[, weight]."""
    direction = np.array([np.sin(zenith) * np.cos(azimuth), np.sin(zenith) * np.sin(azimuth), np.cos(zenith)])
    momenta = dict(zip(("momentum_x", "momentum_y", "momentum_minus_z"), energy * direction, strict=True))
    size = THIN_BLOCK if thin else BLOCK
    start = header(
        get_event_header_dtype(VERSION), b"EVTH", size, event_number=event, particle_id=particle_id, total_energy=energy,
        zenith=zenith, azimuth=azimuth, run_number=run, version=VERSION, n_observation_levels=1,
        observation_height=[[283_500.0, *[0.0] * 9]], energy_cutoff_muons=300.0, **momenta, **fields,
    )  # fmt: skip
    dtype = particle_data_thin_dtype if thin else particle_data_dtype
    records = np.array([tuple(row) for row in particles], dtype).tobytes()
    blocks = [records[at : at + size].ljust(size, b"\0") for at in range(0, len(records), size)]
    return b"".join([start, *blocks, b"EVTE".ljust(size, b"\0")])


def dat_bytes(*events, run=1, size=BLOCK):
    start = header(get_run_header_dtype(VERSION), b"RUNH", size, run_number=run, version=VERSION)
    return b"".join([start, *events, b"RUNE".ljust(size, b"\0")])


MUON = (5001.0, 0.0, 0.0, 5e3, 0.0, 0.0, 0.0)


def run_file(run, *, showers=5, particles=(MUON,), **options):
    return dat_bytes(*(event_blocks(event + 1, particles, run=run, **options) for event in range(showers)), run=run)


def put(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def corsika(*words):
    return cli.main(["convert", "corsika", *map(str, words)])


def events(folder):
    return arrow.to_arrays(pq.read_table(folder))
