"""Run the trials on Ray Tune, which manages processes, resources and retries. The controller decides what runs.

Tune's own searchers, schedulers and `Tuner.restore` are not used: after a kill they continue from a snapshot that is
seconds old, lose the trials that began since, and forget decisions (measured with Ray 2.60, docs/sweeps.md). The test of
the property that they lack is tests/integration/ray/test_sweep.py,
test_a_killed_sweep_is_continued_without_repeating_anything_and_its_best_preset_reproduces_the_score.
"""

import logging
import os
import shutil
from typing import Any

import ray.tune
from ray.tune.experiment import Trial as TuneTrial
from ray.tune.progress_reporter import TrialProgressCallback
from ray.tune.schedulers import FIFOScheduler
from ray.tune.search import Searcher

from tune.controller import SweepController
from tune.options import TrialResources
from tune.trainable import train_trial
from tune.trials import Score

# Tune reads these in this process.
ENVIRONMENT = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # CSV, JSON and TensorBoard files would repeat the runs' own files.
    "TUNE_GLOBAL_CHECKPOINT_S": "86400",  # No snapshots: a sweep continues from the trials' directories.
    "TUNE_WARN_INSUFFICENT_RESOURCE_THRESHOLD_S": "3600",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",  # Paths in the settings may be relative.
    "RAY_AIR_NEW_OUTPUT": "0",  # The new output prints a table even with verbose=0.
}


def run_trials(controller: SweepController, resources: TrialResources, tracking_uri: str) -> None:
    """Run trials until the controller has none left.

    All trials end by themselves, even if the scheduler stops them. Tune would end a process in the middle of a write,
    and would leave the placement group of a group of workers behind (ray-project/ray#54305).

    Raises:
        OSError, ValueError: if a new trial cannot be prepared, or a trial's state cannot be written.
    """
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    # Tune warns about intended choices (no metric, no snapshots), and logs tracebacks of errors that the controller
    # logs.
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)
    storage = controller.directory / ".tune"
    shutil.rmtree(storage, ignore_errors=True)
    tuner = ray.tune.Tuner(
        ray.tune.with_resources(train_trial, _reserved(controller, resources)),
        tune_config=ray.tune.TuneConfig(
            search_alg=SweepSearcher(controller, {"tracking_uri": tracking_uri, "use_gpu": resources.gpus > 0}),
            scheduler=SweepScheduler(controller),
            num_samples=-1,
            max_concurrent_trials=resources.concurrency,
            reuse_actors=True,  # A process starts in 4 to 6 s.
            trial_dirname_creator=lambda trial: str(trial.trial_id),
        ),
        run_config=ray.tune.RunConfig(
            name="trials",
            storage_path=str(storage),
            verbose=0,
            callbacks=[QuietReporter()],
            failure_config=ray.tune.FailureConfig(max_failures=controller.settings.run.max_failures),
        ),
    )
    tuner.fit()
    shutil.rmtree(storage, ignore_errors=True)
    if controller.write_error is not None:
        msg = (
            f"{controller.directory} cannot be written ({controller.write_error}); finished work is kept: repair it, and the "
            "same command with run.resume=auto continues"
        )
        raise OSError(msg) from controller.write_error


def _reserved(controller: SweepController, resources: TrialResources) -> dict[str, float]:
    """Return what Tune reserves for a trial.

    The workers of a group reserve their own resources, but Tune refuses a trial without resources.
    """
    trains_itself = controller.settings.scaling.num_workers == 0
    return {"cpu": resources.cpus, "gpu": resources.gpus} if trains_itself else {"cpu": 0.01}


class QuietReporter(TrialProgressCallback):
    """Print nothing, because the controller logs the trials. Without this reporter, Tune adds one that prints."""

    def on_trial_result(self, *args: Any, **info: Any) -> None:
        """Ignore the event."""

    on_trial_error = on_trial_complete = on_trial_result


class SweepSearcher(Searcher):
    """Present the controller to Tune as a search algorithm."""

    def __init__(self, controller: SweepController, payload: dict[str, Any]) -> None:
        super().__init__()
        self._controller, self._payload = controller, payload
        self._numbers: dict[str, int] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {}  # Tune pickles its searcher at the start; nothing reads it.

    def suggest(self, trial_id: str) -> Any:
        """Return the payload of `train_trial`, or FINISHED if no trial is left."""
        trial = self._controller.next_trial()
        if trial is None:
            return Searcher.FINISHED
        self._numbers[trial_id] = trial.number
        return {"sweep": str(self._controller.directory), "number": trial.number, **self._payload}

    def on_trial_complete(self, trial_id: str, result: Any = None, error: bool = False) -> None:
        """Tell the controller that a trial has ended."""
        del result
        self._controller.on_end(self._numbers[trial_id], crashed=error)

    def save(self, checkpoint_path: str) -> None:
        """Do nothing: the trials' directories hold all state."""

    def restore(self, checkpoint_path: str) -> None:
        """Do nothing."""


class SweepScheduler(FIFOScheduler):
    """Present the controller to Tune as a scheduler. It never stops a trial: a trial that must stop ends by itself."""

    def __init__(self, controller: SweepController) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._controller = controller

    def __getstate__(self) -> dict[str, Any]:
        return {}

    def on_trial_result(self, tune_controller: Any, trial: TuneTrial, result: dict[str, Any]) -> str:
        """Pass a score to the controller."""
        score = Score(result["step"], result["share"], result["seconds"], result["score"])
        self._controller.on_score(trial.config["number"], score)
        return str(super().on_trial_result(tune_controller, trial, result))
