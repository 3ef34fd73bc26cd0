"""Which trials go on: successive halving and population-based training, as decisions over reported scores.

A scheduler's memory is what trials reported: told again in any order that keeps each trial's own, it decides as before, so
that a sweep that was killed has lost nothing. Shares are of a trial's run, from 0 to 1; scores are better the lower they are.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np


@dataclass(frozen=True)
class Continue:
    """The trial goes on."""


@dataclass(frozen=True)
class Stop:
    """The trial ends, for a reason."""

    reason: str


@dataclass(frozen=True)
class Exploit:
    """The trial goes on from another one's state, with settings near that one's."""

    donor: int


Decision = Continue | Stop | Exploit


class Scheduler(Protocol):
    """Decides at every score that a trial reports."""

    def judge(self, trial: int, share: float, score: float) -> Decision:
        """What becomes of a trial whose model of this share of its run has this score."""
        ...


class RunAll:
    """Every trial runs to its end."""

    def judge(self, trial: int, share: float, score: float) -> Decision:
        """Go on."""
        del trial, share, score
        return Continue()


@dataclass
class Asha:
    """Asynchronous successive halving, with stopping (Li et al. 2020, arXiv:1810.05934).

    At each rung a trial goes on if its best score so far is in the best 1 / reduction of those that have come there.

    Attributes:
        first_rung: share of the run after which trials are compared first.
        reduction: how many times farther the next rung is, and how much smaller the share of trials that pass one.
        scores: by rung and trial, what was reported.
    """

    first_rung: float = 1 / 9
    reduction: float = 3.0
    scores: dict[float, dict[int, float]] = field(default_factory=dict)
    best: dict[int, float] = field(default_factory=dict)

    def rungs(self) -> list[float]:
        """The shares at which trials are compared."""
        rungs, rung = [], self.first_rung
        while rung < 1 - 1e-9:
            rungs.append(rung)
            rung *= self.reduction
        return rungs

    def judge(self, trial: int, share: float, score: float) -> Decision:
        """Stop a trial that falls behind at a rung it has come to."""
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

    Every `interval` of its run a trial among the worst of the population takes over the state of one among the best.

    Attributes:
        size: trials, all of which run at once.
        seed: of the choice of donors.
        interval: share of the run between comparisons.
        quantile: share of the population that counts as best, and as worst.
        newest: the last score of each trial.
        due: the share at which a trial is compared next.
    """

    size: int
    seed: int
    interval: float = 0.2
    quantile: float = 0.25
    newest: dict[int, float] = field(default_factory=dict)
    due: dict[int, float] = field(default_factory=dict)

    def judge(self, trial: int, share: float, score: float) -> Decision:
        """Have a trial among the worst take over one of the best."""
        self.newest[trial] = score
        if share > 1 - self.interval / 2:  # It has no time left to improve, and nothing to give to one that has.
            del self.newest[trial]
            return Continue()
        if share < self.due.setdefault(trial, self.interval) - 1e-9:
            return Continue()
        self.due[trial] = (share // self.interval + 1) * self.interval
        best, worst = self._ends()
        if trial not in worst:
            return Continue()
        random = np.random.default_rng([self.seed, trial, round(share * 1e6)])
        return Exploit(int(random.choice(best)))

    def _ends(self) -> tuple[Sequence[int], Sequence[int]]:
        ranked = sorted(self.newest, key=self.newest.__getitem__)
        number = max(1, int(self.size * self.quantile))
        return (ranked[:number], ranked[-number:]) if len(ranked) >= 2 * number else ([], [])
