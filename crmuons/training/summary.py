"""The summary that `crmuons train` prints at the end of a run."""

from collections.abc import Iterator
from dataclasses import dataclass

from crmuons import config
from crmuons.data.quarantine import num_skipped
from crmuons.runs import checkpoint
from crmuons.runs.directory import Run
from crmuons.runs.uploads import UploadStatus
from crmuons.tracking import journal
from crmuons.training.interface import Metrics, Outcome

EACH_EPOCH = "again in every epoch; the files hold each once"


@dataclass(frozen=True)
class RunSummary:
    """The end of a run.

    Attributes:
        run: the run.
        outcome: whether it reached its end or was asked to stop.
        limits: the settings that end it.
    """

    run: Run
    outcome: Outcome
    limits: config.Train

    def describe(self) -> str:
        """Return a few lines: where the results are, the score, and the data that were left out.

        The last line says what ended the run.
        """
        return "\n".join(self._lines())

    def _lines(self) -> Iterator[str]:
        run, metrics = self.run, self.run.latest_metrics()
        yield f"run      {run.uri} ({self.outcome} after {metrics.get('step', 0):.0f} steps)"
        stored, saved = UploadStatus.of(run), checkpoint.latest(run.checkpoints)
        if self.outcome == "finished":
            yield f"model    {run.model if run.url is None else f'{run.url}/{stored.model}'}"
        elif saved is None:
            yield "saved    nothing: it was stopped before the first step; run.resume=auto starts it again"
        else:
            yield f"saved    {saved}; the same command with run.resume=auto continues"
        if stored.removal_error is not None:
            yield f"old checkpoints stay where they are: {stored.removal_error}"
        if lowest := run.lowest("validation/score"):
            step, score = lowest
            chosen = checkpoint.best(run.checkpoints)
            # Without train.init_from no checkpoint is saved at step 0, but the score of step 0 may still be the best.
            which = (
                "which is the one selected"
                if chosen is None or checkpoint.step(chosen.name) == step
                else (f"and no saved step was better; {chosen.name} is the one selected")
            )
            yield f"score    mean W1/sigma {score:.4f} on held-out events, at step {step}, {which}"
        elif "validation/mean_muons_ratio" in metrics:
            yield "score    none, because there are too few validation events; the last checkpoint is the one selected"
        if left_out := metrics.get("data/quarantined"):
            rows = metrics["data/rows"]
            yield (
                f"left out {left_out:.0f} of {rows:.0f} rows read, which cannot be used (counted {EACH_EPOCH}): "
                f"{run.uri}/quarantine"
            )
        if left_out := metrics.get("data/outliers"):
            muons = metrics["data/outlier_muons"]
            yield (
                f"left out {left_out:.0f} events with {muons:.0f} muons, above the cap (counted {EACH_EPOCH}): "
                f"{run.uri}/outliers"
            )
        if metrics.get("data/skipped_slices") and (left_out := num_skipped(f"{run.uri}/quarantine")):
            yield f"left out {left_out} files that are gone, damaged or changed: {run.uri}/quarantine, skipped-*"
        if unsent := journal.num_unsent(run.directory):
            yield f"MLflow   does not have {unsent} entries of this run; they are kept: crmuons sync {run.directory}"
        yield f"ended    by {self._reason(metrics)}"

    def _reason(self, metrics: Metrics) -> str:
        """Return what ended the run: the limit of its steps, time or epochs, or a request."""
        step, steps, max_seconds = int(metrics.get("step", 0)), self.limits.steps, self.limits.max_seconds
        if self.outcome == "interrupted":
            return f"a request to stop (Ctrl-C or a signal) after {step} steps"
        if steps is not None and step >= steps:
            return f"train.steps = {steps}"
        of = "" if steps is None else f" of train.steps = {steps}"
        if (epochs := self.limits.epochs) is not None and metrics.get("progress/epochs", 0.0) >= epochs:
            return f"train.epochs = {epochs:g} after {step} steps{of}; train.epochs=none removes this limit"
        return f"train.max_seconds = {max_seconds:g} after {step} steps{of}; train.max_seconds=none removes this limit"
