"""The services around the training: metrics, tracking, uploads, validation, the profile and the delivery of the model.

Rank 0 does all of it. The other ranks only pass their metrics on to `report`.
"""

import json
from collections.abc import Callable
from contextlib import ExitStack, closing
from datetime import UTC, datetime
from pathlib import Path

from crmuons import config, provenance
from crmuons.models import saved_model
from crmuons.models.bundle_model import BundleModel
from crmuons.runs import checkpoint
from crmuons.runs.directory import Run
from crmuons.runs.parent import about_parent
from crmuons.runs.uploads import FAILURE_WAIT_S, Uploads
from crmuons.storage import atomic
from crmuons.storage.atomic import full_disk_named
from crmuons.storage.staging import stager
from crmuons.storage.staging.download import REPORT
from crmuons.tracking.interface import AnyTracker, NullTracker, Status
from crmuons.training import distributed
from crmuons.training.interface import Metrics
from crmuons.training.profiling import StepProfiler
from crmuons.training.tensorboard import Board
from crmuons.training.trainer import Trainer
from crmuons.training.validation import Validation

Report = Callable[[Metrics, int, Path | None], None]


class Services:
    """The services of a rank other than 0; `RankZeroServices` overrides the methods.

    Args:
        run: the run's directory.
        report: function that receives every report (metrics, step, saved checkpoint) on every rank, or None.
    """

    def __init__(self, run: Run, report: Report | None = None) -> None:
        self.run, self._report = run, report

    def report(self, values: Metrics, step: int, saved: Path | None) -> None:
        """Pass metrics of a step on, with the checkpoint if one was saved. All ranks call it at the same steps."""
        if self._report is not None:
            self._report(values, step, saved)

    def validate(self, model: BundleModel, step: int) -> Metrics:
        """Return the metrics of a model on held-out events; none on a rank other than 0."""
        del model, step
        return {}

    def should_stop(self) -> bool:
        """Return whether a stop was requested through the run's directory. Rank 0's answer holds for all ranks."""
        return self.run.stop_request.exists()

    def model_metadata(self, step: int) -> dict[str, object]:
        """Return the content of model.json for a model saved at a step; nothing on a rank other than 0, which saves none."""
        del step
        return {}

    def on_step(self, step: int) -> None:
        """Take note that `step` steps are done. The loop calls it before the first step and after each step."""

    def deliver(self, step: int) -> None:
        """Publish the selected model of a finished run."""

    def finish_uploads(self) -> None:
        """Wait until all results are stored at the run's URL."""

    def close(self, status: Status) -> None:
        """Close all services. `status` is how the run ended."""


