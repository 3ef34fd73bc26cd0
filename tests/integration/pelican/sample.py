"""The data of the federation, as it is and as a client reads it."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from crmuons.data.arrow import to_table
from crmuons.data.events import EventArrays
from crmuons.storage import files
from tests.integration.pelican.federation.federation import Federation

RUN_DIRECTORIES = ("0000000-0000999", "0001000-0001999", "0002000-0002999")


def events(seed: int) -> pa.Table:
    """2000 legal events, about 100 kB each as a file."""
    rng = np.random.default_rng(seed)
    counts = rng.integers(0, 8, 2000)
    primaries = rng.uniform((1e3, 0, 0.9, 1500), (1e7, 1.5, 56, 2500), (2000, 4)).astype(np.float32)
    ids = np.stack([np.full(2000, seed), np.arange(2000)], axis=1).astype(np.uint64)
    muons = rng.uniform((1, -50, -50), (1e4, 50, 50), (counts.sum(), 3)).astype(np.float32)
    return to_table(EventArrays(ids, primaries, counts.astype(np.int64), muons))


def read(url: str) -> pa.Table:
    """All files of a pattern, a row group at a time, as the training reads them."""
    groups = []
    for file in files.list_files(url):
        parquet = pq.ParquetFile(files.open_file(file.url, file.size), pre_buffer=True)
        groups += [parquet.read_row_group(i) for i in range(parquet.num_row_groups)]
    return pa.concat_tables(groups)


def expected(fed: Federation, namespace: str = "public") -> pa.Table:
    return pa.concat_tables(pq.read_table(file.url) for file in files.list_files(str(fed.data / namespace / "sim")))


def content(fed: Federation, namespace: str = "public") -> bytes:
    return (fed.data / namespace / "sim" / RUN_DIRECTORIES[0] / "part0.parquet").read_bytes()


def one_file(fed: Federation, namespace: str = "public") -> files.File:
    return files.list_files(fed.url(f"/{namespace}/sim/{RUN_DIRECTORIES[0]}/part0.parquet"))[0]
