"""Train a run: find it, set it up, launch its workers and summarise its end.

The workers are started by a launcher. `LocalLauncher` trains in this process and needs no Ray;
`ray_backend.train.RayLauncher` trains on Ray Train workers.
"""

import logging
import shutil
import tempfile
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from pathlib import Path
from typing import Any, Protocol

import torch

from crmuons import config
from crmuons.generation.load import choose_device
from crmuons.runs import checkpoint, remote
from crmuons.runs.directory import Run
from crmuons.runs.location import RunStorage
from crmuons.runs.owned import owned_run
from crmuons.runs.uploads import UploadStatus
from crmuons.storage import files
from crmuons.storage.atomic import FULL, DiskFullError
from crmuons.storage.files import File
from crmuons.storage.output import check_apart
from crmuons.tracking.health import usable_uri
from crmuons.tracking.uri import default_uri
from crmuons.training import tensorboard, worker
from crmuons.training.interface import Outcome
from crmuons.training.parent import set_up_run_and_parent
from crmuons.training.progress_bar import progress_of
from crmuons.training.resume import as_begun, say_changed_settings, with_found_files
from crmuons.training.setup import refuse_credentials
from crmuons.training.signals import stop_on_signals
from crmuons.training.summary import RunSummary
from crmuons.training.trainer import NonFiniteError

logger = logging.getLogger(__name__)


class RunFailedError(RuntimeError):
    """The run stopped; the message says why and what to do."""


class Launcher(Protocol):
    """Start the workers of a run."""

    def connect(self, urls: Sequence[str]) -> AbstractContextManager[None]:
        """Hold what the workers need during the block: a cluster, and the tokens for these URLs."""

    def check(
        self, settings: config.Config, storage: RunStorage, tracking_uri: str | None, data: Sequence[File]
    ) -> None:
        """Find out what would fail on the workers' machines.

        Args:
            settings: the run's settings.
            storage: where runs live.
            tracking_uri: the MLflow server or store; None if tracking is off.
            data: the training files.

        Raises:
            ValueError, OSError: if the run cannot be done there.
        """

    def train(self, settings: config.Config, run: Run, tracking_uri: str) -> Outcome:
        """Train a run that is set up.

        Raises:
            RunFailedError: if the run stopped on the way.
        """


class LocalLauncher:
    """Train in this process (scaling.num_workers=0)."""

    def connect(self, urls: Sequence[str]) -> AbstractContextManager[None]:
        """Hold nothing, because this process has all that it needs."""
        del urls
        return nullcontext()

    def check(
        self, settings: config.Config, storage: RunStorage, tracking_uri: str | None, data: Sequence[File]
    ) -> None:
        """Check nothing: the set-up has read the data on this machine."""

    def train(self, settings: config.Config, run: Run, tracking_uri: str) -> Outcome:
        """Train on the GPU if there is one, on the CPU otherwise."""
        device = torch.device(_local_device(settings.scaling))
        threads = worker.threads_of_worker(settings.scaling)
        logger.info("training on %s, CPU threads: %d (%s)", device, threads.number, threads.reason)
        try:
            return train_worker(settings, run, device=device, tracking_uri=tracking_uri)
        except (ValueError, OSError, NonFiniteError) as error:
            raise RunFailedError(with_remedy(last_line(error), run)) from error
        # A setting can mend these two errors, so the message names the settings.
        except (MemoryError, torch.OutOfMemoryError) as error:
            reason = f"the memory of {device} is used up; set train.events_per_worker or train.muons_per_event lower"
            raise RunFailedError(with_remedy(reason, run)) from error


def _local_device(scaling: config.Scaling) -> str:
    """Return the device of a training in this process.

    Raises:
        RunFailedError: if a GPU is asked for and torch sees none.
    """
    wish = {None: "auto", True: "cuda", False: "cpu"}[scaling.use_gpu]
    try:
        return choose_device(wish, elsewhere=False)
    except ValueError as error:
        msg = f"scaling.use_gpu=true, but torch {torch.__version__} sees no GPU here; use scaling.use_gpu=false"
        raise RunFailedError(msg) from error


