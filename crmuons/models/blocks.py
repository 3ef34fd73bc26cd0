"""How events are cut for generation: blocks with a random stream each, pieces that fit a cache, passes for a GPU.

A part of bundles.py, see exported.py: Python 3.8, torch and numpy alone.
"""

from typing import Iterator  # noqa: UP035  # for Python 3.8

import numpy as np
import torch
from torch import Tensor

# Events that share a random stream, so that the numbers drawn do not depend on how a caller groups them.
EVENTS_PER_BLOCK = {"cpu": 1024, "cuda": 16_384}
# Muons in one piece of a block. With 64 hidden numbers a muon, they fill 2 MB of a CPU's cache, or 256 MB of a GPU's
# memory.
MUONS_PER_PIECE = {"cpu": 2**13, "cuda": 2**20}
# Blocks and muons of one pass through the networks. In each pass a GPU waits for 110 launches of 5 us, so a pass has
# several blocks: an H200 makes 155 M muons/s in passes of 131,072 events with 13.5 muons, 95 M in passes of 16,384.
BLOCKS_PER_PASS = {"cpu": 1, "cuda": 8}
MUONS_PER_PASS = {"cpu": 0, "cuda": 2**21}
# Muons that one thread of a GPU adds up. A thread takes 0.5 us for each, so larger events are added up in parts.
MUONS_PER_SUM = 128
COUNTS, MUONS = 0, 1  # A block's random streams.
MEMBERS = 2  # The stream that chooses the members of an ensemble.


def random_stream(
    seed: int, block: int, stream: int, device: torch.device, member: "int | None" = None
) -> torch.Generator:
    """Return the random number generator of a block of events; in an ensemble, of one member's events in it."""
    words = [seed, block, stream] if member is None else [seed, block, stream, 1 + member]
    state = np.random.SeedSequence(words).generate_state(1, np.uint64)[0]
    return torch.Generator(device).manual_seed(int(state >> np.uint64(1)))


def blocks(events: int, first_event: int, device: torch.device) -> "Iterator[tuple[int, slice]]":
    """Yield number and rows of each block of events; raise a ValueError if `first_event` is not the first of a block."""
    size = EVENTS_PER_BLOCK[device.type]
    if first_event % size:
        msg = f"first_event {first_event} is not a multiple of {size}"
        raise ValueError(msg)
    for start in range(0, events, size):
        yield (first_event + start) // size, slice(start, min(start + size, events))


def pieces(counts: np.ndarray, first_event: int, device: torch.device) -> "Iterator[tuple[int, slice]]":
    """Cut blocks into pieces of about MUONS_PER_PIECE muons, without cutting an event; yield block and rows of each."""
    for block, rows in blocks(len(counts), first_event, device):
        number = counts[rows]
        piece = (np.cumsum(number) - number) // MUONS_PER_PIECE[device.type]
        bounds = [0, *(np.flatnonzero(np.diff(piece)) + 1).tolist(), len(piece)]
        for index in range(len(bounds) - 1):
            yield block, slice(rows.start + bounds[index], rows.start + bounds[index + 1])


def passes(
    parts: "Iterator[tuple[int, slice]]", device: torch.device, counts: "np.ndarray | None" = None
) -> "Iterator[list[tuple[int, slice]]]":
    """Group parts of blocks (block and rows of each) that go through the networks together.

    The block numbers fix the groups. So the groups stay the same if a caller cuts the events at multiples of
    BLOCKS_PER_PASS blocks.

    Args:
        parts: the parts.
        device: where the networks are; a CPU takes each part by itself.
        counts: number of muons of each event, if MUONS_PER_PASS limits a group.
    """
    together: list[tuple[int, slice]] = []  # Python does not evaluate this annotation, so 3.8 accepts it.
    taken = 0
    for block, rows in parts:
        number = 0 if counts is None else int(counts[rows].sum())
        other_pass = (
            together and block // BLOCKS_PER_PASS[device.type] != together[0][0] // BLOCKS_PER_PASS[device.type]
        )
        if other_pass or (taken and taken + number > MUONS_PER_PASS[device.type]):
            yield together
            together, taken = [], 0
        together.append((block, rows))
        taken += number
    if together:
        yield together


def partial_sums(counts: Tensor, number: int) -> "tuple[Tensor, Tensor]":
    """Cut the muons of events into parts of at most MUONS_PER_SUM muons, which a GPU adds up at the same time.

    `number` is the number of parts of all events.

    Returns:
        The first muon of each part, and the first part of each event.
    """
    parts = (counts + MUONS_PER_SUM - 1) // MUONS_PER_SUM
    event = torch.repeat_interleave(parts, output_size=number)
    first_part, first_muon = parts.cumsum(0) - parts, counts.cumsum(0) - counts
    within = torch.arange(number, device=counts.device) - first_part.index_select(0, event)
    return first_muon.index_select(0, event) + MUONS_PER_SUM * within, first_part
