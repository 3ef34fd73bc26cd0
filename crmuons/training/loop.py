"""Decide when to log, validate, save and stop. The training step and its losses are in trainer.py.

A checkpoint (`TrainingLoop._save`) holds the averaged model, which generates events, and the training state:
- `trainer`: weights of model, averaged model and critic, optimizer states and step counts (`Trainer.state_dict`);
- `progress`: training time, best score and its step;
- `stream`: the read plan, for each rank its position in the data and its row counts, and digests of remote files.

Ranks exchange tensors, and a rank that skips an exchange makes the others wait forever. Every decision here therefore
depends on the step number or on numbers that rank 0 sent at a log step, never on the data or the clock of one rank.
"""

import logging
import math
import resource
import time
from dataclasses import asdict, astuple, dataclass
from pathlib import Path
from typing import Any

import torch

from crmuons import config
from crmuons.data.loader import Loader
from crmuons.data.quarantine import ReadCounts
from crmuons.runs import checkpoint
from crmuons.training import distributed
from crmuons.training.diagnosis import cause_of_nonfinite
from crmuons.training.interface import LoopServices, Metrics, Outcome
from crmuons.training.openings import common_digests
from crmuons.training.terms import LossTerms
from crmuons.training.trainer import NonFiniteError, PreparedBatch, Trainer
from crmuons.training.waiting import NoBatchError, PatientBatches

logger = logging.getLogger(__name__)

CHECK_S = 0.4  # Seconds between looks at the time limit and at the request to stop, for every train.log_every.
VALIDATION_S = 60.0  # The other ranks wait for rank 0's validation. Only longer waits are logged.
FIRST_LOG_S = 5.0  # If the first metrics take longer than this, a warning shows that the training works.


@dataclass
class Progress:
    """State of a run that neither the trainer nor the data loader holds."""

    seconds: float = 0.0  # Training time, summed over all attempts.
    epochs: float = 0.0  # Passes over the training events, as rank 0 read them.
    best_score: float = math.inf
    best_step: int = 0


