"""Ray Tune runs the trials: processes, resources, retries. What to run and what to stop, the controller says."""

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

# Read by Tune in this process.
ENVIRONMENT = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # CSV, JSON and TensorBoard files of what the runs' directories hold.
    "TUNE_GLOBAL_CHECKPOINT_S": "86400",  # Tune's snapshots: a sweep goes on from the trials' directories, see below.
    "TUNE_WARN_INSUFFICENT_RESOURCE_THRESHOLD_S": "3600",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",  # Paths in the settings may be relative.
    "RAY_AIR_NEW_OUTPUT": "0",
}


def run_trials(controller: SweepController, room: TrialResources, tracking_uri: str) -> None:
    """Run trials until the controller has no more.

    Tune's own restoring is not used: its snapshots lag behind by seconds, so that trials that had begun since would begin again.
    Trials end by themselves, also those that a scheduler stops: Tune would end a process in the middle of a write, and leave
    the placement group of a group of workers behind (ray-project/ray#54305).

    Raises:
        OSError, ValueError: if a new trial cannot be prepared, or what becomes of one cannot be written.
    """
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    # It warns of what is meant to be so (no metric, no snapshots), and shows tracebacks of what the controller tells of.
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)
    storage = controller.directory / ".tune"
    shutil.rmtree(storage, ignore_errors=True)
    tuner = ray.tune.Tuner(
        ray.tune.with_resources(train_trial, _resources(controller, room)),
        tune_config=ray.tune.TuneConfig(
            search_alg=SweepSearcher(controller, {"tracking_uri": tracking_uri, "use_gpu": room.gpus > 0}),
            scheduler=SweepScheduler(controller),
            num_samples=-1,
            max_concurrent_trials=room.concurrency,
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
            f"{controller.directory} cannot be written ({controller.write_error}); what is done is kept: mend it, and the same "
            "command with run.resume=auto continues"
        )
        raise OSError(msg) from controller.write_error


def _resources(controller: SweepController, room: TrialResources) -> dict[str, float]:
    """What Tune reserves. A group's workers reserve their own; Tune refuses a trial that takes nothing."""
    alone = controller.settings.scaling.num_workers == 0
    return {"cpu": room.cpus, "gpu": room.gpus} if alone else {"cpu": 0.01}


class QuietReporter(TrialProgressCallback):
    """Prints nothing: the controller logs what becomes of trials. Tune adds a reporter that prints if it finds none."""

    def on_trial_result(self, *args: Any, **info: Any) -> None:
        """Ignore the event."""

    on_trial_error = on_trial_complete = on_trial_result


class SweepSearcher(Searcher):
    """The controller as Tune's search algorithm."""

    def __init__(self, controller: SweepController, payload: dict[str, Any]) -> None:
        super().__init__()
        self._controller, self._payload = controller, payload
        self._numbers: dict[str, int] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {}  # Tune writes itself to the disk at the start; nothing is read back.

    def suggest(self, trial_id: str) -> Any:
        """What `train_trial` is given."""
        trial = self._controller.next_trial()
        if trial is None:
            return Searcher.FINISHED
        self._numbers[trial_id] = trial.number
        return {"sweep": str(self._controller.directory), "number": trial.number, **self._payload}

    def on_trial_complete(self, trial_id: str, result: Any = None, error: bool = False) -> None:
        """A trial has ended."""
        del result
        self._controller.ended(self._numbers[trial_id], crashed=error)

    def save(self, checkpoint_path: str) -> None:
        """Nothing: there is no state beside the directories."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing."""


class SweepScheduler(FIFOScheduler):
    """The controller as Tune's scheduler. Tune goes on with every trial: those that are to end do so by themselves."""

    def __init__(self, controller: SweepController) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._controller = controller

    def __getstate__(self) -> dict[str, Any]:
        return {}

    def on_trial_result(self, tune_controller: Any, trial: TuneTrial, result: dict[str, Any]) -> str:
        """Have a score judged."""
        score = Score(result["step"], result["share"], result["seconds"], result["score"])
        self._controller.judge(trial.config["number"], score)
        return str(super().on_trial_result(tune_controller, trial, result))
