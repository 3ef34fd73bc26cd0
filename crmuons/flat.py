"""Events as flat Arrow columns: written and read without a pass over the muons. Ray moves them so, and prepared shards hold them.

The columns are the contract's with lists of fixed size inside: every muon list has offsets, the muons themselves have none.
"""

import numpy as np
import pyarrow as pa

from crmuons import schema
from crmuons.schema import EventArrays

FLAT_SCHEMA = pa.schema(
    [
        pa.field(schema.ID_COLUMNS[0], pa.uint64(), nullable=False),
        pa.field(schema.ID_COLUMNS[1], pa.uint64(), nullable=False),
        pa.field(schema.PRIMARY_COLUMN, pa.list_(pa.float32(), len(schema.PRIMARY_FEATURES)), nullable=False),
        pa.field(schema.MUONS_COLUMN, pa.list_(pa.list_(pa.float32(), len(schema.MUON_FEATURES))), nullable=False),
    ]
)


def to_flat(events: EventArrays) -> pa.RecordBatch:
    """The events in FLAT_SCHEMA, sharing memory with the arrays where these are contiguous.

    Raises:
        ValueError: for more muons than a list column's 32-bit offsets count.
    """
    if len(events.muons) > np.iinfo(np.int32).max:
        msg = f"{len(events.muons)} muons in one table; a list column holds 2^31 at most: write in smaller tables"
        raise ValueError(msg)
    offsets = np.zeros(len(events.counts) + 1, np.int32)
    np.cumsum(events.counts, out=offsets[1:])
    columns = [
        pa.array(np.ascontiguousarray(events.ids[:, 0])),
        pa.array(np.ascontiguousarray(events.ids[:, 1])),
        _fixed(events.primaries),
        pa.ListArray.from_arrays(pa.array(offsets), _fixed(events.muons)),
    ]
    return pa.RecordBatch.from_arrays(columns, schema=FLAT_SCHEMA)


def from_flat(batch: pa.RecordBatch) -> EventArrays:
    """The events of columns that `to_flat` made, in the same memory where it can be; that is read-only."""
    muons = batch[schema.MUONS_COLUMN]
    ids = np.empty((batch.num_rows, 2), np.uint64)
    for place, name in enumerate(schema.ID_COLUMNS):
        ids[:, place] = batch[name].to_numpy()
    return EventArrays(
        ids=ids,
        primaries=_rows(batch[schema.PRIMARY_COLUMN]),
        counts=np.diff(muons.offsets.to_numpy()).astype(np.int64),
        muons=_rows(muons.flatten()),
    )


def _fixed(rows: np.ndarray) -> pa.FixedSizeListArray:
    return pa.FixedSizeListArray.from_arrays(pa.array(np.ascontiguousarray(rows).reshape(-1)), rows.shape[1])


def _rows(array: pa.FixedSizeListArray) -> np.ndarray:
    return array.flatten().to_numpy().reshape(len(array), array.type.list_size)
