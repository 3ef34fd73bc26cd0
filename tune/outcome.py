"""The end of a sweep: the table, the best preset, the figures, and the final state of every run in MLflow."""

import hashlib
import logging
from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure

from crmuons.tracking.interface import Status
from crmuons.tracking.journal import Journal, num_unsent
from crmuons.tracking.sender import finalize_run
from crmuons.tracking.tracker import Tracker
from tune import plots, results, search
from tune.controller import SweepController
from tune.results import Row
from tune.space import Space
from tune.trials import State, Trial

logger = logging.getLogger(__name__)

STATE_TAG = "sweep.state"

# The status in MLflow of a trial that died before it could set its own.
STATUS: dict[State, Status] = {
    "finished": "FINISHED",
    "stopped": "KILLED",
    "unfinished": "KILLED",
    "diverged": "FAILED",
    "failed": "FAILED",
}


def write_results(directory: Path, trials: Sequence[Trial], space: Space) -> tuple[list[Row], Trial | None]:
    """Write the table, the best preset and the figures into the sweep's directory; return the table and the best trial."""
    rows, best = results.trial_rows(trials, space), results.best_trial(trials)
    if rows:
        results.write_table(directory, rows)
    if best is not None:
        about = f"{best.name} of the sweep {directory.name}, score {best.best_score():.4f}: crmuons train best.toml"
        results.write_preset(directory / "best.toml", best, about)
    for name, figure in _figures(trials, rows, space).items():
        (directory / "figures").mkdir(exist_ok=True)
        figure.savefig(directory / "figures" / f"{name}.png", dpi=150)
    return rows, best


def _figures(trials: Sequence[Trial], rows: Sequence[Row], space: Space) -> dict[str, Figure]:
    if all(row["score"] is None for row in rows):
        return {}
    figures = {"parallel_coordinates": plots.parallel_coordinates(rows, space), "scores": plots.curves(trials)}
    if shares := search.importance(space, [trial.observation(space) for trial in trials]):
        figures["importance"] = plots.plot_importance(shares)
    return figures


def log_to_mlflow(tracker: Tracker, controller: SweepController, rows: Sequence[Row], best: Trial | None) -> None:
    """End every trial's run in MLflow, log the results of the sweep, and register the best model."""
    directory = controller.directory
    tracker.wait_for_run(10)  # Seconds. MLflow shows the trials below the sweep's run.
    unsent = [
        trial.name
        for trial in controller.trials.values()
        if not _finalize(trial, resumed=trial.number in controller.resumed)
    ]
    if unsent:
        logger.warning("MLflow does not have all of %s; send it with: crmuons sync TRIAL_DIRECTORY", ", ".join(unsent))
    for path in sorted([*directory.glob("trials.*"), *directory.glob("best.toml"), *directory.glob("figures/*.png")]):
        tracker.artifact(path, "figures" if path.suffix == ".png" else "")
    states = [row["state"] for row in rows]
    values = {f"sweep/{state}": float(states.count(state)) for state in STATUS}
    if best is not None and (score := best.best_score()) is not None:
        values["sweep/best_score"] = score
        tracker.tags({"best_trial": best.name})
        _register(tracker, controller, best, score)
    # The sum of steps grows with each progress of a trial. A second value at the same step would not replace the first.
    tracker.metrics(values, sum(row["step"] for row in rows))


def _finalize(trial: Trial, *, resumed: bool) -> bool:
    """Send the final state of a trial to MLflow; return False if MLflow does not take it now."""
    directory = trial.run.directory
    if not Journal.exists(directory) or (_is_finalized(directory) and not resumed):
        return True
    tags = {"sweep.trial": str(trial.number), STATE_TAG: trial.state(), "sweep.reason": trial.reason()}
    try:
        finalize_run(directory, STATUS[trial.state()], tags)
    except (ConnectionError, BlockingIOError) as error:
        logger.warning("%s", error)
        return False
    return True


def _is_finalized(directory: Path) -> bool:
    """Return whether MLflow has a trial's data and its state. A sweep that was killed may not have sent the state."""
    journal = Journal(directory)
    has_state = any(STATE_TAG in entry["values"] for _, entry in journal.entries() if entry["kind"] == "tags")
    journal.close()
    return has_state and not num_unsent(directory)


def _register(tracker: Tracker, controller: SweepController, best: Trial, score: float) -> None:
    """Register the best model as a version of the model that has the experiment's name."""
    journal = Journal(best.run.directory)
    journal.close()
    validation = hashlib.sha256((best.run.directory / "validation.parquet").read_bytes()).hexdigest()[:16]
    tags = {"sweep": controller.directory.name, "trial": best.name, "validation": validation}
    tracker.register(journal.identity, controller.settings.tracking.experiment, score=score, tags=tags)
