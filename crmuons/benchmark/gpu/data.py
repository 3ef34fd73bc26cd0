"""The data of a check, and the part `data`: from prepared shards to batches on the device, stage by stage."""

import multiprocessing
import time
import traceback
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path

from crmuons import config
from crmuons.benchmark import events
from crmuons.benchmark.gpu.machine import Figures, Machine
from crmuons.benchmark.gpu.parity import WITHOUT_PENALTY, attempt
from crmuons.data import arrow, loader, manifest, reader, sampler, shards
from crmuons.data.batcher import Batcher
from crmuons.data.events import EventArrays
from crmuons.data.prepare import build
from crmuons.data.prepare.shuffle import PrepareSettings
from crmuons.data.quarantine import ReadCounts
from crmuons.data.selection import training_selection
from crmuons.machine import available_cpus, keep_freed_memory
from crmuons.models.features import fit_to_file
from crmuons.training.trainer import Trainer

SPARSE, DENSE = "sparse", "simulated"
BATCH = {SPARSE: 48_000, DENSE: 2_048}


def make(machine: Machine, name: str) -> None:
    """Write raw events of a kind and prepare them. At the end write the file `done`, or `failed` with the traceback."""
    folder = machine.folder / name
    (folder / "raw").mkdir(parents=True)
    try:
        (_write_sparse if name == SPARSE else _simulate)(machine, folder / "raw")
        dataset = build.claim_dataset(folder / "prepared", [str(folder / "raw")], PrepareSettings())
        build.prepare_dataset(dataset, fit_to_file)
        (folder / "done").touch()
    except BaseException:  # The process that waits for the data must learn of every failure, even of a SystemExit.
        (folder / "failed").write_text(traceback.format_exc(), encoding="utf-8")
        raise


def _write_sparse(machine: Machine, raw: Path) -> None:
    for number in range(machine.size(4, 1)):
        drawn = events.draw(machine.size(500_000, 6_000), 0.36, number)
        arrow.write_events(raw / f"{number}.parquet", [arrow.to_table(drawn)])


def _simulate(machine: Machine, raw: Path) -> None:
    from crmuons.simulation.simulate import SimulationSettings, num_files, write_file  # noqa: PLC0415  # It needs scipy.

    number, settings = machine.size(1_000_000, 8_000), SimulationSettings(energy_gev=(1e4, 1e9), gamma=1.4)
    parts = [(raw, settings, 0, number, part) for part in range(num_files(number, settings))]
    if len(parts) == 1:
        write_file(*parts[0])
        return
    processes_at_once = min(len(parts), max(1, available_cpus().number - 4))
    with multiprocessing.get_context("forkserver").Pool(processes_at_once) as processes:
        processes.starmap(write_file, parts)


def prepared(machine: Machine, name: str) -> str:
    """Wait for a data set that `make` makes in another process, and return its path.

    Raises:
        RuntimeError: if it could not be made.
    """
    folder = machine.folder / name
    while not (folder / "done").exists():
        if (folder / "failed").exists():
            raise RuntimeError((folder / "failed").read_text(encoding="utf-8"))
        time.sleep(0.1)
    return str(folder / "prepared")


def measure(machine: Machine) -> Figures:
    """Return events per second of one thread up to each stage, and of the loader with its thread."""
    keep_freed_memory()  # As a worker of a training does.
    return {name: attempt(_stages, machine, name) for name in (SPARSE, DENSE)}


def _stages(machine: Machine, name: str) -> Figures:
    found = manifest.event_files([prepared(machine, name)], training_selection(config.Data(), None).bounds)
    slices, segment_bytes = shards.slices_and_segment_bytes(found, config.Data().shuffle_bytes)
    plan = sampler.ReadPlan(tuple(slices), 0, segment_bytes, 1)
    trainer = machine.trainer(graph=True, penalty=WITHOUT_PENALTY)  # On a GPU, its batches are packed.
    number = machine.size(BATCH[name], 64)
    stages: dict[str, Callable[[EventArrays], object]] = {
        "read and cut": lambda _: None,
        "prepared for the step": trainer.prepare,
        "on the device": lambda batch: trainer.prepare(batch).to(machine.torch, non_blocking=True),
    }
    figures: Figures = {}
    for stage, take in stages.items():
        for _ in range(2):  # The first round fills caches: the kernel's of the files, torch's of memory.
            begin, taken = time.perf_counter(), 0
            for batch in _batches(plan, number, machine.size(8, 1), trainer):
                take(batch)
                taken += len(batch.counts)
            machine.wait()
            figures[f"events/s, {stage}"] = taken / (time.perf_counter() - begin)
    figures["events/s, loader"] = _loader_rate(machine, plan, number, trainer)
    return figures


def _batches(plan: sampler.ReadPlan, number: int, epochs: int, trainer: Trainer) -> Iterator[EventArrays]:
    selection = training_selection(config.Data(), None, trainer.settings.muons_per_event)
    batcher = Batcher()
    for piece in reader.read_in_process(islice(plan.segments_of_rank(0), len(plan.segments(0)) * epochs), selection):
        if isinstance(piece, ReadCounts):
            continue
        batcher.add(piece)
        while (batch := batcher.next_batch(number, None)) is not None:
            yield batch


def _loader_rate(machine: Machine, plan: sampler.ReadPlan, number: int, trainer: Trainer) -> float:
    selection = training_selection(config.Data(), None, trainer.settings.muons_per_event)
    batches = loader.Loader(
        plan, 0, selection=selection, data=config.Data(), events_per_batch=number, prepare=trainer.prepare
    )
    for batch in islice(batches, 10):
        batch.to(machine.torch, non_blocking=True)
    machine.wait()
    begin, taken = time.perf_counter(), machine.size(200, 5)
    for batch in islice(batches, taken):
        batch.to(machine.torch, non_blocking=True)
    machine.wait()
    rate = taken * number / (time.perf_counter() - begin)
    batches.close()
    return rate
