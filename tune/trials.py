"""The trials of a sweep: ordinary runs, each in its own directory, and the content of these directories.

A trial has no state outside its directory. In addition to the files of a run, it may hold `stopped.json`, the reason
why the scheduler ended the trial, and `takeover.json`, a request to exploit another trial.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from crmuons import config
from crmuons.runs.directory import METRICS_REMEDY, Run
from crmuons.storage import records
from crmuons.training.trainer import NonFiniteError
from tune.search import Observation
from tune.space import SettingValues, Space

State = Literal["finished", "stopped", "diverged", "failed", "unfinished"]
STOPPED_FILE, EXPLOIT_FILE = "stopped.json", "takeover.json"
FILE_REMEDY = "remove the file to let the trial run again"
STOP_FILE = "stop"  # In the sweep's directory: while it exists, all trials end.


@dataclass(frozen=True)
class Score:
    """A validation of a trial.

    Attributes:
        step: steps done.
        share: part of the run that is done, from 0 to 1.
        seconds: seconds of training, up to the last log line.
        score: mean W1/sigma of the model (docs/metrics.md); lower is better.
    """

    step: int
    share: float
    seconds: float
    score: float


@dataclass(frozen=True)
class Trial:
    """A trial: its number in the sweep, and its run."""

    number: int
    run: Run

    @classmethod
    def at(cls, sweep: Path, number: int) -> "Trial":
        """Return the trial with this number in a sweep's directory."""
        return cls(number, Run(sweep / f"trial-{number:04d}"))

    @property
    def name(self) -> str:
        return self.run.directory.name

    @property
    def stopped(self) -> Path:
        """The file that exists if the scheduler ended the trial."""
        return self.run.directory / STOPPED_FILE

    @property
    def exploit_request(self) -> Path:
        """The file that exists until the trial has copied the donor's state."""
        return self.run.directory / EXPLOIT_FILE

    def settings(self) -> config.Config:
        """Read the run's settings."""
        return self.run.stored_settings()

    def state(self) -> State:
        """Return the state that the files of the trial show."""
        if self.run.done.is_file():
            return "finished"
        if self.stopped.is_file():
            return "stopped"
        if self.run.failure.is_file():
            return (
                "diverged"
                if records.read(self.run.failure, remedy=FILE_REMEDY).get("kind") == NonFiniteError.__name__
                else "failed"
            )
        return "unfinished"

    def reason(self) -> str:
        """Return why the trial ended early; empty if it finished or is unfinished."""
        match self.state():
            case "stopped":
                return str(records.read(self.stopped, keys=("reason",), remedy=FILE_REMEDY)["reason"])
            case "diverged" | "failed":
                return self.run.reason_of_failure()
        return ""

    def is_over(self) -> bool:
        """Return whether the trial never runs again. A failed trial does, because a full disk may have been freed."""
        return self.state() in ("finished", "stopped", "diverged")

    def scores(self) -> list[Score]:
        """Return the trial's validations, in order."""
        return list(scores(self.run, self.settings().train))

    def best_score(self) -> float | None:
        """Return the score of the selected model; None before the first finite score."""
        return min((each.score for each in self.scores() if math.isfinite(each.score)), default=None)

    def observation(self, space: Space) -> Observation:
        """Return what the search learns from the trial. An unfinished or failed trial has no score yet."""
        state = self.state()
        score = {"diverged": math.inf, "unfinished": None, "failed": None}.get(state, self.best_score())
        return Observation(space.values_of(self.settings()), score)

    def values(self, space: Space) -> SettingValues:
        """Return the trial's settings in the dimensions of the space."""
        return space.values_of(self.settings())


def load_trials(sweep: Path) -> list[Trial]:
    """Return the trials of a sweep's directory by number. Leave out trials whose preparation was interrupted."""
    trials = (Trial(int(path.name.removeprefix("trial-")), Run(path)) for path in sweep.glob("trial-[0-9]*"))
    return sorted((trial for trial in trials if trial.run.has_started()), key=lambda trial: trial.number)


def scores(run: Run, train: config.Train) -> Iterator[Score]:
    """Yield a run's validations from its metrics file. A last line without a newline is still being written: skip it."""
    if not run.metrics.is_file():
        return
    seconds = epochs = 0.0
    for metrics in records.read_lines(run.metrics, keys=("step",), remedy=METRICS_REMEDY):
        seconds, epochs = metrics.get("progress/seconds", seconds), metrics.get("progress/epochs", epochs)
        if "validation/score" in metrics:
            step = int(metrics["step"])
            yield Score(step, train.share_done(step, seconds, epochs), seconds, metrics["validation/score"])
