"""Suite `train`: the whole job, from Parquet to the optimizer, against its steps alone on batches that are ready."""

import json
from collections.abc import Callable, Sequence
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import numpy as np
import torch

from crmuons import config, files, plan, reader
from crmuons.batch import EventBatch
from crmuons.benchmark import timing
from crmuons.benchmark.figures import Figure
from crmuons.benchmark.timing import Times
from crmuons.features import Features
from crmuons.runs import Run
from crmuons.trainer import Trainer

LOG_EVERY = 10
NUM_BATCHES = 20


def run(
    rounds: int, data: Sequence[str], workers: int, out: Path, start: Callable[[config.Config], Any]
) -> list[Figure]:
    """Events per second of a run of `rounds` log intervals.

    Args:
        rounds: intervals that count; the first ones, while the readers start, do not.
        data: event Parquet.
        workers: of Ray Train; 0: in this process.
        out: a directory for the run.
        start: trains as settings say and returns the result (ray_train.run_training).
    """
    settings = _settings(rounds, data, workers, out)
    trained: Run = start(settings).run
    lines = [json.loads(line) for line in trained.metrics.read_text().splitlines()]
    speeds = np.asarray([line["speed/events_per_second"] for line in lines if "speed/events_per_second" in line])
    waits = [line["speed/data_wait_share"] for line in lines if "speed/data_wait_share" in line]
    taken = 1 / speeds[-rounds:]  # Seconds an event: in a step, a worker takes n_critic + 1 batches.
    alone = _steps_alone(settings, trained.load_features(settings), data, rounds)
    read = settings.train.events_per_worker * (settings.train.n_critic + 1)
    details = {"data_wait_share": float(np.median(waits[-rounds:])), "workers": float(workers)}
    return [
        Figure(
            f"train, {workers} workers, events read", "events", 1.0, Times(taken),
            "the steps alone, afterwards, one worker with the same threads", read, alone, details,
        )
    ]  # fmt: skip


def _settings(rounds: int, data: Sequence[str], workers: int, out: Path) -> config.Config:
    steps = LOG_EVERY * (rounds + 5)
    return config.from_dict(
        {
            "run": {"name": "train", "storage_path": str(out), "checkpoint_every": 10 * steps},
            "data": {"train": list(data)},
            "train": {"steps": steps, "log_every": LOG_EVERY, "validate_every": 10 * steps, "validation_events": 1000},
            "scaling": {"num_workers": workers},
            "tracking": {"enabled": False},
        }
    )


def _steps_alone(settings: config.Config, features: Features, data: Sequence[str], rounds: int) -> Times:
    trainer = Trainer(settings, features, torch.device("cpu"))
    batches = cycle([trainer.prepare(batch) for batch in _batches(data, settings.train.events_per_worker)])
    return timing.alternate({"step": lambda: trainer.step(batches)}, rounds)["step"]


def _batches(data: Sequence[str], size: int) -> list[EventBatch]:
    units = plan.Plan(tuple(plan.cut(files.list_files(data))), 0, config.Data().shuffle_bytes, 1)
    pieces = reader.read_here(
        islice(units.items(0), 1), reader.Selection(muons_drawn=config.Train(steps=1).muons_per_event)
    )
    read = EventBatch.concat([EventBatch.from_arrays(piece) for piece in pieces if not isinstance(piece, reader.Tally)])
    number = min(NUM_BATCHES, len(read) // size)
    return [read.slice(i * size, (i + 1) * size) for i in range(number)]
