"""Read segments with Ray Data: tasks on any node of the cluster turn files into Arrow blocks, in the read plan's order.

Every process that reads imports this module. It must not import torch: the import would take 2.5 CPU-seconds, not 1.2.
"""

import json
import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import astuple, replace
from functools import partial
from itertools import groupby, islice
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import ray
from ray.data import DataContext, Datasource, ExecutionResources
from ray.data.block import Block, BlockMetadata
from ray.data.datasource import ReadTask

from crmuons.data import arrow, reader, schema, shards
from crmuons.data.events import EventArrays
from crmuons.data.prefetch import Prefetcher
from crmuons.data.quarantine import ReadCounts
from crmuons.data.reader import ReadResult
from crmuons.data.sampler import Segment
from crmuons.data.selection import Selection
from crmuons.data.staged_reading import with_stager
from crmuons.machine import keep_freed_memory
from crmuons.ray_backend import private, staging_actor, tokens
from crmuons.storage.identity import Digests

logger = logging.getLogger(__name__)

Read = tuple[Segment, Selection]
SEGMENTS_PER_EXECUTION = 256  # Limits the memory of the list of tasks.
SEGMENTS_AHEAD = 32  # An execution takes 1-2 s to start: the next one starts this many segments before the end.
BLOCKS_AHEAD = 2
READ_AHEAD_BYTES = 256 * 2**20  # Limit of the object store per rank and execution.
# The default of data.read_tasks: one read decodes 15 million muons/s of the nested layout; a CPU trains on 0.2 million.
READS_AT_ONCE = 2
# A segment (such as 150,000 events of 13.5 muons) takes three or four rounds of the scheduler.
SCHEDULER_PAUSE_S = 0.05
CPUS_PER_READ = 0  # A read must never wait for a CPU: the workers of an elastic run reserve all of them.
COUNTS_COLUMN = "tally"
NOTES_COLUMN = "notes"  # JSON: the digests of the remote files that the segment read, by URL, and warnings.


# A block is a table of events. The first row of a segment also holds the segment's ReadCounts and notes. A segment without
# events is one row whose muons are null.
def _block_schema(selection: Selection) -> pa.Schema:
    flat = arrow.flat_schema(len(selection.muon_features))
    muons = flat.field(schema.MUONS_COLUMN).with_nullable(nullable=True)
    whole = flat.set(flat.get_field_index(schema.MUONS_COLUMN), muons)
    return whole.append(pa.field(COUNTS_COLUMN, pa.list_(pa.int64()))).append(pa.field(NOTES_COLUMN, pa.string()))


def read_with_ray(
    segments: Iterator[Segment], selection: Selection, tasks: int = READS_AT_ONCE
) -> Iterator[ReadResult]:
    """Yield the content of segments in order, and read ahead.

    Ray Data tasks read the segments. Prepared shards that this process can map into memory are read here instead: moving
    them through the object store would take longer.

    Args:
        segments: what to read.
        selection: the events to keep.
        tasks: segments that are read at once.
    """
    # The groups keep the order of the plan, which may mix shards on this disk with files at URLs.
    for mapped, group in groupby(segments, _is_mapped):
        read: Callable[..., Iterator[ReadResult]] = (
            reader.read_in_process if mapped else partial(_read_in_tasks, tasks=tasks)
        )
        yield from read(group, selection)


def _is_mapped(segment: Segment) -> bool:
    return all(shards.is_mapped(file_slice.file) for file_slice in segment.slices)


def _read_in_tasks(segments: Iterator[Segment], selection: Selection, tasks: int) -> Iterator[ReadResult]:
    """Read segments in executions of Ray Data; each execution starts before the one before it ends."""
    if selection.staging is None:
        yield from _read_in_order(((segment, selection) for segment in segments), tasks, selection.digests)
        return
    with staging_actor.actor(selection.staging) as stager:
        staged = with_stager(segments, selection.staging, stager)
        yield from _read_in_order(
            ((segment, replace(selection, staging=staging)) for segment, staging in staged), tasks, selection.digests
        )


