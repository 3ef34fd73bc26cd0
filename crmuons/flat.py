"""Events as flat Arrow columns: written and read without a pass over the muons. Ray moves them so, and prepared shards hold them.

The columns are the contract's with lists of fixed size inside: every muon list has offsets, the muons themselves have none. Both
shower ids are one column, so that they too are used where they lie.
"""

import numpy as np
import pyarrow as pa

from crmuons.data import schema
from crmuons.data.schema import EventArrays

IDS_COLUMN = "primary_ids"
FLAT_SCHEMA = pa.schema(
    [
        pa.field(IDS_COLUMN, pa.list_(pa.uint64(), len(schema.ID_COLUMNS)), nullable=False),
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
        _fixed(events.ids),
        _fixed(events.primaries),
        pa.ListArray.from_arrays(pa.array(offsets), _fixed(events.muons)),
    ]
    return pa.RecordBatch.from_arrays(columns, schema=FLAT_SCHEMA)


def from_flat(batch: pa.RecordBatch) -> EventArrays:
    """The events of columns that `to_flat` made, in the same memory where it can be; that is read-only."""
    muons = batch[schema.MUONS_COLUMN]
    offsets = muons.offsets.to_numpy()
    return EventArrays(
        ids=_rows(batch[IDS_COLUMN], 0, batch.num_rows),
        primaries=_rows(batch[schema.PRIMARY_COLUMN], 0, batch.num_rows),
        counts=np.diff(offsets).astype(np.int64),
        muons=_rows(muons.values, *offsets[[0, -1]].tolist()),
    )


def _fixed(rows: np.ndarray) -> pa.FixedSizeListArray:
    return pa.FixedSizeListArray.from_arrays(pa.array(np.ascontiguousarray(rows).reshape(-1)), rows.shape[1])


def _rows(array: pa.FixedSizeListArray, start: int, stop: int) -> np.ndarray:
    """Some lists as rows. `flatten` gives the same, and takes 20 us instead of 2."""
    rows = array.values.to_numpy().reshape(-1, array.type.list_size)
    return rows[array.offset + start : array.offset + stop]
