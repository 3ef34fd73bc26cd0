"""Run the updates of a step on fixed input memory: on an NVIDIA GPU as CUDA graphs, elsewhere operation by operation.

Python limits the speed of an eager step: it needs about 7 us per operation on any GPU. A graph launches all its kernels
at once.

- The first step of a bucket runs eagerly. It is a real step, and libraries set themselves up in it, which must not
  happen during a capture.
- The second step is captured and replayed. All later steps replay it.
- With several ranks a graph ends at each exchange of gradients, and another begins after it: NCCL runs between graphs.

Graphs of different buckets share memory: they never run at the same time, and nothing that one step leaves for the next
is allocated during a capture. A graph holds addresses, so `release` must follow when a tensor of the step is replaced.
"""

import logging
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from crmuons import config
from crmuons.training import distributed
from crmuons.training.batch import TrainingBatch
from crmuons.training.packed import Bucket, PackedBatch, lay_out
from crmuons.training.terms import LossTerms

log = logging.getLogger(__name__)

MAX_ENTRIES = 64  # There are more buckets only without a cap on muons. The least recently used bucket is dropped.
STEPS_IN_FLIGHT = 2  # The host prepares the next step while the device computes one; it runs no further ahead.

Updates = Callable[[Iterator[TrainingBatch]], LossTerms]


@dataclass
class _Recording:
    """Graphs of one step, and the buffers that ranks exchange between them."""

    pool: Any  # torch's own type of a memory pool.
    noise: torch.Generator
    graphs: list["torch.cuda.CUDAGraph"] = field(default_factory=list)
    buffers: list[Tensor] = field(default_factory=list)
    terms: LossTerms = field(default_factory=dict)

    def begin(self) -> None:
        # Each graph of a step reads the noise generator's state when it is replayed, so a new seed needs no new graph.
        graph = torch.cuda.CUDAGraph()
        graph.register_generator_state(self.noise)
        # The thread that reads data allocates page-locked memory meanwhile, and NCCL's watchdog asks for events.
        graph.capture_begin(pool=self.pool, capture_error_mode="thread_local")
        self.graphs.append(graph)

    def end(self) -> None:
        self.graphs[-1].capture_end()

    def split(self, buffer: Tensor) -> None:
        """End a graph before an exchange, and begin the next."""
        self.end()
        # The exchange is not captured: `replay` calls it between two graphs, on the buffer at the same address.
        self.buffers.append(buffer)
        self.begin()

    def abandon(self) -> None:
        """Take the stream out of a capture that failed."""
        with suppress(RuntimeError):  # Ending an invalid capture raises a second error; the first error has the reason.
            if self.graphs:  # None if the first capture could not begin.
                self.end()

    def replay(self) -> LossTerms:
        for graph, buffer in zip(self.graphs[:-1], self.buffers, strict=True):
            graph.replay()
            distributed.sum_over_ranks(buffer)
        self.graphs[-1].replay()
        return self.terms


@dataclass
class _Entry:
    """Input memory of the batches of a step, and its recording once there is one."""

    inputs: list[Tensor]
    recording: _Recording | None = None


