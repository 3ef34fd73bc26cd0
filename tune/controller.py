"""The sweep controller, without Ray: which trial runs next, what a trial that reports does next, how each trial ended."""

import json
import logging
import math
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from crmuons import config
from crmuons.runs.location import RunStorage
from crmuons.storage import atomic, records
from crmuons.training.parent import RunInputs, set_up_run_and_parent
from tune import exploit, search, trials
from tune.options import SweepOptions
from tune.schedulers import Continue, Exploit, Stop
from tune.space import Space
from tune.trials import STOP_FILE, Score, Trial

logger = logging.getLogger(__name__)


class SharedInputs:
    """Set up the inputs of trials, once for all trials that agree in data, parent, kind of model and validation events.

    Args:
        storage: where train.init_from finds a run's name; None: where the trials are.
    """

    def __init__(self, storage: RunStorage | None = None) -> None:
        self._storage = storage
        self._inputs: dict[str, RunInputs] = {}

    def __call__(self, settings: config.Config) -> RunInputs:
        """Return the inputs of a trial with these settings; raise what `set_up_run_and_parent` raises."""
        train = settings.train
        shared: list[Any] = [settings.data.model_dump(mode="json"), settings.model.kind, train.validation_events]
        if train.init_from is not None:
            shared += [train.init_from, train.refit_features, settings.model.model_dump(mode="json")]
        key = json.dumps(shared, sort_keys=True)
        if key not in self._inputs:
            self._inputs[key] = set_up_run_and_parent(settings, self._storage or RunStorage.of(settings))
        return self._inputs[key]