class RankZeroServices(Services):
    """The services of rank 0.

    Args:
        run: the run's directory.
        settings: the run's settings.
        trainer: the training step; TensorBoard shows the weights of its averaged model.
        first_step: number of steps done before, None for a new run.
        tracking_uri: the MLflow server or store.
        report: function that receives every report after it was written.
    """

    def __init__(
        self,
        run: Run,
        settings: config.Config,
        trainer: Trainer,
        *,
        first_step: int | None,
        tracking_uri: str,
        report: Report | None = None,
    ) -> None:
        super().__init__(run, report)
        self.settings, self.training_showers = settings, trainer.model.features.training_showers
        run.forget_metrics_after(-1 if first_step is None else first_step)
        self.tracker = _open_tracker(settings, run, tracking_uri)
        self._closing = ExitStack()
        self.board: Board | None = None
        if settings.tracking.tensorboard:
            board = Board(run.tensorboard, trainer.averaged, first_step or 0)
            self.board = self._closing.enter_context(closing(board))
        self.uploads = Uploads(run, settings.run.keep_checkpoints) if run.url else None
        self.validation = Validation(
            run, settings, trainer.device, self.tracker, None if self.board is None else self.board.events
        )
        self.profiler: StepProfiler | None = None
        if settings.train.profile_steps is not None:
            profiler = StepProfiler(settings.train.profile_steps, run.profile, self._send_trace)
            self.profiler = self._closing.enter_context(closing(profiler))

    def report(self, values: Metrics, step: int, saved: Path | None) -> None:
        """Write metrics to metrics.jsonl, MLflow and TensorBoard; upload the checkpoint if one was saved."""
        if values:
            values = values | self._storage_metrics(step)
            with full_disk_named(self.run.directory), self.run.metrics.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"step": step, **values}) + "\n")
            self.tracker.metrics(values, step)
        if self.uploads is not None and saved is not None:
            self.uploads.add(saved)
        super().report(values, step, saved)
        if self.board is not None:
            self.board(values, step, saved)

    def validate(self, model: BundleModel, step: int) -> Metrics:
        """Return the metrics of a model on held-out events."""
        return self.validation(model, step)

    def model_metadata(self, step: int) -> dict[str, object]:
        """Return the content of model.json: how the model is built, and which run, step and code it comes from."""
        about: dict[str, object] = {
            "model": self.settings.model.model_dump(mode="json"),
            "run": self.run.directory.name,
            "step": step,
            "training_showers": self.training_showers,
            "written": datetime.now(UTC).isoformat(timespec="seconds"),
            "config": self.settings.model_dump(mode="json"),
            "versions": provenance.code_tags(),
        }
        parent = about_parent(self.run.directory)
        return about if parent is None else about | {"parent": parent}

    def on_step(self, step: int) -> None:
        """Start or stop the profiler if its steps begin or end here."""
        if self.profiler is not None:
            self.profiler(step)

    def deliver(self, step: int) -> None:
        """Write the selected model to the run's directory and MLflow, mark the run as done, and upload both."""
        selected = checkpoint.best(self.run.checkpoints)
        assert selected is not None  # The last step was saved.
        model, metadata = saved_model.load_model(selected)
        saved_model.save_model(self.run.model, model, metadata)
        self.tracker.model(self.run.model, self.run.load_validation().primaries[:3])
        atomic.write_json(self.run.done, {"steps": step, "model": str(self.run.model), "selected": selected.name})
        if self.uploads is not None:
            self.uploads.add_model(step)

    def finish_uploads(self) -> None:
        """Wait until all results are stored at the run's URL.

        Raises:
            NotStoredError: if they are not stored after run.upload_seconds.
        """
        if self.uploads is not None:
            self.uploads.finish(self.settings.run.upload_seconds)

    def close(self, status: Status) -> None:
        """Write the profile and the TensorBoard file, give uploads a last chance, and end the MLflow run."""
        self._closing.close()
        if self.uploads is not None:
            self.uploads.wait(FAILURE_WAIT_S)
        self.tracker.finish(status)

    def _storage_metrics(self, step: int) -> Metrics:
        behind = {} if self.uploads is None else {"storage/steps_behind": step - max(self.uploads.stored.step, 0)}
        return behind | stager.staging_metrics(self.run.directory / REPORT)

    def _send_trace(self, trace: Path) -> None:
        self.tracker.artifact(trace, "profile")


def tags_of(run: Run) -> dict[str, str]:
    """Return the tags of a run in MLflow: its data, its workers, and the model that it began from."""
    parent = about_parent(run.directory) or {}
    of_parent = {f"init_from.{name}": str(value) for name, value in parent.items() if name != "parent"}
    return {"dataset_fingerprint": run.fingerprint(), "num_workers": str(distributed.world_size()), **of_parent}


def _open_tracker(settings: config.Config, run: Run, uri: str) -> AnyTracker:
    if not settings.tracking.enabled:
        return NullTracker()
    from crmuons.tracking.tracker import Tracker  # noqa: PLC0415  # Importing MLflow takes 1.6 CPU-seconds.

    return Tracker.open(
        run.directory,
        uri=uri,
        experiment=settings.tracking.experiment,
        run_name=run.directory.name,
        params=settings.flat(),
        tags=tags_of(run),
        parent=settings.tracking.parent,
    )
