"""The course of a sweep without Ray: which trial is next, what becomes of one that reports, and how all of them end."""

import json
import logging
import math
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

from crmuons import config
from crmuons.data.events import EventArrays
from crmuons.models.features import Features
from crmuons.storage import atomic
from crmuons.storage.files import File
from crmuons.training.setup import set_up_run
from tune import exploit, search, trials
from tune.options import SweepOptions
from tune.schedulers import Continue, Exploit, Stop
from tune.space import Space
from tune.trials import STOP_FILE, Score, Trial

logger = logging.getLogger(__name__)

RunInputs = tuple[list[File], Features, EventArrays]  # What a run starts from; see preparation.prepare.


class SharedInputs:
    """What trials start from, made once for all that agree in what it is made from: data, kind of features, validation."""

    def __init__(self) -> None:
        self._made: dict[str, RunInputs] = {}

    def __call__(self, settings: config.Config) -> RunInputs:
        """The origin of a trial with these settings; raises what `preparation.prepare` does."""
        what = [settings.data.model_dump(mode="json"), settings.model.kind, settings.train.validation_events]
        key = json.dumps(what, sort_keys=True)
        if key not in self._made:
            self._made[key] = set_up_run(settings)
        return self._made[key]


class SweepController:
    """Proposes trials and judges them. All it knows is in the trials' directories, so that a killed sweep goes on.

    Args:
        directory: of the sweep.
        settings: of every trial but for the space's values, scaling and tracking included.
        space: what varies.
        options: how.
        origin_of: gives what a trial with some settings starts from, such as `Origins`.
    """

    def __init__(
        self,
        directory: Path,
        settings: config.Config,
        space: Space,
        options: SweepOptions,
        origin_of: Callable[[config.Config], RunInputs],
    ) -> None:
        self.directory, self.settings, self.space, self.options = directory, settings, space, options
        self.num_trials = options.num_trials(space)
        self.trials = {trial.number: trial for trial in trials.load(directory)}
        self.scheduler = options.make_scheduler(space)
        self.resumed: set[int] = set()  # Trials that ran under this controller.
        self.write_error: OSError | None = None  # Why the sweep's directory could not be written.
        self._origin_of = origin_of
        self._live: set[int] = set()
        self._waiting = [trial for trial in self.trials.values() if not trial.is_over()]
        self._guard, self._ending = threading.Lock(), False
        (directory / STOP_FILE).unlink(missing_ok=True)
        self._remember()

    @property
    def is_complete(self) -> bool:
        """Whether no trial is left to run."""
        return not self._waiting and len(self.trials) >= self.num_trials

    def all_ended(self) -> bool:
        """Whether each trial of the sweep has come to an end, also to a failure that might be mended."""
        return len(self.trials) >= self.num_trials and all(t.state() != "unfinished" for t in self.trials.values())

    def next_trial(self) -> Trial | None:
        """A trial to run, prepared in its directory: one that was interrupted, or a new one; None where there is none."""
        with self._guard:
            if self._ending or self.is_complete:
                return None
            trial = self._continued(self._waiting.pop(0)) if self._waiting else self._new()
            for left_over in (trial.run.stop_request, trial.run.failure):
                left_over.unlink(missing_ok=True)
            self._live.add(trial.number)
            self.resumed.add(trial.number)
        return trial

    def judge(self, number: int, score: Score) -> None:
        """Have the scheduler decide; what it decides is written where the trial's process looks."""
        trial = self.trials[number]
        decision = self.scheduler.judge(number, score.share, _worst_if_not_finite(score.score))
        with self._noting_trouble():
            match decision:
                case Stop(reason) if score.share < 1:
                    atomic.write_json(trial.stopped, {"reason": reason, **asdict(score)})
                    trial.run.stop_request.touch()
                case Exploit(donor):
                    self._ask_to_take_over(trial, self.trials[donor])
                case _:
                    assert isinstance(decision, Continue | Stop)

    def ended(self, number: int, *, crashed: bool) -> None:
        """A trial's process is done with it, or died more often than is tried again."""
        trial = self.trials[number]
        self._live.discard(number)
        if crashed and not trial.is_over():
            reason = f"its process died more than run.max_failures = {self.settings.run.max_failures} times"
            with self._noting_trouble():
                atomic.write_json(trial.run.failure, {"error": reason, "kind": "died"})
        score = trial.best_score()
        shown = "no score" if score is None else f"score {score:.4f}"
        reason = f" ({trial.reason()})" if trial.reason() else ""
        logger.info("%s %s, %s%s: %s", trial.name, trial.state(), shown, reason, _describe(trial, self.space))

    def stop(self) -> None:
        """Ask all trials to save and end; no other one begins."""
        with self._guard:
            self._ending = True
            (self.directory / STOP_FILE).touch()
            for number in self._live:
                self.trials[number].run.stop_request.touch()

    @contextmanager
    def _noting_trouble(self) -> Iterator[None]:
        """Where nothing can be written any more no other trial begins; Tune, from which this is called, would end in the middle."""
        try:
            yield
        except OSError as error:
            self.write_error, self._ending = error, True

    def _new(self) -> Trial:
        number = len(self.trials)
        tried = [trial.tried(self.space) for trial in self.trials.values()]
        values = search.propose(self.options.search, self.space, self.options.seed, number, tried)
        trial = Trial.at(self.directory, number)
        own = {"run.name": trial.name, "run.storage_path": str(self.directory), "run.resume": "auto"}
        settings = config.changed(self.settings, values | own)
        trial.run.create(settings, *self._origin_of(settings))
        self.trials[number] = trial
        return trial

    def _continued(self, trial: Trial) -> Trial:
        """The trial, with the scaling and the server of today."""
        tree = json.loads((trial.run.directory / "config.json").read_text())
        now = self.settings.model_dump(mode="json")
        atomic.write_json(
            trial.run.directory / "config.json", tree | {"scaling": now["scaling"], "tracking": now["tracking"]}
        )
        return trial

    def _ask_to_take_over(self, trial: Trial, donor: Trial) -> None:
        if not exploit.can_give(donor.run, self.settings.train):
            return
        random = search.random_of(self.options.seed, trial.number, len(trial.scores()))
        values = self.space.perturb(donor.values(self.space), random)
        settings = config.changed(trial.settings(), values)
        asked = {"donor": str(donor.run.directory), "settings": settings.model_dump(mode="json")}
        atomic.write_json(trial.takeover, asked)
        trial.run.stop_request.touch()
        logger.info("%s takes over %s: %s", trial.name, donor.name, values)

    def _remember(self) -> None:
        """Tell the scheduler what it was told before; its decisions of then are in the directories."""
        for number, trial in self.trials.items():
            for each in trial.scores():
                self.scheduler.judge(number, each.share, _worst_if_not_finite(each.score))


def _worst_if_not_finite(score: float) -> float:
    return score if math.isfinite(score) else math.inf


def _describe(trial: Trial, space: Space) -> str:
    return ", ".join(f"{path.rpartition('.')[2]}={shown(value)}" for path, value in trial.values(space).items())


def shown(value: object) -> str:
    """A setting's value for people."""
    return f"{value:.3g}" if isinstance(value, float) else str(value)
