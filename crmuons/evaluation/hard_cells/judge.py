"""Search all true events for hard cells, generate events for the same primaries, and compute the cells' figures."""

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float64, UInt64

from crmuons.data import manifest
from crmuons.data.events import EventArrays, take
from crmuons.data.reader import read_slice
from crmuons.data.sampler import FileSlice, cut_files, permutation
from crmuons.data.selection import Selection
from crmuons.evaluation.hard_cells import figures
from crmuons.evaluation.hard_cells.figures import CellEvents, Numbers
from crmuons.evaluation.hard_cells.importance import Importance
from crmuons.evaluation.hard_cells.kinds import HardCell, hard_cells
from crmuons.evaluation.metrics.quantities import Sample, primary_features
from crmuons.evaluation.reference import GENERATED, NULL, Reference, task_slices
from crmuons.evaluation.tasks import Executor, Future
from crmuons.generation.generator import BundleGenerator


@dataclass(frozen=True)
class CellFigures:
    """The figures of one hard cell.

    Attributes:
        name, key: names of the cell, for people and for metrics.
        events, effective: numbers of events and of effective events of each sample.
        numbers: the figures of the generated events and of the floor.
    """

    name: str
    key: str
    events: dict[str, int]
    effective: dict[str, float]
    numbers: dict[str, Numbers]


@dataclass(frozen=True)
class CellReference:
    """The true events that were looked at, in two halves without a common shower. All candidates share them.

    Attributes:
        cells: the hard cells.
        wanted: number of events of a cell that each sample should have.
        importance: the probabilities with which events were looked at.
        truth, control: the halves; a model's events have the control's primaries.
        seed: seed of all draws.
    """

    cells: list[HardCell]
    wanted: int
    importance: Future[Importance]
    truth: CellEvents
    control: CellEvents
    seed: int


def prepare_cells(
    executor: Executor,
    reference: Reference,
    truth: tuple[Sequence[str], Selection],
    training_primaries: np.ndarray,
    wanted: int,
) -> CellReference:
    """Read all true events once, and keep events of the hard cells and a random part of the others.

    Args:
        executor: runs the work.
        reference: the evaluation's reference. Its events are the pilot, which shows where hard events are.
        truth: the files of the true events, and the selection of the reference.
        training_primaries: primaries of training events; may be empty.
        wanted: number of events of a cell that each half should have.
    """
    urls, selection = truth
    seed = reference.plan.seed
    cells = hard_cells(training_primaries)
    slices = permutation(cut_files(manifest.event_files(urls)), seed, 0)
    first = executor.get(executor.submit(_count, slices[0], selection))
    total = math.ceil(first * sum(part.size for part in slices) / max(slices[0].size, 1))
    pilot = reference.truth.sample, reference.control.sample
    importance = executor.submit(_fit, cells, *pilot, total, 2 * wanted)
    events = CellEvents.concat(_looked_at(executor, slices, selection, importance, seed))
    second = second_half(events.ids, seed)
    return CellReference(cells, wanted, importance, events.where(~second), events.where(second), seed)


def judge_model(executor: Executor, reference: CellReference, model: Future[BundleGenerator]) -> list[CellFigures]:
    """Generate one event for each primary of the control, and return the figures of every cell."""
    control = reference.control
    parts = [
        executor.submit(
            _generate,
            model,
            (control.ids[rows], control.primaries[rows], control.weights[rows]),
            reference.cells,
            reference.seed,
            rows.start,
        )
        for rows in task_slices(len(control))
    ]
    return _judge(executor, reference, CellEvents.concat([executor.get(part) for part in parts]), paired=True)


def judge_data(
    executor: Executor, reference: CellReference, urls: Sequence[str], selection: Selection, *, shared: bool
) -> list[CellFigures]:
    """Search a generated data set in the same way as the true events, and return the figures of every cell.

    With `shared`, the data set has the primaries of the truth. Its events of the first half are then left out, because
    they would be compared with true events of the same primaries.
    """
    slices = permutation(cut_files(manifest.event_files(urls)), reference.seed, 0)
    looked_at = _looked_at(
        executor, slices, selection, reference.importance, reference.seed + 1, half=reference.seed if shared else None
    )
    return _judge(executor, reference, CellEvents.concat(looked_at), paired=False)