def _read_in_order(reads: Iterator[Read], tasks: int, digests: Digests | None) -> Iterator[ReadResult]:
    following = _begin(reads, tasks)
    try:
        while following is not None:
            # `following` becomes None, so that `finally` closes only an execution that was begun and not read yet.
            (num_segments, blocks), following = following, None
            num_done = 0
            with closing(blocks):
                unthrottled = SchedulerThrottle.unthrottled(blocks)
                for result in (result for block in unthrottled for result in _unpack(block, digests)):
                    num_done += isinstance(result, ReadCounts)
                    if following is None and num_segments - num_done <= SEGMENTS_AHEAD:
                        following = _begin(reads, tasks)
                    yield result
    finally:
        if following is not None:
            following[1].close()


def _begin(reads: Iterator[Read], tasks: int) -> tuple[int, Prefetcher[pa.Table]] | None:
    """Start to read the next segments; return their number and their blocks, or None if no segment is left."""
    # The plan has no end, but Ray Data needs a list of tasks.
    batch = list(islice(reads, SEGMENTS_PER_EXECUTION))
    return (len(batch), Prefetcher(_execute(batch, tasks), BLOCKS_AHEAD, "ray-data")) if batch else None


class SchedulerThrottle:
    """Pause Ray Data's scheduler, whose thread shares the worker's interpreter lock with the training step.

    ray.wait returns at once while a task is done and its block waits for room. Without a pause, the scheduler's rounds
    then follow each other at once, and the training step ran at a sixth of its speed. While the training step waits for
    a block, the scheduler does not pause.
    """

    # The event is on the class, not on an instance: Ray pickles the callback, and an event cannot be pickled.
    waiting: ClassVar = threading.Event()

    @classmethod
    def pause(cls) -> None:
        """Wait for SCHEDULER_PAUSE_S, or until a block is awaited."""
        cls.waiting.wait(SCHEDULER_PAUSE_S)

    @classmethod
    def unthrottled(cls, blocks: Iterator[pa.Table]) -> Iterator[pa.Table]:
        """Yield the blocks, and do not throttle the scheduler while a block is awaited."""
        while True:
            cls.waiting.set()
            try:
                block = next(blocks, None)
            finally:
                cls.waiting.clear()
            if block is None:
                return
            yield block


