"""Which trials continue: successive halving and population-based training, as decisions on reported scores.

A scheduler's state depends only on the scores that trials have reported. The controller of a continued sweep reports the
scores of the metrics files again, in any order that keeps the order within each trial, and the scheduler then decides as
before the kill. Ray Tune's own ASHA and PBT restore a snapshot, and lose the scores that were reported since
(docs/sweeps.md). The test of the property that they lack is tests/unit/tune/test_schedulers.py,
test_asha_decides_the_same_after_its_scores_are_reported_again.

A share is the part of a trial's run that is done, from 0 to 1. Lower scores are better.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np


@dataclass(frozen=True)
class Continue:
    """The trial continues."""


@dataclass(frozen=True)
class Stop:
    """The trial ends, for a reason."""

    reason: str


@dataclass(frozen=True)
class Exploit:
    """The trial continues from a copy of the donor's state, with settings near the donor's."""

    donor: int


Decision = Continue | Stop | Exploit


class Scheduler(Protocol):
    """Decide after every score that a trial reports."""

    def decide(self, trial: int, share: float, score: float) -> Decision:
        """Record the score of a trial at a share of its run, and return what the trial does next."""
        ...


class RunAll:
    """Every trial runs to its end."""

    def decide(self, trial: int, share: float, score: float) -> Decision:
        """Return `Continue`."""
        del trial, share, score
        return Continue()


@dataclass
class Asha:
    """Asynchronous successive halving with early stopping (Li et al. 2020, arXiv:1810.05934).

    At each rung a trial continues if its best score so far is among the best 1 / reduction of the trials at that rung.

    Attributes:
        first_rung: share of the run at which trials are compared first.
        reduction: ratio of a rung to the rung before it, and of the trials at a rung to the trials that pass it.
        scores: rung -> trial -> best score of the trial when it reached the rung.
        best: trial -> best score so far.
    """

    first_rung: float = 1 / 9
    reduction: float = 3.0
    scores: dict[float, dict[int, float]] = field(default_factory=dict)
    best: dict[int, float] = field(default_factory=dict)

    def rungs(self) -> list[float]:
        """Return the shares at which trials are compared, in rising order."""
        rungs, rung = [], self.first_rung
        while rung < 1 - 1e-9:
            rungs.append(rung)
            rung *= self.reduction
        return rungs

    def decide(self, trial: int, share: float, score: float) -> Decision:
        """Record the score, and stop a trial that is not among the best at a rung that it has reached."""
        self.best[trial] = score = min(score, self.best.get(trial, score))
        decision: Decision = Continue()
        for rung in self.rungs():
            reached = self.scores.setdefault(rung, {})
            if share < rung - 1e-9 or trial in reached:
                continue
            reached[trial] = score
            better = sum(other < score for other in reached.values())
            if len(reached) >= self.reduction and better >= len(reached) / self.reduction:
                reason = f"score {score:.4f} at {share:.0%} of the run, where {better} of {len(reached) - 1} trials were better"
                decision = Stop(reason)
        return decision


@dataclass
class Population:
    """Population-based training (Jaderberg et al. 2017, arXiv:1711.09846), without a barrier.

    After every `interval` of its run, a trial among the worst of the population exploits a trial among the best.

    Attributes:
        size: number of trials; all of them run at once.
        seed: seed of the choice of donors.
        interval: share of the run between two comparisons.
        quantile: part of the population that counts as best, and part that counts as worst.
        newest: trial -> its last score.
        due: trial -> share at which it is compared next.
    """

    size: int
    seed: int
    interval: float = 0.2
    quantile: float = 0.25
    newest: dict[int, float] = field(default_factory=dict)
    due: dict[int, float] = field(default_factory=dict)

    def decide(self, trial: int, share: float, score: float) -> Decision:
        """Record the score, and let a trial among the worst exploit one among the best."""
        self.newest[trial] = score
        if share > 1 - self.interval / 2:  # Near its end, a trial gains nothing from a donor, and must not be a donor.
            del self.newest[trial]
            return Continue()
        if share < self.due.setdefault(trial, self.interval) - 1e-9:
            return Continue()
        self.due[trial] = (share // self.interval + 1) * self.interval
        best, worst = self._best_and_worst()
        if trial not in worst:
            return Continue()
        random = np.random.default_rng([self.seed, trial, round(share * 1e6)])
        return Exploit(int(random.choice(best)))

    def _best_and_worst(self) -> tuple[Sequence[int], Sequence[int]]:
        """Return the trials of the best and the worst quantile; both are empty while they would overlap."""
        ranked = sorted(self.newest, key=self.newest.__getitem__)
        number = max(1, int(self.size * self.quantile))
        return (ranked[:number], ranked[-number:]) if len(ranked) >= 2 * number else ([], [])