def run_training(settings: config.Config, launcher: Launcher) -> RunSummary:
    """Train as the settings say, from the data's files to a delivered model.

    Raises:
        FileNotFoundError, ValueError: if the data or the settings do not allow it; nothing was started then.
        HeldError: if another process trains this run; nothing was changed then.
        RunFailedError: if the run stopped on the way. Its last checkpoint is intact.
    """
    # This comes before anything is written, because config.json and MLflow would keep the secret.
    refuse_credentials(settings)
    tensorboard.check_installed(settings)
    storage = RunStorage.of(settings)
    if storage.url is not None:
        # Check this now, not at the first checkpoint, which may come after an hour.
        files.check_writable(storage.url)
    with owned_run(settings, storage) as run:
        return _train_run(settings, run, storage, launcher)


def _train_run(settings: config.Config, run: Run, storage: RunStorage, launcher: Launcher) -> RunSummary:
    # `mlflow ui` without options finds the runs if it starts in the directory that contains the directory of the runs.
    beside = storage.directory.parent
    tracking_uri = usable_uri(beside) if settings.tracking.enabled else default_uri(beside)
    remote.fetch_start(run)
    started = run.has_started()
    origin = None
    if started:
        settings = as_begun(run, settings)
        say_changed_settings(run, settings)
        run, data = with_found_files(run, settings)
    else:
        # This reads data and fits the features, but writes nothing yet.
        origin = set_up_run_and_parent(settings, storage)
        data = origin[0]
    # Share tokens for every URL of the run, because the workers may be on nodes without tokens.
    with launcher.connect((*settings.data.train, *settings.data.validation, settings.run.storage_path)):
        launcher.check(settings, storage, tracking_uri if settings.tracking.enabled else None, data)
        # A new run is written only now, so that a command that was refused above leaves nothing.
        if origin is not None:
            run.create(settings, *origin)
            _warn_if_inside(run.directory, settings)
        remote.start(run)
        logger.info("%s run %s", "continuing" if started else "starting", run.uri)
        # These files are from an earlier attempt. A worker that finds one of them ends at once.
        for left_over in (run.failure, run.stop_request):
            left_over.unlink(missing_ok=True)
        # The reason for a failure must find room even on a full disk.
        run.reserve_failure()
        with stop_on_signals(run.stop_request.touch), progress_of(run, settings):
            outcome = launcher.train(settings, run, tracking_uri)
    return RunSummary(run, outcome, settings.train)


def _warn_if_inside(directory: Path, settings: config.Config) -> None:
    """Warn of a run among its own data: the next listing of the data would take the run's Parquet files for events."""
    with suppress(OSError):  # The data were listed a moment ago. If they are gone now, the training reports it.
        try:
            check_apart(directory, [*settings.data.train, *settings.data.validation])
        except ValueError as error:
            logger.warning("%s", str(error).replace("with --out", "with run.storage_path"))


def train_worker(settings: config.Config, run: Run, **how: Any) -> Outcome:
    """Run `worker.train`, and name the disk if a full disk stops it."""
    try:
        return worker.train(settings, run, **how)
    except OSError as error:
        # A full disk's error may name no file, and a run writes to several disks.
        if error.errno not in FULL or isinstance(error, DiskFullError):
            raise
        raise DiskFullError(error, _which_disk(error, run), 0) from error


def last_line(error: BaseException) -> str:
    """Return the last line of an error's message, or the name of its class if it has none."""
    return str(error).strip().splitlines()[-1] if str(error).strip() else type(error).__name__


def with_remedy(reason: str, run: Run) -> str:
    """Return the sentence that says why a run stopped and from which checkpoint it can continue."""
    last = max(UploadStatus.of(run).step, *checkpoint.steps(run.checkpoints), -1)
    where = (
        "no checkpoint was written"
        if last < 0
        else f"the last checkpoint is {checkpoint.path(run.checkpoints, last).name}; run.resume=auto continues"
    )
    return f"run {run.directory.name} stopped: {reason} ({where})"


def _which_disk(error: OSError, run: Run) -> Path:
    """Return a path on the full disk. Python's error names the file if opening failed, but not if writing failed."""
    place = run.directory if shutil.disk_usage(run.directory).free < 2**20 else tempfile.gettempdir()
    return Path(error.filename or place)
