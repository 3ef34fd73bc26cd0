"""Run a sweep: check its request, set up the data once, run the trials, and write the results."""

import logging
import threading
from contextlib import nullcontext, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import ray

from crmuons import config
from crmuons.evaluation.metrics import distances
from crmuons.ray_backend import cluster, preflight
from crmuons.ray_backend.scaling import check_cluster_fit
from crmuons.runs.location import RunStorage
from crmuons.runs.owned import REMEDY
from crmuons.storage import atomic, ownership
from crmuons.storage.files import File
from crmuons.tracking.health import usable_uri
from crmuons.tracking.interface import Status
from crmuons.tracking.tracker import Tracker
from crmuons.tracking.uri import default_uri
from crmuons.training import signals, tensorboard
from crmuons.training.setup import refuse_credentials
from tune import ray_tune, results, trials
from tune.controller import SharedInputs, SweepController
from tune.directory import SWEEP_FILE, define, find_sweep
from tune.options import SweepOptions, TrialResources
from tune.outcome import log_to_mlflow, write_results
from tune.recorded import check_same_data
from tune.space import Space

logger = logging.getLogger(__name__)

Outcome = Literal["complete", "out of time", "interrupted"]


@dataclass(frozen=True)
class SweepSummary:
    """The summary of a sweep that this command ran.

    Attributes:
        directory: directory of the sweep.
        space: the settings that varied.
        outcome: "out of time" if max_seconds ended it. A sweep that is not complete can be continued.
        rows: rows of the table, the best trial first.
        best: name of the best finished trial; None if no trial finished with a score.
    """

    directory: Path
    space: Space
    outcome: Outcome
    rows: list[results.Row]
    best: str | None

    def describe(self) -> str:
        """Return the table, and where to find the results, as text."""
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
    """Run a sweep, or the rest of it if an earlier command began it.

    Args:
        settings: settings of every trial, except what the space varies; run.name and run.resume belong to the sweep.
        space: the settings that vary.
        options: options of the sweep.

    Raises:
        FileNotFoundError, ValueError: if the data, the space or an option is wrong; nothing was started in this case.
        HeldError: if another process runs this sweep.
    """
    refuse_credentials(settings)
    tensorboard.check_installed(settings)
    space.check(settings)
    options.check(space, settings)
    definition = define(settings, space, options)
    storage = RunStorage.of(settings)
    with ownership.hold(find_sweep(settings, storage, definition), remedy=REMEDY, private=True):
        return _run_owned(settings, space, options, storage, definition)


def _run_owned(
    settings: config.Config, space: Space, options: SweepOptions, storage: RunStorage, definition: dict[str, Any]
) -> SweepSummary:
    # Find it again, because another process may have begun or ended the sweep before this one held it.
    directory = find_sweep(settings, storage, definition)
    beside = storage.directory.parent  # The same place as for a single run.
    tracking_uri = usable_uri(beside) if settings.tracking.enabled else default_uri(beside)
    inputs = SharedInputs(storage)
    begun = trials.load_trials(directory)
    trials_left = len(begun) < options.num_trials(space)
    data = _checked_data(inputs, settings) if trials_left else []  # Errors are raised before a cluster starts.
    if begun and (trials_left or not all(trial.is_over() for trial in begun)):
        check_same_data(begun[0])
    # With groups of workers, Ray Train asks the dashboard's State API whether a trial's controller is alive, and frees
    # the CPUs of its workers if it is not.
    with cluster.cluster(dashboard=settings.scaling.num_workers > 1):
        resources = preflight.check_cluster(
            storage,
            tracking_uri if settings.tracking.enabled else None,
            data,
            lambda: _resources(options, settings.scaling, options.num_trials(space)),
        )
        atomic.write_json(directory / SWEEP_FILE, definition)
        settings = config.changed(settings, resources.scaling(settings.scaling))
        tracker = (
            _open_tracker(directory, tracking_uri, settings, space, options) if settings.tracking.enabled else None
        )
        settings = config.changed(settings, {"tracking.parent": "" if tracker is None else tracker.identity})
        return _run(SweepController(directory, settings, space, options, inputs), resources, tracker, tracking_uri)


def _checked_data(inputs: SharedInputs, settings: config.Config) -> list[File]:
    """Return the training files of all trials; raise ValueError if their validation events cannot score a model."""
    data, _, validation, _ = inputs(settings)
    if missing := distances.unscored(validation):
        msg = (
            f"a sweep compares scores, and the {len(validation.counts)} validation events give none "
            f"({distances.describe_missing(missing)}); give more in data.validation, or set data.validation_share or "
            "train.validation_events higher"
        )
        raise ValueError(msg)
    return data


def _resources(options: SweepOptions, scaling: config.Scaling, num_trials: int) -> TrialResources:
    """Return the resources of trials; check that one trial fits on the nodes, or a whole population at once."""
    resources = TrialResources.of(options, scaling, ray.cluster_resources(), num_trials)
    workers = max(1, scaling.num_workers)
    number = resources.concurrency if options.scheduler == "pbt" else 1
    what = "trials" if workers == 1 else "workers of trials"
    check_cluster_fit(what, number * workers, {"CPU": resources.cpus / workers, "GPU": resources.gpus / workers})
    return resources


def _run(
    controller: SweepController, resources: TrialResources, tracker: Tracker | None, tracking_uri: str
) -> SweepSummary:
    directory, space = controller.directory, controller.space
    logger.info("sweep %s: %d trials, %d at once", directory, controller.num_trials, resources.concurrency)
    status: Status = "FAILED"
    try:
        outcome = _run_trials(controller, resources, tracking_uri)
        rows, best = write_results(directory, list(controller.trials.values()), space)
        if tracker is not None:
            log_to_mlflow(tracker, controller, rows, best)
        status = "KILLED" if outcome == "interrupted" else "FINISHED"
    finally:
        if tracker is not None:
            with nullcontext() if controller.write_error is None else suppress(OSError):  # One error is enough.
                tracker.finish(status)
    return SweepSummary(directory, space, outcome, rows, None if best is None else best.name)


def _run_trials(controller: SweepController, resources: TrialResources, tracking_uri: str) -> Outcome:
    interrupted, max_seconds = threading.Event(), controller.options.max_seconds or threading.TIMEOUT_MAX

    def stop() -> None:
        interrupted.set()
        controller.stop()

    timer = threading.Timer(min(max_seconds, threading.TIMEOUT_MAX), controller.stop)
    timer.daemon = True
    with signals.stop_on_signals(stop):
        timer.start()
        if not controller.is_complete:
            signals.in_thread(lambda: ray_tune.run_trials(controller, resources, tracking_uri))
        timer.cancel()
    if controller.all_ended():
        return "complete"
    return "interrupted" if interrupted.is_set() else "out of time"


def _open_tracker(
    directory: Path, tracking_uri: str, settings: config.Config, space: Space, options: SweepOptions
) -> Tracker:
    """Open the sweep's run in MLflow, which is the parent of the trials' runs."""
    varied = {f"space.{each.path}": f"{each.kind} {list(each.values)}" for each in space.dimensions}
    of_sweep = {f"sweep.{name}": value for name, value in asdict(options).items()}
    return Tracker.open(
        directory,
        uri=tracking_uri,
        experiment=settings.tracking.experiment,
        run_name=directory.name,
        params=settings.flat() | varied | of_sweep,
        tags={"kind": "sweep"},
    )
