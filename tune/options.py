"""The options of a sweep and the resources of its trials, checked before anything starts."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import Field

from crmuons import config
from crmuons.config.options import Expected, Seconds, Seed, check
from tune.schedulers import Asha, Population, RunAll, Scheduler
from tune.search import Method, grid_size
from tune.space import Space

DEFAULT_SAMPLES = 20
SchedulerName = Literal["none", "asha", "pbt"]

Trials = Annotated[int, Field(ge=1, le=100_000)]
Cpus = Annotated[float, Field(gt=0, le=4096)]
Gpus = Annotated[float, Field(ge=0, le=4096), Expected("0 to 4096; 0 trains on CPUs")]
FirstRung = Annotated[float, Field(gt=0, lt=1), Expected("a share above 0 and below 1")]
Reduction = Annotated[float, Field(gt=1, le=1e6), Expected("a number above 1, at most 1e6")]

# Settings that a population may change in the middle of a run. They change neither the model's shape nor the data.
MAY_CHANGE_MIDWAY = re.compile(
    r"train\.(optimizer\.(?!kind$).*|penalty\..*|n_critic|events_per_worker|grad_accumulation|muons_per_event|ema_decay"
    r"|loss)"
)


@dataclass(frozen=True)
class SweepOptions:
    """The options of a sweep.

    Attributes:
        search: algorithm that proposes trials.
        scheduler: algorithm that decides which trials continue.
        samples: number of trials; None for 20, or for the whole grid.
        concurrency: trials at once; None for all trials that the cluster has resources for.
        cpus_per_trial, gpus_per_trial: CPUs and GPUs that are reserved for a trial; None for an equal share.
        max_seconds: time after which all trials of this command save and end; None for no limit.
        seed: seed of the proposals.
        first_rung: share of the run at which successive halving first compares trials.
        reduction: one of this number of trials passes a rung.
    """

    search: Method = "tpe"
    scheduler: SchedulerName = "asha"
    samples: Trials | None = None
    concurrency: Trials | None = None
    cpus_per_trial: Cpus | None = None
    gpus_per_trial: Gpus | None = None
    max_seconds: Seconds | None = None
    seed: Seed = 0
    first_rung: FirstRung = 1 / 9
    reduction: Reduction = 3.0

    def num_trials(self, space: Space) -> int:
        """Return the number of trials in the sweep."""
        if self.search != "grid":
            return DEFAULT_SAMPLES if self.samples is None else self.samples
        size = grid_size(space)
        return size if self.samples is None else min(size, self.samples)

    def make_scheduler(self, space: Space) -> Scheduler:
        """Return a new scheduler, which knows no scores yet."""
        match self.scheduler:
            case "asha":
                return Asha(self.first_rung, self.reduction)
            case "pbt":
                return Population(self.num_trials(space), self.seed)
        return RunAll()

    def check(self, space: Space, settings: config.Config) -> None:
        """Check the options.

        Raises:
            ValueError: names the option, its value and a valid value.
        """
        check(self)
        self.num_trials(space)
        self._check_scheduler(space, settings.train)

    def _check_scheduler(self, space: Space, train: config.Train) -> None:
        if self.scheduler == "none":
            return
        if train.steps is not None and train.validate_every >= train.steps:
            msg = (
                f"{self.scheduler} compares trials before their end, but with train.validate_every = {train.validate_every} and "
                f"train.steps = {train.steps} no trial validates before its end; set train.validate_every to "
                f"{max(1, train.steps // 10)}"
            )
            raise ValueError(msg)
        if self.scheduler == "pbt":
            self._check_population(space)

    def _check_population(self, space: Space) -> None:
        fixed = [dim.path for dim in space.dimensions if not MAY_CHANGE_MIDWAY.fullmatch(dim.path)]
        if fixed:
            msg = (
                f"pbt changes settings in the middle of a run, and {', '.join(fixed)} cannot change then; use asha, or remove "
                "it from the space"
            )
            raise ValueError(msg)
        if self.num_trials(space) < 2:
            msg = f"samples = {self.num_trials(space)} is no population; give 4 or more"
            raise ValueError(msg)


@dataclass(frozen=True)
class TrialResources:
    """The resources that trials get from the cluster.

    Attributes:
        concurrency: trials at once.
        cpus, gpus: CPUs and GPUs of each trial.
    """

    concurrency: int
    cpus: float
    gpus: float

    @classmethod
    def of(
        cls, options: SweepOptions, scaling: config.Scaling, have: Mapping[str, float], num_trials: int
    ) -> "TrialResources":
        """Divide the cluster among the trials.

        Args:
            options: options of the sweep.
            scaling: scaling settings of a trial.
            have: the cluster's "CPU" and "GPU".
            num_trials: number of trials of the sweep, which limits the trials at once.

        Raises:
            ValueError: if the options ask for more than the cluster has; Ray would wait for ever.
        """
        workers = max(1, scaling.num_workers)
        gpus = have.get("GPU", 0.0) if scaling.use_gpu is not False and options.gpus_per_trial != 0 else 0.0
        cpus = have.get("CPU", 0.0) - (1 if workers > 1 else 0)  # With groups of workers, one CPU reads the data.
        fit = gpus / (options.gpus_per_trial or workers) if gpus else cpus / (options.cpus_per_trial or workers)
        concurrency = min(num_trials, options.concurrency or max(1, int(fit)))
        resources = cls(
            concurrency,
            options.cpus_per_trial or _share(cpus, concurrency, workers),
            options.gpus_per_trial or (min(workers, gpus / concurrency) if gpus else 0.0),
        )
        resources._check(cpus, gpus, workers)
        if options.scheduler == "pbt" and concurrency < num_trials:
            msg = (
                f"pbt runs its whole population at once: {num_trials} trials, but concurrency is {concurrency}; make them "
                "equal"
            )
            raise ValueError(msg)
        return resources

    def _check(self, cpus: float, gpus: float, workers: int) -> None:
        for kind, amount, available in (("CPUs", self.cpus, cpus), ("GPUs", self.gpus, gpus)):
            if self.concurrency * amount > available + 1e-9:
                msg = (
                    f"concurrency = {self.concurrency} trials with {amount:g} {kind} each need {self.concurrency * amount:g}, but "
                    f"the cluster has {available:g} for them; ask for fewer trials at once, or fewer {kind} per trial"
                )
                raise ValueError(msg)
        if workers > 1 and self.gpus not in (0, workers):
            msg = f"gpus_per_trial = {self.gpus:g}, but each of scaling.num_workers = {workers} takes a whole GPU"
            raise ValueError(msg)

    def scaling(self, scaling: config.Scaling) -> dict[str, Any]:
        """Return the scaling settings of a trial. A single worker trains in the trial's own process."""
        workers = scaling.num_workers if scaling.num_workers > 1 else 0
        return {
            "scaling.num_workers": workers,
            "scaling.min_workers": None,  # A trial keeps the resources that it started with.
            "scaling.use_gpu": self.gpus > 0,
            "scaling.cpus_per_worker": self.cpus / workers if workers else None,
            "scaling.threads_per_worker": scaling.threads_per_worker or max(1, int(self.cpus / max(1, workers))),
        }


def _share(cpus: float, concurrency: int, workers: int) -> float:
    """Return the default CPUs of a trial: a whole number for one worker, and at most one CPU per worker of a group."""
    share = cpus / concurrency
    if workers > 1:
        return min(workers, share)
    return float(max(1, int(share)))