class TrainingLoop:
    """Train on one rank, from the first or the last saved step to the end.

    Args:
        trainer: the training step.
        stream: the loader of this rank's batches.
        settings: the run's settings.
        directory: directory of the checkpoints.
        services: receives metrics and checkpoints; validates.
    """

    def __init__(
        self,
        trainer: Trainer,
        stream: Loader[PreparedBatch],
        settings: config.Config,
        directory: Path,
        services: LoopServices,
    ) -> None:
        self.trainer, self.stream, self.services, self.directory = trainer, stream, services, directory
        self.settings, self.run = settings.train, settings.run
        self.progress = Progress()
        self._last_log = self._counters()
        self._first_step, self._resumed, self._says_first_steps = 0, False, distributed.rank() == 0
        self._last_check, self._next_check = (0, time.perf_counter()), 0
        alone = distributed.world_size() == 1
        self._batches = PatientBatches(stream, services.should_stop, self._is_time_over, self._until, alone=alone)

    def fit(self) -> Outcome:
        """Train to the end or to a stop request, and save the last step in both cases."""
        if self.trainer.num_steps == 0 and not self._resumed:
            # Every curve of the run begins at step 0.
            metrics, improved = self._validate()
            # The parent's weights may stay the best, so they are saved and can be selected. Random weights are not
            # saved.
            saved = self._save(best=improved) if self.settings.init_from is not None else None
            self.services.report(metrics, 0, saved)
        stop, self._first_step = False, self.trainer.num_steps
        self._last_check, self._next_check = (self._first_step, time.perf_counter()), self._first_step + 1
        self.services.on_step(self._first_step)
        while not stop and self._share_done() < 1:
            self.trainer.progress = self._share_done()
            try:
                terms = self._step()
            except NoBatchError:
                return self._end_without_batch()
            step, metrics, improved = self.trainer.num_steps, Metrics(), False
            self.services.on_step(step)
            if self._is_log_due(step):
                metrics, stop = self._log(terms)
            done = self._share_done() >= 1
            if done or step % self.settings.validate_every == 0:
                validation, improved = self._validate()
                metrics |= validation
            # An improved model is saved at once: the best one must be on disk when the next steps make it worse.
            saves = done or stop or improved or step % self.run.checkpoint_every == 0
            saved = self._save(best=improved) if saves else None
            if metrics or saved:
                self.services.report(metrics, step, saved)
        return "interrupted" if stop and self._share_done() < 1 else "finished"

    def resume(self, state: dict[str, Any]) -> None:
        """Continue from the state of a checkpoint. The loader was already opened at its position."""
        self._resumed = True
        self.trainer.load_state_dict(state["trainer"])
        self.progress = Progress(**state["progress"])
        best = checkpoint.path(self.directory, self.progress.best_step)
        if distributed.rank() == 0 and best.is_dir():  # A kill may have come between saving and marking it.
            checkpoint.mark_best(self.directory, best)

    def _step(self) -> LossTerms:
        """Take a training step; name the cause if a number is not finite."""
        # A Python generator that raised an error has ended, so each step makes a new one.
        batches = (batch.to(self.trainer.device, non_blocking=True) for batch in self._batches)
        self._batches.step_begun = False
        try:
            return self.trainer.step(batches)
        except NonFiniteError as error:
            raise self._explained(error) from error

    def _explained(self, error: NonFiniteError) -> NonFiniteError:
        return NonFiniteError(f"{error} {cause_of_nonfinite(self.trainer, self._batches.last, self._first_step)}")

    def _end_without_batch(self) -> Outcome:
        """Save the state of the last whole step and end: no batch came before the time limit or a request to stop."""
        if distributed.world_size() > 1:
            msg = "no data came to this worker before the run was to stop; look at the server of data.train"
            raise TimeoutError(msg)  # The others wait for this rank in an exchange.
        self.progress.seconds += time.perf_counter() - self._last_log[-1]
        self._last_log = self._counters()
        if self.trainer.num_steps > self._first_step:
            values = {"progress/share_done": self._share_done(), "progress/seconds": self.progress.seconds}
            self.services.report(values, self.trainer.num_steps, self._save(best=False))
        # Without a step there is no model to deliver.
        return "finished" if self._share_done() >= 1 and self.trainer.num_steps else "interrupted"

    def _is_log_due(self, step: int) -> bool:
        """Return whether to log this step: regularly, at the end, and when rank 0 finds that it is time to stop.

        From the speed of the last steps, rank 0 chooses the step at which all ranks ask it again.
        """
        if step % self.settings.log_every == 0 or step == self.settings.steps:
            return True
        now = time.perf_counter()
        last_step, last_time = self._last_check
        if step < self._next_check or (distributed.world_size() == 1 and now - last_time < CHECK_S):
            return False
        self._say_first_steps(step, now - self._last_log[-1])
        seconds_per_step = max((now - last_time) / (step - last_step), 1e-6)
        # At most twice the last number of steps, because the steps may become slower.
        ahead = min(int(CHECK_S / seconds_per_step), 2 * (step - last_step)) if distributed.world_size() > 1 else 1
        urgent, ahead = map(
            int,
            distributed.from_rank_zero(
                [float(distributed.rank() == 0 and self._should_stop()), float(max(1, ahead))],
                self.trainer.device,
            ),
        )
        self._last_check, self._next_check = (step, now), step + ahead
        return bool(urgent)

    def _say_first_steps(self, step: int, seconds: float) -> None:
        """Log once that slow steps go on. Metrics would stay in MLflow if the run starts again from the beginning."""
        if self._says_first_steps and seconds > FIRST_LOG_S:
            self._says_first_steps = False
            done, every = step - self._first_step, self.settings.log_every
            logger.warning(
                "the first %d steps took %.0f s; metrics come every train.log_every=%d steps", done, seconds, every
            )

    def _should_stop(self) -> bool:
        """Return whether the run is to stop, as far as this rank knows: a request was made, or the time is over."""
        return self.services.should_stop() or self._is_time_over()

    def _is_time_over(self) -> bool:
        return self.settings.max_seconds is not None and self._seconds() >= self.settings.max_seconds

    def _seconds(self) -> float:
        return self.progress.seconds + time.perf_counter() - self._last_log[-1]

    def _until(self) -> str:
        limit = self.settings.max_seconds
        return (
            "Ctrl-C"
            if limit is None
            else f"train.max_seconds is over in {max(limit - self._seconds(), 0):.0f} s, or Ctrl-C"
        )

    def _share_done(self) -> float:
        """Return the share of the run that is done. All ranks agree: time and epochs are rank 0's at the last log step."""
        return self.settings.share_done(self.trainer.num_steps, self.progress.seconds, self.progress.epochs)

    def _log(self, terms: LossTerms) -> tuple[Metrics, bool]:
        """Return the metrics of the step, and whether rank 0 asks to stop. Add rank 0's time to the training time."""
        values = torch.stack(list(terms.values())).tolist()  # device sync
        self._says_first_steps = False
        try:
            self.trainer.check_finite()
        except NonFiniteError as error:
            raise self._explained(error) from error
        metrics = {f"train/{name}": value for name, value in zip(terms, values, strict=True) if not math.isnan(value)}
        previous, self._last_log = self._last_log, self._counters()
        # Differences from the last log step, not from the start, give the current speed.
        events, muons, waited, seconds = (new - old for new, old in zip(self._last_log, previous, strict=True))
        stop = distributed.rank() == 0 and self.services.should_stop()
        seconds, stopping, self.progress.epochs = distributed.from_rank_zero(
            [seconds, float(stop), self.stream.epochs], self.trainer.device
        )
        self.progress.seconds += seconds
        local = torch.tensor([events, muons, waited, *astuple(self.stream.read_counts)], dtype=torch.float64)
        events, muons, waited, *counts = (
            distributed.gather(local.to(self.trainer.device)).sum(0).tolist()
        )  # device sync
        self.stream.check(ReadCounts(*map(int, counts)))  # The limit applies to all ranks together.
        metrics |= {
            f"data/{name}": value
            for name, value in zip(asdict(ReadCounts()), counts, strict=True)
            if value or name != "skipped_slices"  # Only runs with data.skip_missing have these.
        }
        metrics |= {
            "speed/events_per_second": events / seconds,
            "speed/muons_per_second": muons / seconds,
            "speed/data_wait_share": waited / (seconds * distributed.world_size()),
            "train/learning_rate": self.trainer.networks["generator"].current_lr,
            "progress/share_done": self._share_done(),
            "progress/seconds": self.progress.seconds,
            "progress/epochs": self.progress.epochs,
        }
        return metrics | _memory(self.trainer.device), bool(stopping)

    def _counters(self) -> tuple[float, float, float, float]:
        stream = self.stream
        return stream.num_events, stream.num_muons, stream.seconds_waited, time.perf_counter()

    def _validate(self) -> tuple[Metrics, bool]:
        """Validate the averaged model on rank 0.

        Returns:
            The metrics (none on other ranks), and on all ranks whether the score is the best so far.
        """
        try:
            metrics = (
                self.services.validate(self.trainer.averaged, self.trainer.num_steps) if distributed.rank() == 0 else {}
            )
        except NonFiniteError as error:
            raise self._explained(error) from error
        # Two numbers, because a score of infinity or NaN is not the same as no score.
        known = [float("score" in metrics), metrics.get("score", math.inf)]
        has_score, score = distributed.from_rank_zero(known, self.trainer.device, expected_s=VALIDATION_S)
        if not has_score and math.isfinite(self.progress.best_score):
            # The best score is from an earlier crmuons: a mean over fewer quantities, which must not select a model.
            self.progress.best_score, self.progress.best_step = math.inf, 0
            if distributed.rank() == 0:
                checkpoint.forget_best(self.directory)
        improved = score < self.progress.best_score
        if improved:  # A NaN score compares as False.
            self.progress.best_score, self.progress.best_step = score, self.trainer.num_steps
        return {f"validation/{name}": value for name, value in metrics.items()}, improved

    def _save(self, *, best: bool) -> Path:
        """Write a checkpoint on rank 0, with the data position of every rank; return its path."""
        self.trainer.check_finite()  # On a GPU a step may have been skipped since the last log step.
        step, stream = self.trainer.num_steps, self.stream
        # Ranks have read different amounts, and each continues from its own position.
        local = torch.tensor([*stream.position, *astuple(stream.read_counts)], device=self.trainer.device)
        positions = distributed.gather(local).tolist()  # device sync
        digests = common_digests(stream.digests, stream.without_digest, self.trainer.device)
        if distributed.rank() == 0:
            training = {
                "trainer": self.trainer.state_dict(),
                "progress": asdict(self.progress),
                "stream": {"plan": stream.plan.state(), "positions": positions, "digests": digests},
            }
            saved = checkpoint.save(
                self.directory, step, self.trainer.averaged, self.services.model_metadata(step), training
            )
            if best:
                checkpoint.mark_best(self.directory, saved)
            checkpoint.prune(self.directory, self.run.keep_checkpoints)
        return checkpoint.path(self.directory, step)


def _memory(device: torch.device) -> Metrics:
    if device.type == "cuda":
        return {"system/device_memory_gb": torch.cuda.max_memory_allocated(device) / 1e9}
    # ru_maxrss is the largest memory so far, in KiB on Linux.
    return {"system/worker_memory_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9}