def second_half(ids: UInt64[np.ndarray, "events 2"], seed: int) -> Bool[np.ndarray, " events"]:
    """Return which events belong to the second half, by a hash of the shower's ids that is the same in all files."""
    mixed = ids[:, 0] * np.uint64(0x9E3779B97F4A7C15) + ids[:, 1] * np.uint64(0xC2B2AE3D27D4EB4F) + np.uint64(seed)
    for factor in (0xFF51AFD7ED558CCD, 0xC4CEB9FE1A85EC53):  # The finalizer of MurmurHash3: every bit counts.
        mixed = np.multiply(np.bitwise_xor(mixed, np.right_shift(mixed, np.uint64(33))), np.uint64(factor))
    return np.asarray(np.right_shift(mixed, np.uint64(63)) == 1)


def _looked_at(
    executor: Executor,
    slices: Sequence[FileSlice],
    selection: Selection,
    importance: Future[Importance],
    seed: int,
    *,
    half: int | None = None,
) -> list[CellEvents]:
    """Read all file slices, some ahead of use, and return the events that are kept of each, in order.

    With `half`, which is the seed of the halves, only events of the second half are kept.
    """
    found, reading = [], deque[Future[CellEvents]]()
    for number, file_slice in enumerate(slices):
        reading.append(executor.submit(_look_at, file_slice, selection, importance, (seed, number), half))
        if len(reading) > executor.reads_ahead:
            found.append(executor.get(reading.popleft()))
    return found + [executor.get(part) for part in reading]


def _look_at(
    file_slice: FileSlice,
    selection: Selection,
    importance: Importance,
    seed: tuple[int, int],
    half: int | None,
) -> CellEvents:
    events, _ = read_slice(file_slice, selection)
    probability = importance.of(primary_features(events.primaries))
    kept = np.random.default_rng(seed).random(len(probability)) < probability
    if half is not None:
        kept &= second_half(events.ids, half)
    return CellEvents.of(take(events, np.flatnonzero(kept)), 1 / probability[kept], importance.cells)


def _count(file_slice: FileSlice, selection: Selection) -> int:
    return len(read_slice(file_slice, selection)[0].counts)


def _fit(cells: list[HardCell], truth: Sample, control: Sample, total: int, wanted: int) -> Importance:
    pilot = truth, control
    return Importance.fit(
        cells,
        np.concatenate([sample.conditions for sample in pilot]),
        np.concatenate([sample.counts for sample in pilot]),
        np.concatenate([np.column_stack([cell.members(sample) for cell in cells]) for sample in pilot]),
        total=total,
        wanted=wanted,
    )


def _generate(
    generator: BundleGenerator,
    control: tuple[np.ndarray, np.ndarray, Float64[np.ndarray, " events"]],
    cells: list[HardCell],
    seed: int,
    first_event: int,
) -> CellEvents:
    """Generate one block of events at a time and keep only their quantities, because large events fill the memory."""
    ids, primaries, weights = control
    parts = []
    for start in range(0, len(ids), generator.events_per_block):
        rows = slice(start, start + generator.events_per_block)
        # The evaluation's own events may have the same primaries, so these events need another random stream.
        events: EventArrays = generator.generate(
            primaries[rows], seed=seed + 1, ids=ids[rows], first_event=first_event + start
        )
        parts.append(CellEvents.of(events, weights[rows], cells))
    return CellEvents.concat(parts)


def _judge(executor: Executor, reference: CellReference, generated: CellEvents, *, paired: bool) -> list[CellFigures]:
    samples = {GENERATED: generated, NULL: reference.control}
    truth, control, most, seed = reference.truth, reference.control, reference.wanted, reference.seed
    results = []
    for number, cell in enumerate(reference.cells):
        true_members = truth.where(truth.members[:, number] > 0)
        inside = {name: sample.where(sample.members[:, number] > 0) for name, sample in samples.items()}
        numbers: dict[str, Future[Numbers]] = {
            name: executor.submit(_figures, true_members, part, most, seed) for name, part in inside.items()
        }
        rates = {
            # A model's events have the control's primaries. Events of a data set are compared with all true events.
            GENERATED: figures.rate(control, generated, number, paired=True)
            if paired
            else figures.rate(CellEvents.concat([truth, control]), generated, number, paired=False),
            NULL: figures.rate(truth, control, number, paired=False),
        }
        sizes = {"true": true_members} | inside
        results.append(
            CellFigures(
                cell.name,
                cell.key,
                {name: len(part) for name, part in sizes.items()},
                {name: figures.effective(part.weights) for name, part in sizes.items()},
                {name: {"rate": rates[name]} | executor.get(numbers[name]) for name in samples},
            )
        )
    return results


def _figures(truth: CellEvents, other: CellEvents, most: int, seed: int) -> Numbers:
    return {"auc_bundles": figures.auc_bundles(truth, other, most, seed)} | figures.distances(truth, other)