class SweepController:
    """Propose trials and act on the scheduler's decisions.

    All its knowledge is in the trials' directories, so a new controller can continue a sweep that was killed.

    Args:
        directory: directory of the sweep.
        settings: settings of every trial, with scaling and tracking, but without the values of the space.
        space: the settings that vary.
        options: options of the sweep.
        inputs_of: function that returns the inputs of a trial with some settings, such as `SharedInputs`.
    """

    def __init__(
        self,
        directory: Path,
        settings: config.Config,
        space: Space,
        options: SweepOptions,
        inputs_of: Callable[[config.Config], RunInputs],
    ) -> None:
        self.directory, self.settings, self.space, self.options = directory, settings, space, options
        self.num_trials = options.num_trials(space)
        self.trials = {trial.number: trial for trial in trials.load_trials(directory)}
        self.scheduler = options.make_scheduler(space)
        self.resumed: set[int] = set()  # Trials that ran under this controller.
        self.write_error: OSError | None = None  # Why the sweep's directory could not be written.
        self._inputs_of = inputs_of
        self._running: set[int] = set()
        self._waiting = [trial for trial in self.trials.values() if not trial.is_over()]
        self._lock, self._stopping = threading.Lock(), False
        (directory / STOP_FILE).unlink(missing_ok=True)
        self._replay_scores()

    @property
    def is_complete(self) -> bool:
        """Whether no trial is left to run."""
        return not self._waiting and len(self.trials) >= self.num_trials

    def all_ended(self) -> bool:
        """Return whether each trial of the sweep has ended. A failed trial counts, although it may run again."""
        return len(self.trials) >= self.num_trials and all(t.state() != "unfinished" for t in self.trials.values())

    def next_trial(self) -> Trial | None:
        """Prepare the directory of the next trial, an interrupted or a new one; return None if no trial is left."""
        with self._lock:
            if self._stopping or self.is_complete:
                return None
            trial = self._resume(self._waiting.pop(0)) if self._waiting else self._new()
            for stale in (trial.run.stop_request, trial.run.failure):
                stale.unlink(missing_ok=True)
            self._running.add(trial.number)
            self.resumed.add(trial.number)
        return trial

    def on_score(self, number: int, score: Score) -> None:
        """Ask the scheduler for a decision, and write it where the trial's process looks for it."""
        trial = self.trials[number]
        decision = self.scheduler.decide(number, score.share, _inf_if_not_finite(score.score))
        with self._keeping_write_error():
            match decision:
                case Stop(reason) if score.share < 1:
                    atomic.write_json(trial.stopped, {"reason": reason, **asdict(score)})
                    trial.run.stop_request.touch()
                case Exploit(donor):
                    self._request_exploit(trial, self.trials[donor])
                case _:
                    assert isinstance(decision, Continue | Stop)

    def on_end(self, number: int, *, crashed: bool) -> None:
        """Record that a trial's process has ended.

        Args:
            number: number of the trial.
            crashed: whether the process died more than run.max_failures times.
        """
        trial = self.trials[number]
        self._running.discard(number)
        if crashed and not trial.is_over():
            reason = f"its process died more than run.max_failures = {self.settings.run.max_failures} times"
            with self._keeping_write_error():
                atomic.write_json(trial.run.failure, {"error": reason, "kind": "died"})
        score = trial.best_score()
        score_text = "no score" if score is None else f"score {score:.4f}"
        reason = f" ({trial.reason()})" if trial.reason() else ""
        logger.info("%s %s, %s%s: %s", trial.name, trial.state(), score_text, reason, _describe(trial, self.space))

    def stop(self) -> None:
        """Ask all trials to save and end, and start no other trial."""
        with self._lock:
            self._stopping = True
            (self.directory / STOP_FILE).touch()
            for number in self._running:
                self.trials[number].run.stop_request.touch()

    @contextmanager
    def _keeping_write_error(self) -> Iterator[None]:
        """Keep an error of the block and start no other trial. Tune calls the block, and an error would end Tune."""
        try:
            yield
        except OSError as error:
            self.write_error, self._stopping = error, True

    def _new(self) -> Trial:
        number = len(self.trials)
        observations = [trial.observation(self.space) for trial in self.trials.values()]
        values = search.propose(self.options.search, self.space, self.options.seed, number, observations)
        trial = Trial.at(self.directory, number)
        of_run = {"run.name": trial.name, "run.storage_path": str(self.directory), "run.resume": "auto"}
        settings = config.changed(self.settings, values | of_run)
        trial.run.create(settings, *self._inputs_of(settings))
        self.trials[number] = trial
        return trial

    def _resume(self, trial: Trial) -> Trial:
        """Write the scaling and tracking of this command into the settings of an interrupted trial, and return it."""
        stored = records.read(trial.run.directory / "config.json")
        current = self.settings.model_dump(mode="json")
        changes = {"scaling": current["scaling"], "tracking": current["tracking"]}
        atomic.write_json(trial.run.directory / "config.json", stored | changes)
        return trial

    def _request_exploit(self, trial: Trial, donor: Trial) -> None:
        if not exploit.can_be_donor(donor.run, self.settings.train):
            return
        random = search.random_of(self.options.seed, trial.number, len(trial.scores()))
        values = self.space.perturb(donor.values(self.space), random)
        settings = config.changed(trial.settings(), values)
        request = {"donor": str(donor.run.directory), "settings": settings.model_dump(mode="json")}
        atomic.write_json(trial.exploit_request, request)
        trial.run.stop_request.touch()
        logger.info("%s exploits %s: %s", trial.name, donor.name, values)

    def _replay_scores(self) -> None:
        """Report all scores on disk to the new scheduler. Earlier decisions are in the trials' directories already."""
        for number, trial in self.trials.items():
            for score in trial.scores():
                self.scheduler.decide(number, score.share, _inf_if_not_finite(score.score))


def _inf_if_not_finite(score: float) -> float:
    return score if math.isfinite(score) else math.inf


def _describe(trial: Trial, space: Space) -> str:
    return ", ".join(f"{path.rpartition('.')[2]}={format_value(value)}" for path, value in trial.values(space).items())


def format_value(value: object) -> str:
    """Return a setting's value as short text."""
    return f"{value:.3g}" if isinstance(value, float) else str(value)
