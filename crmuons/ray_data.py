"""The stream's items, read by Ray Data: Parquet to Arrow blocks in tasks anywhere in the cluster, in the plan's order.

Every process that reads imports this module: without torch that takes 1.2 CPU-seconds instead of 2.5.
"""

from collections.abc import Iterator
from dataclasses import astuple
from itertools import islice
from typing import Any

import numpy as np
import pyarrow as pa
import ray
from ray.data import DataContext, Datasource
from ray.data._internal.execution.interfaces import ExecutionResources
from ray.data.block import Block, BlockMetadata
from ray.data.datasource import ReadTask

from crmuons import reader, schema
from crmuons.plan import Item
from crmuons.reader import Piece, Selection, Tally

ITEMS_PER_EXECUTION = 256  # Starting an execution costs 1-2 s; the list of its tasks costs memory.
READ_AHEAD_BYTES = 256 * 2**20  # Of the object store, per rank.
READS_AT_ONCE = 2  # Per rank; one decodes 1.3 million muons/s of the nested layout, a CPU trains on 0.2 million.
CPUS_PER_READ = (
    0.25  # So that two ranks can read with the one CPU that is kept free: a rank must not wait for another's.
)
TALLY_COLUMN = "tally"

# A block is a table of events. The first row of an item is no event: it carries what became of the item's rows.
BLOCK_SCHEMA = schema.EVENT_SCHEMA.append(pa.field(TALLY_COLUMN, pa.list_(pa.int64())))


def read_with_ray(items: Iterator[Item], selection: Selection) -> Iterator[Piece]:
    """Read items in Ray Data tasks, ahead of what is asked for, and give them in order."""
    while batch := list(islice(items, ITEMS_PER_EXECUTION)):
        for block in _execute(batch, selection):
            yield from _unpack(block)


class ItemSource(Datasource):
    """A Ray Data source with one read task for each item of the plan."""

    def __init__(self, items: list[Item], selection: Selection) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.items, self.selection = items, selection

    def get_read_tasks(
        self, parallelism: int, per_task_row_limit: int | None = None, data_context: DataContext | None = None
    ) -> list[ReadTask]:
        """One task an item, in order, whatever parallelism is proposed."""
        del parallelism, per_task_row_limit, data_context
        return [self._task(item) for item in self.items]

    def estimate_inmemory_data_size(self) -> int | None:
        """Twice the Parquet's size, roughly."""
        return 2 * sum(unit.size for item in self.items for unit in item.units)

    def _task(self, item: Item) -> ReadTask:
        selection = self.selection
        size = 2 * sum(unit.size for unit in item.units)
        metadata = BlockMetadata(num_rows=None, size_bytes=size, exec_stats=None, input_files=None)
        return ReadTask(lambda: _read_blocks(item, selection), metadata)


def _read_blocks(item: Item, selection: Selection) -> Iterator[Block]:
    tally, pieces = reader.read_item(item, selection)
    yield _marker(tally)
    for piece in pieces:
        table = piece.to_table()
        yield table.append_column(BLOCK_SCHEMA.field(TALLY_COLUMN), pa.nulls(table.num_rows, pa.list_(pa.int64())))


def _marker(tally: Tally) -> pa.Table:
    row: dict[str, list[Any]] = {name: [0] for name in schema.ID_COLUMNS}
    row |= {schema.PRIMARY_COLUMN: [[0.0] * 4], schema.MUONS_COLUMN: [[]], TALLY_COLUMN: [list(astuple(tally))]}
    return pa.table(row, schema=BLOCK_SCHEMA)


def _execute(items: list[Item], selection: Selection) -> Iterator[pa.Table]:
    # Ray's defaults would cut and rename: one block an item's table, in order, and a bounded read-ahead.
    dataset = ray.data.read_datasource(
        ItemSource(items, selection),
        override_num_blocks=len(items),
        concurrency=READS_AT_ONCE,
        num_cpus=CPUS_PER_READ,
    )
    options = dataset.context.execution_options
    options.preserve_order = True
    options.resource_limits = ExecutionResources(object_store_memory=READ_AHEAD_BYTES)
    dataset.context.enable_progress_bars = False
    yield from dataset.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=2)


def _unpack(block: pa.Table) -> Iterator[Piece]:
    """Events and tallies of a block, which Ray may have put together from several."""
    marked = np.flatnonzero(block[TALLY_COLUMN].is_valid().to_numpy())
    start = 0
    for row in marked.tolist():
        if row > start:
            yield schema.to_arrays(block.slice(start, row - start))
        yield Tally(*block[TALLY_COLUMN][row].as_py())
        start = row + 1
    if start < block.num_rows:
        yield schema.to_arrays(block.slice(start))
