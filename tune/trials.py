"""The trials of a sweep: ordinary runs in directories of their own, and what these say of them.

A trial's directory is all there is to know about it. Beside a run's own files it may hold `stopped.json`, by which the scheduler
ended it, and `takeover.json`, the trial whose state it is to go on from.
"""

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from crmuons import config
from crmuons.runs.directory import Run
from crmuons.training.trainer import NonFiniteError
from tune.search import Observation
from tune.space import SettingValues, Space

State = Literal["finished", "stopped", "diverged", "failed", "unfinished"]
STOPPED_FILE, TAKEOVER_FILE = "stopped.json", "takeover.json"
STOP_FILE = "stop"  # Of the sweep: its presence asks all trials to end.


@dataclass(frozen=True)
class Score:
    """A validation.

    Attributes:
        step: steps done.
        share: of the run.
        seconds: of training, up to the last log line.
        score: mean W1/sigma of the model (docs/metrics.md).
    """

    step: int
    share: float
    seconds: float
    score: float


@dataclass(frozen=True)
class Trial:
    """One trial: its number in the sweep, and its run."""

    number: int
    run: Run

    @classmethod
    def at(cls, sweep: Path, number: int) -> "Trial":
        """The trial with a number in a sweep's directory."""
        return cls(number, Run(sweep / f"trial-{number:04d}"))

    @property
    def name(self) -> str:
        return self.run.directory.name

    @property
    def stopped(self) -> Path:
        """Present where the scheduler has ended the trial."""
        return self.run.directory / STOPPED_FILE

    @property
    def takeover(self) -> Path:
        """Present until the trial has taken over another one's state."""
        return self.run.directory / TAKEOVER_FILE

    def settings(self) -> config.Config:
        """The run's settings."""
        return config.from_stored(json.loads((self.run.directory / "config.json").read_text()))

    def state(self) -> State:
        """What has become of it."""
        if self.run.done.is_file():
            return "finished"
        if self.stopped.is_file():
            return "stopped"
        if self.run.failure.is_file():
            return "diverged" if _read(self.run.failure).get("kind") == NonFiniteError.__name__ else "failed"
        return "unfinished"

    def reason(self) -> str:
        """Why it did not finish; empty where it did, or still can."""
        match self.state():
            case "stopped":
                return str(_read(self.stopped)["reason"])
            case "diverged" | "failed":
                return str(_read(self.run.failure)["error"])
        return ""

    def is_over(self) -> bool:
        """Whether trying again is of no use. A failure other than divergence (a full disk, say) may be mended."""
        return self.state() in ("finished", "stopped", "diverged")

    def scores(self) -> list[Score]:
        """Its validations, in order."""
        return list(scores(self.run, self.settings().train))

    def best_score(self) -> float | None:
        """The score of the selected model; None before the first finite one."""
        return min((each.score for each in self.scores() if math.isfinite(each.score)), default=None)

    def tried(self, space: Space) -> Observation:
        """What the search learns from it; an unfinished trial's score is not known yet."""
        state = self.state()
        score = {"diverged": math.inf, "unfinished": None, "failed": None}.get(state, self.best_score())
        return Observation(space.values_of(self.settings()), score)

    def values(self, space: Space) -> SettingValues:
        """Its settings in the dimensions of the space."""
        return space.values_of(self.settings())


def load(sweep: Path) -> list[Trial]:
    """The trials of a sweep's directory by their numbers, those that were prepared whole."""
    trials = (Trial(int(path.name.removeprefix("trial-")), Run(path)) for path in sweep.glob("trial-[0-9]*"))
    return sorted((trial for trial in trials if trial.run.has_started()), key=lambda trial: trial.number)


def scores(run: Run, train: config.Train) -> Iterator[Score]:
    """A run's validations, from its metrics file; a line that is being written is left out."""
    if not run.metrics.is_file():
        return
    seconds = 0.0
    for line in run.metrics.read_text().rpartition("\n")[0].splitlines():
        metrics = json.loads(line)
        seconds = metrics.get("progress/seconds", seconds)
        if "validation/score" in metrics:
            step = int(metrics["step"])
            yield Score(step, train.share_done(step, seconds), seconds, metrics["validation/score"])


def _read(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(path.read_text())
    return content
