"""Show the progress of a run in the process that started it, by reading the run's metrics file."""

import logging
import math
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from crmuons import config
from crmuons.progress import progress
from crmuons.runs.directory import Run
from crmuons.storage import records
from crmuons.training.interface import Metrics
from crmuons.training.notices import Notices
from crmuons.training.staging_progress import StagingWatch

logger = logging.getLogger(__name__)

LOOK_S = 0.5  # Two looks per second at the files cost nothing, and more looks would show nothing new.


@contextmanager
def progress_of(run: Run, settings: config.Config) -> Iterator[None]:
    """Show the progress of a run while the block lasts."""
    ended = threading.Event()
    staging, notices = StagingWatch(run), Notices(run)
    # Read before the thread starts, because the thread may start late: lines written from now on are new.
    newest = run.latest_metrics()
    seen, losses = (path.stat().st_size if path.is_file() else 0 for path in (run.metrics, run.losses))
    start = newest, seen, losses
    thread = threading.Thread(target=_watch, args=(run, settings, [staging, notices], ended, start), daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        # Ctrl-C inside of tqdm may leave its lock taken: a bar is not worth waiting for.
        thread.join(10)
        for shown in (staging, notices):  # Show also what came at the end of the run.
            shown.update()
        staging.close()


def _watch(
    run: Run,
    settings: config.Config,
    watched: Sequence[StagingWatch | Notices],
    ended: threading.Event,
    start: tuple[Metrics, int, int],
) -> None:
    newest, seen, losses = start
    said = {""}  # Sentences shown: the metrics are read again from the start if the run went back to a checkpoint.
    total, counted, unit = _end(settings.train)
    begin = int(newest.get(counted, 0))
    with progress(total, unit=unit, what="train", initial=begin) as bar:
        while not ended.wait(LOOK_S):
            for shown in watched:
                shown.update()
            losses, lines = _new_lines(run.losses, losses)
            for line in lines:
                logger.warning(_loss(records.parse(line, run.losses)))
            seen, lines = _new_lines(run.metrics, seen)
            for line in lines:
                newest |= (values := Run.numbers(records.parse(line, run.metrics), run.metrics))
                if (sentence := _resized(values)) not in said:
                    logger.warning(sentence)
                    said.add(sentence)
            bar.set_postfix_str(_postfix(newest), refresh=False)
            bar.update(int(newest.get(counted, begin)) - bar.n)


def _end(train: config.Train) -> tuple[int, str, str]:
    """Return the limit of a run, the metric that reaches it, and its unit."""
    if train.steps is not None:
        return train.steps, "step", "steps"
    if train.max_seconds is not None:
        return math.ceil(train.max_seconds), "progress/seconds", "s"
    return math.ceil(train.epochs or 0), "progress/epochs", "epochs"


def _new_lines(path: Path, seen: int) -> tuple[int, list[str]]:
    if not path.is_file():
        return seen, []
    with path.open("rb") as file:
        file.seek(max(seen - 1, 0))
        if seen and file.read(1) != b"\n":  # A worker was replaced, and the run removed the lines after its checkpoint.
            seen = 0
        file.seek(seen)
        text = file.read()
    whole = text[: text.rfind(b"\n") + 1]
    return seen + len(whole), whole.decode().splitlines()


def _resized(values: Metrics) -> str:
    workers = values.get("scaling/workers")
    return "" if workers is None else f"training on {workers:.0f} workers from step {values['step']}"


def _loss(loss: dict[str, Any]) -> str:
    which = "; ".join(f"worker {rank}: {reason}" for rank, reason in loss["workers"].items())
    return f"workers lost at {loss['at']}, the run continues from its last checkpoint ({which})"


def _postfix(newest: Metrics) -> str:
    shown = {
        "speed/events_per_second": "events/s {:,.0f}",
        "train/wasserstein_estimate": "W {:.3f}",
        "progress/epochs": "epoch {:.0f}",
        "validation/score": "W1/sigma {:.3f}",
    }
    return ", ".join(text.format(newest[name]) for name, text in shown.items() if name in newest)
