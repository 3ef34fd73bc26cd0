"""Suite `train`: a whole run, from Parquet to the optimizer, against its training steps on batches in memory."""

import json
from collections.abc import Callable, Sequence
from itertools import cycle, islice
from pathlib import Path

import numpy as np
import torch

from crmuons import config
from crmuons.benchmark import timing
from crmuons.benchmark.figures import Figure
from crmuons.benchmark.timing import Times
from crmuons.data import manifest, quarantine, reader, sampler, selection
from crmuons.data.events import EventArrays, concat, slice_events
from crmuons.models.features import Features
from crmuons.training.summary import RunSummary
from crmuons.training.trainer import Trainer
from crmuons.training.worker import set_up_torch

LOG_EVERY = 10
NUM_BATCHES = 20


def run(rounds: int, settings: config.Config, start: Callable[[config.Config], RunSummary]) -> list[Figure]:
    """Measure events per second of a run.

    Args:
        rounds: number of log intervals that count; the first ones, while the readers start, do not.
        settings: see `settings_of`.
        start: function that trains with the given settings.

    Raises:
        KeyboardInterrupt: if the run was interrupted.
    """
    workers = settings.scaling.num_workers
    result = start(settings)
    if result.outcome != "finished":
        raise KeyboardInterrupt
    trained = result.run
    lines = [json.loads(line) for line in trained.metrics.read_text(encoding="utf-8").splitlines()]
    speeds = np.asarray([line["speed/events_per_second"] for line in lines if "speed/events_per_second" in line])
    waits = [line["speed/data_wait_share"] for line in lines if "speed/data_wait_share" in line]
    taken = 1 / speeds[-rounds:]  # Seconds per event; in a step, a worker takes n_critic + 1 batches.
    alone = _steps_alone(settings, trained.load_features(settings), rounds)
    read = settings.train.events_per_worker * (settings.train.n_critic + 1)
    details = {"data_wait_share": float(np.median(waits[-rounds:])), "workers": float(workers)}
    return [
        Figure(
            f"train, {workers} workers, events read", "events", 1.0, Times(taken),
            "the steps alone, afterwards, one worker with the same threads", read, alone, details,
        )
    ]  # fmt: skip


def settings_of(
    rounds: int, data: Sequence[str], out: Path, *, workers: int, threads: int, events: int
) -> config.Config:
    """Return the settings of a run for `run`.

    Args:
        rounds: see `run`.
        data: event Parquet.
        out: directory of the run.
        workers: workers of Ray Train; 0 trains in this process.
        threads: torch's threads in all workers together.
        events: events in a worker's batch.
    """
    steps = LOG_EVERY * (rounds + 5)
    return config.from_dict(
        {
            "run": {"name": "train", "storage_path": str(out), "checkpoint_every": 10 * steps},
            "data": {"train": list(data)},
            "train": {
                "steps": steps, "events_per_worker": events, "log_every": LOG_EVERY, "validate_every": 10 * steps,
                "validation_events": 1000,
            },
            "scaling": {"num_workers": workers, "threads_per_worker": max(1, threads // max(1, workers))},
            "tracking": {"enabled": False},
        }
    )  # fmt: skip


def _steps_alone(settings: config.Config, features: Features, rounds: int) -> Times:
    set_up_torch(settings)
    trainer = Trainer(settings, features, torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    batches = cycle([trainer.prepare(batch).to(trainer.device) for batch in _batches(settings)])
    return timing.alternate({"step": lambda: trainer.step(batches)}, rounds)["step"]


def _batches(settings: config.Config) -> list[EventArrays]:
    """Return the first batches of the data, up to NUM_BATCHES; with too few events, one smaller batch."""
    files = manifest.event_files(settings.data.train)
    plan = sampler.ReadPlan(tuple(sampler.cut_files(files)), 0, settings.data.shuffle_bytes, 1)
    segments = islice(plan.segments_of_rank(0), len(plan.segments(0)))
    size, read = settings.train.events_per_worker, list[EventArrays]()
    for piece in reader.read_in_process(segments, selection.Selection(muons_per_event=settings.train.muons_per_event)):
        if not isinstance(piece, quarantine.ReadCounts):
            read.append(piece)
            if sum(len(piece.counts) for piece in read) >= NUM_BATCHES * size:
                break
    events = concat(read)
    number = len(events.counts)
    return [slice_events(events, i * size, min((i + 1) * size, number)) for i in range(max(1, number // size))]