class StepGraphs:
    """Run steps of fixed sizes.

    Args:
        settings: the training's settings.
        device: the device of the networks. On a CPU all steps are eager.
        recover: function that undoes what the Python code of an unfinished step has set; called after a failed capture.
    """

    def __init__(self, settings: config.Train, device: torch.device, recover: Callable[[], None]) -> None:
        self.settings, self.device, self._recover = settings, device, recover
        self.captures = device.type == "cuda"
        self._stream = torch.cuda.Stream(device) if self.captures else None
        # All graphs share one pool, because they never run at the same time. Otherwise each would keep a step's memory.
        self._pool = torch.cuda.graph_pool_handle() if self.captures else None
        self._entries: dict[tuple[Bucket, object], _Entry] = {}
        self._current: _Recording | None = None  # The recording in progress.
        # The end of each step on the device, and its batches, which are kept until then. Batches do not call
        # record_stream: after a failed capture, torch would never reuse memory that two streams used.
        self._in_flight: deque[tuple[torch.cuda.Event, list[PackedBatch]]] = deque()

    def run(
        self,
        batches: list[PackedBatch],
        variant: object,
        start: Callable[[], torch.Generator],
        updates: Updates,
    ) -> LossTerms:
        """Take a step.

        Args:
            batches: all batches of the step.
            variant: what distinguishes this step from others of the same sizes.
            start: function that sets what changes from step to step, in place, and returns the generator of the noise.
            updates: function that runs the step's operations, which the graphs repeat.

        Returns:
            The metrics, on the device. A later step overwrites them.
        """
        capacity = max(batch.capacity for batch in batches)
        penalty = self.settings.penalty
        all_penalised = penalty.kind == "none" or (penalty.sample_fraction == 1 and penalty.max_pairs is None)
        bucket = Bucket.of([batch.sizes for batch in batches], capacity, all_penalised=all_penalised)
        with self._own_stream(batches):
            entry, is_known = self._entry((bucket, variant), len(batches))
            # The graph reads its inputs at fixed addresses, so each batch is copied there first.
            for batch, memory in zip(batches, entry.inputs, strict=True):
                batch.copy_into(memory)

            def step() -> LossTerms:
                return updates(lay_out(memory, bucket, self.settings) for memory in entry.inputs)

            # This comes after the copies and before the updates. It changes tensors in place that the graph of the last
            # step may still read; both run on this stream, which keeps the order.
            noise = start()
            # The first step of a bucket is not recorded: cuBLAS, NCCL and Triton set themselves up in it, which a
            # capture forbids.
            if self.captures and is_known and entry.recording is None:
                entry.recording = self._record(step, noise)
                if entry.recording is None:
                    self._recover()
                    start()
            return step() if entry.recording is None else entry.recording.replay()

    def exchange(self, buffer: Tensor) -> Tensor:
        """Sum a buffer over all ranks; while a step is recorded, end a graph here."""
        if self._current is None:
            return distributed.sum_over_ranks(buffer)
        # With one rank there is nothing to exchange, and the whole step stays one graph.
        if distributed.world_size() > 1:
            self._current.split(buffer)
        return buffer

    def release(self) -> None:
        """Forget all graphs. The next steps record new ones."""
        self._wait()
        self._entries.clear()

    def _entry(self, key: tuple[Bucket, object], batches: int) -> tuple[_Entry, bool]:
        """Return the entry of a bucket, and whether it existed before."""
        # The entry is removed and put back at the end, so the dictionary's order is the order of last use.
        known = self._entries.pop(key, None)
        if known is None and len(self._entries) >= MAX_ENTRIES:
            self._wait()  # A graph must not be destroyed while it runs.
            self._entries.pop(next(iter(self._entries)))
        size = key[0].bytes
        entry = known or _Entry([torch.zeros(size, dtype=torch.uint8, device=self.device) for _ in range(batches)])
        self._entries[key] = entry
        return entry, known is not None

    def _wait(self) -> None:
        if self._stream is not None:
            self._stream.synchronize()

    def _record(self, step: Callable[[], LossTerms], noise: torch.Generator) -> _Recording | None:
        """Record a step without running it. If that fails, return None and record no step from then on."""
        torch.cuda.synchronize(self.device)
        torch.cuda.empty_cache()  # A graph has its own memory, so the memory of the eager step is not needed any more.
        recording = self._current = _Recording(self._pool, noise)
        try:
            # Recording runs nothing: `run` replays the graphs for this very step afterwards.
            recording.begin()
            recording.terms = step()
            recording.end()
        except RuntimeError as error:
            recording.abandon()
            # Graphs of other buckets are dropped too: their noise comes from a generator that `recover` replaces.
            self._entries = {key: _Entry(entry.inputs) for key, entry in self._entries.items()}
            self.captures = False
            log.warning(
                "train.cuda_graph: this step cannot be recorded as a CUDA graph (%s). The run continues without graphs, "
                "and is several times slower",
                str(error).partition("\n")[0],
            )
            return None
        finally:
            self._current = None
        return recording

    @contextmanager
    def _own_stream(self, batches: list[PackedBatch]) -> Iterator[None]:
        """Run the block on this object's stream, as a capture may not use the default stream. It reads `batches`."""
        if self._stream is None:
            yield
            return
        outer = torch.cuda.current_stream(self.device)
        self._stream.wait_stream(outer)
        with torch.cuda.stream(self._stream):
            yield
            self._in_flight.append((self._stream.record_event(torch.cuda.Event(blocking=True)), batches))
        # The metrics are read, and checkpoints are made, on the outer stream.
        outer.wait_stream(self._stream)
        if len(self._in_flight) > STEPS_IN_FLIGHT:
            ended, _ = self._in_flight.popleft()
            ended.synchronize()
