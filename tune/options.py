"""What is asked of a sweep beside the settings and the space, checked before anything starts."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from crmuons import config
from tune.schedulers import Asha, Population, RunAll, Scheduler
from tune.search import Method, grid_size
from tune.space import Space

SAMPLES = 20  # where none are asked for

# What a population may change in the middle of a run: nothing that has another shape or reads other data.
MAY_CHANGE_MIDWAY = re.compile(
    r"train\.(optimizer\.(?!kind$).*|penalty\..*|n_critic|events_per_worker|grad_accumulation|muons_per_event|ema_decay|loss)"
)


@dataclass(frozen=True)
class SweepOptions:
    """What is asked of a sweep.

    Attributes:
        search: how trials are chosen.
        scheduler: which of them go on.
        samples: trials; None for 20, or the whole grid.
        concurrency: trials at once; None for as many as there is room for.
        cpus_per_trial, gpus_per_trial: reserved for a trial; None for an equal share.
        max_seconds: no trial goes on after this time of this command; None for no limit.
        seed: of what is drawn.
        first_rung: share of the run at which successive halving compares first.
        reduction: of the trials from rung to rung.
    """

    search: Method = "tpe"
    scheduler: Literal["none", "asha", "pbt"] = "asha"
    samples: int | None = None
    concurrency: int | None = None
    cpus_per_trial: float | None = None
    gpus_per_trial: float | None = None
    max_seconds: float | None = None
    seed: int = 0
    first_rung: float = 1 / 9
    reduction: float = 3.0

    def num_trials(self, space: Space) -> int:
        """How many trials the sweep has."""
        if self.search != "grid":
            return SAMPLES if self.samples is None else self.samples
        size = grid_size(space)
        return size if self.samples is None else min(size, self.samples)

    def make_scheduler(self, space: Space) -> Scheduler:
        """The scheduler, without a memory yet."""
        match self.scheduler:
            case "asha":
                return Asha(self.first_rung, self.reduction)
            case "pbt":
                return Population(self.num_trials(space), self.seed)
        return RunAll()

    def check(self, space: Space, settings: config.Config) -> None:
        """Refuse what cannot work.

        Raises:
            ValueError: naming the option, its value and what would be right.
        """
        positive = {name: getattr(self, name) for name in ("samples", "concurrency", "cpus_per_trial", "max_seconds")}
        for name, value in positive.items():
            if value is not None and not (value > 0 and math.isfinite(value)):
                msg = f"{name} = {value}: a sweep needs a number above 0"
                raise ValueError(msg)
        if self.gpus_per_trial is not None and not (self.gpus_per_trial >= 0 and math.isfinite(self.gpus_per_trial)):
            msg = f"gpus_per_trial = {self.gpus_per_trial}: a trial needs 0 or more; 0 trains on CPUs"
            raise ValueError(msg)
        if self.seed < 0:
            msg = f"seed = {self.seed} is negative; the numbers that are drawn need one of 0 or more"
            raise ValueError(msg)
        if not (0 < self.first_rung < 1 and 1 < self.reduction < math.inf):
            msg = f"first_rung = {self.first_rung} and reduction = {self.reduction}: give a share below 1 and a number above 1"
            raise ValueError(msg)
        self.num_trials(space)
        self._check_scheduler(space, settings.train)

    def _check_scheduler(self, space: Space, train: config.Train) -> None:
        if self.scheduler == "none":
            return
        if train.steps is not None and train.validate_every >= train.steps:
            msg = (
                f"{self.scheduler} compares trials before their end, and train.validate_every = {train.validate_every} validates "
                f"none of train.steps = {train.steps} before it; set it to {max(1, train.steps // 10)}, say"
            )
            raise ValueError(msg)
        if self.scheduler == "pbt":
            self._check_population(space)

    def _check_population(self, space: Space) -> None:
        fixed = [each.path for each in space.dimensions if not MAY_CHANGE_MIDWAY.fullmatch(each.path)]
        if fixed:
            msg = f"pbt changes settings in the middle of a run, and {', '.join(fixed)} cannot change then; use asha, or leave it out"
            raise ValueError(msg)
        if self.num_trials(space) < 2:
            msg = f"samples = {self.num_trials(space)} is no population; give 4 or more"
            raise ValueError(msg)


@dataclass(frozen=True)
class TrialResources:
    """What trials get of the cluster.

    Attributes:
        concurrency: trials at once.
        cpus, gpus: of each trial.
    """

    concurrency: int
    cpus: float
    gpus: float

    @classmethod
    def of(
        cls, options: SweepOptions, scaling: config.Scaling, have: Mapping[str, float], num_trials: int
    ) -> "TrialResources":
        """Divide the cluster among trials.

        Args:
            options: of the sweep.
            scaling: of a trial.
            have: the cluster's "CPU" and "GPU".
            num_trials: no more run at once.

        Raises:
            ValueError: if more is asked for than there is; Ray would wait for ever.
        """
        workers = max(1, scaling.num_workers)
        gpus = have.get("GPU", 0.0) if scaling.use_gpu is not False and options.gpus_per_trial != 0 else 0.0
        cpus = have.get("CPU", 0.0) - (1 if workers > 1 else 0)  # Groups of workers leave one to read the data.
        fit = gpus / (options.gpus_per_trial or workers) if gpus else cpus / (options.cpus_per_trial or workers)
        concurrency = min(num_trials, options.concurrency or max(1, int(fit)))
        room = cls(
            concurrency,
            options.cpus_per_trial or _share(cpus, concurrency, workers),
            options.gpus_per_trial or (min(workers, gpus / concurrency) if gpus else 0.0),
        )
        room._check(cpus, gpus, workers)
        if options.scheduler == "pbt" and concurrency < num_trials:
            msg = f"pbt runs its whole population at once: {num_trials} trials, and concurrency is {concurrency}; make them equal"
            raise ValueError(msg)
        return room

    def _check(self, cpus: float, gpus: float, workers: int) -> None:
        for what, each, available in (("CPUs", self.cpus, cpus), ("GPUs", self.gpus, gpus)):
            if self.concurrency * each > available + 1e-9:
                msg = (
                    f"concurrency = {self.concurrency} trials with {each:g} {what} each need {self.concurrency * each:g}, and the "
                    f"cluster has {available:g} to give; ask for fewer at once, or fewer {what} per trial"
                )
                raise ValueError(msg)
        if workers > 1 and self.gpus not in (0, workers):
            msg = f"gpus_per_trial = {self.gpus:g}, but each of scaling.num_workers = {workers} takes a whole GPU"
            raise ValueError(msg)

    def scaling(self, scaling: config.Scaling) -> dict[str, Any]:
        """The settings of a trial that follow: one worker trains in the trial's own process."""
        workers = scaling.num_workers if scaling.num_workers > 1 else 0
        return {
            "scaling.num_workers": workers,
            "scaling.min_workers": None,  # A trial keeps the room it was given.
            "scaling.use_gpu": self.gpus > 0,
            "scaling.cpus_per_worker": self.cpus / workers if workers else None,
            "scaling.threads_per_worker": scaling.threads_per_worker or max(1, int(self.cpus / max(1, workers))),
        }


def _share(cpus: float, concurrency: int, workers: int) -> float:
    """CPUs of a trial where none are asked for: whole ones, and no more than one a worker unless it trains alone."""
    share = cpus / concurrency
    if workers > 1:
        return min(workers, share)
    return float(max(1, int(share)))
