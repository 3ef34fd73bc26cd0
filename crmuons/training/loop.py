"""When to log, to validate, to save and to stop. The step itself is in trainer.py.

Ranks exchange tensors, so every decision here depends on the step number, or on what rank 0 said at a log step, and never on
one rank's data or clock: a rank that leaves an exchange out hangs the others.
"""

import math
import resource
import time
from collections.abc import Callable
from dataclasses import asdict, astuple, dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from crmuons import config
from crmuons.data.loader import Loader
from crmuons.data.quarantine import ReadCounts
from crmuons.models.bundle_model import BundleModel
from crmuons.runs import checkpoint
from crmuons.training import distributed
from crmuons.training.batch import TrainingBatch
from crmuons.training.trainer import LossTerms, Trainer

Metrics = dict[str, float]
Outcome = Literal["finished", "interrupted"]


@dataclass
class Progress:
    """How far a run is, beside what the trainer and the stream know themselves."""

    seconds: float = 0.0  # Training time, all attempts together.
    best_score: float = math.inf
    best_step: int = 0


@dataclass(frozen=True)
class Hooks:
    """What the loop asks of its surroundings.

    Attributes:
        report: takes metrics, the step and the checkpoint where one was saved; called by every rank at the same steps.
        validate: the metrics of a model on held-out events, "score" among them; called on rank 0.
        should_stop: whether the run was asked to end; called on rank 0.
        model_metadata: what model.json says of the model at a step.
        on_step: told how many steps are done, before the first step and after each.
    """

    report: Callable[[Metrics, int, Path | None], None]
    validate: Callable[[BundleModel, int], Metrics]
    should_stop: Callable[[], bool]
    model_metadata: Callable[[int], dict[str, Any]]
    on_step: Callable[[int], None]


class TrainingLoop:
    """One rank's training, from the first or the last saved step to the end.

    Args:
        trainer: the step.
        stream: batches.
        settings: the run's settings.
        directory: of the checkpoints.
        hooks: the surroundings.
    """

    def __init__(
        self, trainer: Trainer, stream: Loader[TrainingBatch], settings: config.Config, directory: Path, hooks: Hooks
    ) -> None:
        self.trainer, self.stream, self.hooks, self.directory = trainer, stream, hooks, directory
        self.settings, self.run = settings.train, settings.run
        self.progress = Progress()
        self._last_log = self._counters()

    def fit(self) -> Outcome:
        """Train to the end, or to a request to stop; the last step is saved either way."""
        if self.trainer.num_steps == 0:
            self.hooks.report(self._validate()[0], 0, None)
        batches = (batch.to(self.trainer.device, non_blocking=True) for batch in self.stream)
        stop = False
        self.hooks.on_step(self.trainer.num_steps)
        while not stop and self._share_done() < 1:
            self.trainer.progress = self._share_done()
            terms = self.trainer.step(batches)
            step, metrics, improved = self.trainer.num_steps, Metrics(), False
            self.hooks.on_step(step)
            if step % self.settings.log_every == 0 or step == self.settings.steps:
                metrics, stop = self._log(terms)
            done = self._share_done() >= 1
            if done or step % self.settings.validate_every == 0:
                validation, improved = self._validate()
                metrics |= validation
            saves = done or stop or improved or step % self.run.checkpoint_every == 0
            saved = self._save(best=improved) if saves else None
            if metrics or saved:
                self.hooks.report(metrics, step, saved)
        return "interrupted" if stop and self._share_done() < 1 else "finished"

    def resume(self, state: dict[str, Any]) -> None:
        """Continue from what a checkpoint holds; the stream was made from its part already."""
        self.trainer.load_state_dict(state["trainer"])
        self.progress = Progress(**state["progress"])
        best = checkpoint.path(self.directory, self.progress.best_step)
        if distributed.rank() == 0 and best.is_dir():  # A kill may have come between saving it and selecting it.
            checkpoint.mark_best(self.directory, best)

    def _share_done(self) -> float:
        """Return the share of the run that is done. All ranks agree, because `seconds` is rank 0's at the last log step."""
        return self.settings.share_done(self.trainer.num_steps, self.progress.seconds)

    def _log(self, terms: LossTerms) -> tuple[Metrics, bool]:
        """Read the step's metrics off the device, and learn from rank 0 how late it is and whether to stop."""
        values = torch.stack(list(terms.values())).tolist()  # device sync
        self.trainer.check_finite()
        metrics = {f"train/{name}": value for name, value in zip(terms, values, strict=True) if not math.isnan(value)}
        before, self._last_log = self._last_log, self._counters()
        events, muons, waited, seconds = (now - then for now, then in zip(self._last_log, before, strict=True))
        stop = distributed.rank() == 0 and self.hooks.should_stop()
        seconds, stopping = distributed.from_rank_zero([seconds, float(stop)], self.trainer.device)
        self.progress.seconds += seconds
        ours = torch.tensor([events, muons, waited, *astuple(self.stream.tally)], dtype=torch.float64)
        events, muons, waited, *tally = distributed.gather(ours.to(self.trainer.device)).sum(0).tolist()  # device sync
        self.stream.check(ReadCounts(*map(int, tally)))  # Of all ranks together.
        metrics |= {f"data/{name}": value for name, value in zip(asdict(ReadCounts()), tally, strict=True)}
        metrics |= {
            "speed/events_per_second": events / seconds,
            "speed/muons_per_second": muons / seconds,
            "speed/data_wait_share": waited / (seconds * distributed.world_size()),
            "train/learning_rate": self.trainer.networks["generator"].optimizer.param_groups[0]["lr"],
            "progress/share_done": self._share_done(),
            "progress/seconds": self.progress.seconds,
        }
        return metrics | _memory(self.trainer.device), bool(stopping)

    def _counters(self) -> tuple[float, float, float, float]:
        stream = self.stream
        return stream.num_events, stream.num_muons, stream.seconds_waited, time.perf_counter()

    def _validate(self) -> tuple[Metrics, bool]:
        """Rank 0's metrics of the averaged model, and whether its score is the best so far."""
        metrics = self.hooks.validate(self.trainer.averaged, self.trainer.num_steps) if distributed.rank() == 0 else {}
        (score,) = distributed.from_rank_zero([metrics.get("score", math.inf)], self.trainer.device)
        improved = score < self.progress.best_score
        if improved:  # Which it is not where the score is NaN.
            self.progress.best_score, self.progress.best_step = score, self.trainer.num_steps
        return {f"validation/{name}": value for name, value in metrics.items()}, improved

    def _save(self, *, best: bool) -> Path:
        """Save everything that resume needs: rank 0 writes, and tells where each rank is in the data."""
        step, stream = self.trainer.num_steps, self.stream
        ours = torch.tensor([*stream.position, *astuple(stream.tally)], device=self.trainer.device)
        positions = distributed.gather(ours).tolist()  # device sync
        if distributed.rank() == 0:
            training = {
                "trainer": self.trainer.state_dict(),
                "progress": asdict(self.progress),
                "stream": {"plan": stream.plan.state(), "positions": positions},
            }
            saved = checkpoint.save(
                self.directory, step, self.trainer.averaged, self.hooks.model_metadata(step), training
            )
            if best:
                checkpoint.mark_best(self.directory, saved)
            checkpoint.prune(self.directory, self.run.keep_checkpoints)
        return checkpoint.path(self.directory, step)


def _memory(device: torch.device) -> Metrics:
    if device.type == "cuda":
        return {"system/device_memory_gb": torch.cuda.max_memory_allocated(device) / 1e9}
    return {"system/worker_memory_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9}
