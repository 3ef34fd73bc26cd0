"""The summary that `crmuons train` prints at the end of a run."""

from collections.abc import Iterator
from dataclasses import dataclass

from crmuons.runs import checkpoint
from crmuons.runs.directory import Run
from crmuons.runs.uploads import UploadStatus
from crmuons.tracking import journal
from crmuons.training.loop import Outcome


@dataclass(frozen=True)
class RunSummary:
    """The end of a run.

    Attributes:
        run: the run.
        outcome: whether it reached its end or was asked to stop.
    """

    run: Run
    outcome: Outcome

    def describe(self) -> str:
        """Return a few lines: where the results are, the score, and the data that were left out."""
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
        if selected := run.lowest("validation/score"):
            step, score = selected
            yield f"score    mean W1/sigma {score:.4f} on held-out events, at step {step}, which is the one selected"
        if left_out := metrics.get("data/quarantined"):
            rows = metrics["data/rows"]
            yield f"left out {left_out:.0f} of {rows:.0f} rows that cannot be used: {run.uri}/quarantine"
        if left_out := metrics.get("data/outliers"):
            muons = metrics["data/outlier_muons"]
            yield f"left out {left_out:.0f} events with {muons:.0f} muons, above the cap: {run.uri}/outliers"
        if unsent := journal.num_unsent(run.directory):
            yield f"MLflow   does not have {unsent} entries of this run; they are kept: crmuons sync {run.directory}"
