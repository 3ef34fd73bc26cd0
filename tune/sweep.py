"""A sweep from outside: check it, prepare its data once, run its trials, and say what they found."""

import logging
import threading
from contextlib import nullcontext, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import ray

from crmuons import config
from crmuons.ray_backend import cluster, preflight
from crmuons.ray_backend.scaling import check_fit
from crmuons.runs.location import RunStorage
from crmuons.storage import atomic
from crmuons.tracking.interface import Status
from crmuons.tracking.tracker import Tracker
from crmuons.tracking.uri import resolve_uri
from crmuons.training import signals, tensorboard
from crmuons.training.setup import refuse_credentials
from tune import ray_tune, results, trials
from tune.controller import SharedInputs, SweepController
from tune.directory import SWEEP_FILE, define, exclusive, find
from tune.options import SweepOptions, TrialResources
from tune.outcome import tell_mlflow, write_results
from tune.space import Space

logger = logging.getLogger(__name__)

Outcome = Literal["complete", "out of time", "interrupted"]


@dataclass(frozen=True)
class SweepSummary:
    """How a sweep ended.

    Attributes:
        directory: of the sweep.
        space: what varied.
        outcome: "out of time" if max_seconds ended it. What is not complete can be continued.
        rows: of the table, the best trial first.
        best: name of the best trial that reached its end; None if there is none.
    """

    directory: Path
    space: Space
    outcome: Outcome
    rows: list[results.Row]
    best: str | None

    def describe(self) -> str:
        """The table, and where things are."""
        states = [row["state"] for row in self.rows]
        counts = ", ".join(f"{states.count(state)} {state}" for state in sorted(set(states))) or "no trials"
        text = [*results.lines(self.rows, self.space), f"sweep    {self.directory} ({self.outcome}: {counts})"]
        if self.best is not None:
            text.append(
                f"best     {self.best}: crmuons train {self.directory / 'best.toml'} trains the same model again"
            )
        if self.outcome != "complete":
            text.append("the same command with run.resume=auto continues")
        return "\n".join(text)


def run_sweep(settings: config.Config, space: Space, options: SweepOptions) -> SweepSummary:
    """Run a sweep, or what is left of it.

    Args:
        settings: of every trial but for what the space varies; run.name and run.resume are the sweep's.
        space: what varies.
        options: how.

    Raises:
        FileNotFoundError, ValueError: if the data, the space or the options do not allow it; nothing was started then.
        BlockingIOError: if another process runs this sweep.
    """
    refuse_credentials(settings)
    tensorboard.check_installed(settings)
    space.check(settings)
    options.check(space, settings)
    definition = define(settings, space, options)
    storage = RunStorage.of(settings)
    directory = find(settings, storage, definition)
    tracking_uri = resolve_uri(storage.directory.parent)  # As of a single run: beside the directory of the runs.
    origins = SharedInputs()
    trials_left = len(trials.load(directory)) < options.num_trials(space)
    data = origins(settings)[0] if trials_left else []  # What is wrong with the data is said before a cluster starts.
    with cluster.cluster():
        room = preflight.check_cluster(
            storage,
            tracking_uri if settings.tracking.enabled else None,
            data,
            lambda: _room(options, settings.scaling, options.num_trials(space)),
        )
        directory.mkdir(parents=True, exist_ok=True)
        with exclusive(directory):
            atomic.write_json(directory / SWEEP_FILE, definition)
            settings = config.changed(settings, room.scaling(settings.scaling))
            tracker = (
                _open_tracker(directory, tracking_uri, settings, space, options) if settings.tracking.enabled else None
            )
            settings = config.changed(settings, {"tracking.parent": "" if tracker is None else tracker.identity})
            return _run(SweepController(directory, settings, space, options, origins), room, tracker, tracking_uri)


def _room(options: SweepOptions, scaling: config.Scaling, num_trials: int) -> TrialResources:
    """What trials get, which at least one trial finds on the cluster's nodes, and all of a population."""
    room, workers = (
        TrialResources.of(options, scaling, ray.cluster_resources(), num_trials),
        max(1, scaling.num_workers),
    )
    number = room.concurrency if options.scheduler == "pbt" else 1
    what = "trials" if workers == 1 else "workers of trials"
    check_fit(what, number * workers, {"CPU": room.cpus / workers, "GPU": room.gpus / workers})
    return room


def _run(controller: SweepController, room: TrialResources, tracker: Tracker | None, tracking_uri: str) -> SweepSummary:
    directory, space = controller.directory, controller.space
    logger.info("sweep %s: %d trials, %d at once", directory, controller.num_trials, room.concurrency)
    status: Status = "FAILED"
    try:
        outcome = _run_trials(controller, room, tracking_uri)
        rows, best = write_results(directory, list(controller.trials.values()), space)
        if tracker is not None:
            tell_mlflow(tracker, controller, rows, best)
        status = "KILLED" if outcome == "interrupted" else "FINISHED"
    finally:
        if tracker is not None:
            with nullcontext() if controller.write_error is None else suppress(OSError):  # One says it.
                tracker.finish(status)
    return SweepSummary(directory, space, outcome, rows, None if best is None else best.name)


def _run_trials(controller: SweepController, room: TrialResources, tracking_uri: str) -> Outcome:
    interrupted, max_seconds = threading.Event(), controller.options.max_seconds or threading.TIMEOUT_MAX

    def stop() -> None:
        interrupted.set()
        controller.stop()

    timer = threading.Timer(min(max_seconds, threading.TIMEOUT_MAX), controller.stop)
    timer.daemon = True
    with signals.stop_on_signals(stop):
        timer.start()
        if not controller.is_complete:
            signals.in_thread(lambda: ray_tune.run_trials(controller, room, tracking_uri))
        timer.cancel()
    if controller.all_ended():
        return "complete"
    return "interrupted" if interrupted.is_set() else "out of time"


def _open_tracker(
    directory: Path, tracking_uri: str, settings: config.Config, space: Space, options: SweepOptions
) -> Tracker:
    """The parent of the trials' runs."""
    varied = {f"space.{each.path}": f"{each.kind} {list(each.values)}" for each in space.dimensions}
    asked = {f"sweep.{name}": value for name, value in asdict(options).items()}
    return Tracker.open(
        directory,
        uri=tracking_uri,
        experiment=settings.tracking.experiment,
        run_name=directory.name,
        params=settings.flat() | varied | asked,
        tags={"kind": "sweep"},
    )