class SegmentSource(Datasource):
    """A Ray Data source with one read task per segment."""

    def __init__(self, reads: list[Read]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.reads = reads

    def get_read_tasks(
        self, parallelism: int, per_task_row_limit: int | None = None, data_context: DataContext | None = None
    ) -> list[ReadTask]:
        """Return one task per segment, in order; ignore the parallelism that Ray proposes."""
        del parallelism, per_task_row_limit, data_context
        return [self._task(segment, selection) for segment, selection in self.reads]

    def estimate_inmemory_data_size(self) -> int | None:
        """Return about twice the size of the Parquet files, in bytes."""
        return 2 * sum(file_slice.size for segment, _ in self.reads for file_slice in segment.slices)

    def _task(self, segment: Segment, selection: Selection) -> ReadTask:
        size = 2 * sum(file_slice.size for file_slice in segment.slices)
        if selection.digests is not None:  # A task gets only the digests of its own files, not thousands of others.
            files = {file_slice.file for file_slice in segment.slices}
            selection = replace(selection, digests=selection.digests.part(files))
        # The number of rows is known once the segment is read.
        metadata = BlockMetadata(num_rows=None, size_bytes=size, exec_stats=None, input_files=None)
        return ReadTask(lambda: [_read_block(segment, selection)], metadata)


def _read_block(segment: Segment, selection: Selection) -> Block:
    # Ray uses the process of this task again for later tasks, which can use the freed memory.
    keep_freed_memory()
    tokens.receive()
    with _warnings_kept() as warnings:
        counts, events = reader.read_segment(segment, selection)
    notes = json.dumps({"digests": selection.digests.known if selection.digests else {}, "warnings": warnings})
    if not len(events.counts):
        # Ray drops blocks without rows, and the counts would be lost with them.
        return _block_without_events(counts, notes, selection)
    # The counts are a list in the first row; the other rows are null.
    ends = np.full(len(events.counts) + 1, len(astuple(counts)), np.int32)
    ends[0] = 0
    is_null = np.arange(len(events.counts)) > 0
    column = pa.ListArray.from_arrays(pa.array(ends), pa.array(astuple(counts)), mask=pa.array(is_null))
    texts = pa.concat_arrays([pa.array([notes]), pa.nulls(len(events.counts) - 1, pa.string())])
    return pa.Table.from_arrays([*arrow.to_flat(events).columns, column, texts], schema=_block_schema(selection))


@contextmanager
def _warnings_kept() -> Iterator[list[str]]:
    """Yield a list that collects crmuons' warnings in the block, because Ray does not send the logs of its tasks on."""
    handler = _Kept(logging.WARNING)
    source = logging.getLogger("crmuons")
    source.addHandler(handler)
    try:
        yield handler.messages
    finally:
        source.removeHandler(handler)


class _Kept(logging.Handler):
    def __init__(self, level: int) -> None:
        super().__init__(level)
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(record.getMessage())


def _block_without_events(counts: ReadCounts, notes: str, selection: Selection) -> pa.Table:
    row: dict[str, list[Any]] = {
        arrow.IDS_COLUMN: [[0, 0]],
        schema.PRIMARY_COLUMN: [[0.0] * 4],
        schema.MUONS_COLUMN: [None],
        COUNTS_COLUMN: [list(astuple(counts))],
        NOTES_COLUMN: [notes],
    }
    return pa.table(row, schema=_block_schema(selection))


def _execute(reads: list[Read], tasks: int) -> Iterator[pa.Table]:
    # Unlike Ray's defaults: one block per segment, in order, and a bounded read-ahead.
    dataset = ray.data.read_datasource(
        SegmentSource(reads),
        override_num_blocks=len(reads),
        concurrency=tasks,
        num_cpus=CPUS_PER_READ,
        ray_remote_args=staging_actor.where_to_read(reads[0][1].staging),
    )
    options = dataset.context.execution_options
    # Otherwise Ray yields blocks in the order in which they are done, which depends on the machines.
    options.preserve_order = True
    options.resource_limits = ExecutionResources(object_store_memory=READ_AHEAD_BYTES)
    # Each rank would draw a progress bar over the bar of the run.
    dataset.context.enable_progress_bars = False
    # A slow training step counts as no progress. Workers of a cluster that the user started lack cluster.ENVIRONMENT.
    dataset.context.execution_no_progress_timeout_s = -1
    private.call_each_round(dataset, SchedulerThrottle.pause)
    yield from dataset.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=2)


def _unpack(block: pa.Table, digests: Digests | None) -> Iterator[ReadResult]:
    """Yield the counts and events in a block, which Ray may have cut or merged. The events share the block's memory.

    Raises:
        ChangedError: if a task opened a file with another digest than an earlier one.
    """
    for batch in block.to_batches():
        # A row with counts begins a segment. Rows before the first such row continue the segment before.
        starts = np.flatnonzero(batch[COUNTS_COLUMN].is_valid().to_numpy(zero_copy_only=False)).tolist()
        if not starts or starts[0]:
            yield _events(batch, 0, starts[0] if starts else batch.num_rows)
        for start, stop in zip(starts, [*starts[1:], batch.num_rows], strict=True):
            notes = json.loads(batch[NOTES_COLUMN][start].as_py())
            for warning in notes["warnings"]:
                logger.warning("%s", warning)
            if digests is not None:
                for url, digest in notes["digests"].items():
                    digests.note(url, digest)
            yield ReadCounts(*batch[COUNTS_COLUMN][start].as_py())
            if batch[schema.MUONS_COLUMN][start].is_valid:
                yield _events(batch, start, stop)


def _events(batch: pa.RecordBatch, start: int, stop: int) -> EventArrays:
    return arrow.from_flat(batch.slice(start, stop - start))
