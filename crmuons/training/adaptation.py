"""The adaptive critic (train.adapt): move its steps and the penalty's weight with the Wasserstein estimate.

The estimate is the critic's mean score of true events minus its mean score of generated events. It has no absolute
scale, so only its relative change counts. A rise means that the critic leaves the generator behind: the critic gets
fewer steps and a larger penalty. A fall after a rise means that the generator catches up: the critic gets more steps
and a smaller penalty. A fall before any rise changes nothing: a training that converges falls from 0.1 to 0.001 in a
few hundred steps (docs/metrics.md).

The mean over a window of train.adapt.every steps is compared with the mean at the last change. Three rules keep critic
and generator from circling:

- The change must be larger than train.adapt.band, and larger than the noise of both means. Estimates below a tenth of
  the largest mean so far count as that tenth, because near zero the estimate varies by factors of ten.
- A change of direction takes twice the band, because the last change itself moves the estimate.
- Each change of direction doubles the band for the next one, so they become rare. The band for changes in the same
  direction stays.
"""

import logging
import math
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from crmuons import config
from crmuons.training import distributed

logger = logging.getLogger(__name__)

WEIGHT_FACTOR = 1.5  # Factor of lambda_gp at a change: six changes lead from 10 to the default bounds of 1 and 100.
NOISE = 3.0  # Standard errors that a change must exceed. Noise alone does so in 0.3 % of the windows.
# Share of the largest mean so far. Below a twentieth of the largest mean, the estimate rose up to tenfold in 7 of 13
# good runs. Above a tenth, it rose in none.
FLOOR = 0.1
# A mean of this many standard errors or more is not the work of a few steps. Warm-ups of good runs have 6 to 13.
OF_MANY_STEPS = 2.0
LEAST_ESTIMATE = 1e-6  # Scores are of order 1. An estimate below this, or below its noise, counts as zero.


@dataclass
class _State:
    """Numbers on the host, equal on all ranks. `start` holds the settings that `n_critic` and `lambda_gp` began with."""

    start: tuple[int, float]
    n_critic: int
    lambda_gp: float
    reference: float = math.nan  # Mean of the window at the last change, and its standard error.
    reference_error: float = math.nan
    direction: int = 0  # Direction of the last change: 1 for a stronger critic, -1 for a weaker one.
    turns: int = 0
    before_rise: float = math.nan  # Reference at the first rise, or a lower one at a later rise.
    peak: float = 0.0  # Largest absolute mean so far, including the warm-up.


class Adaptation:
    """Decide on the critic's steps and the penalty's weight. All ranks decide the same, from rank 0's numbers.

    Args:
        settings: the training's settings.
        device: device of the estimates. They are read only at the end of a window: reading waits for the device.

    Attributes:
        state: numbers that resume needs, and the current choice.
    """

    def __init__(self, settings: config.Train, device: torch.device) -> None:
        self.settings, self.has_penalty = settings.adapt, settings.penalty.kind != "none"
        # Nothing is decided in the warm-up, because the networks are almost untrained. The warm-up gives the scale of
        # the estimate and the reference for the first window: a run with too small a penalty runs away in the first 30
        # steps (docs/metrics.md).
        self.first_step = settings.optimizer.warmup_steps
        start = settings.n_critic, settings.penalty.lambda_gp
        self.state = _State(start, *start)
        self._sums = torch.zeros(3, dtype=torch.float64, device=device)  # Number, sum and sum of squares in the window.

    @property
    def n_critic(self) -> int:
        """Critic updates of a step."""
        return self.state.n_critic

    @property
    def lambda_gp(self) -> float:
        """Weight of the gradient penalty."""
        return self.state.lambda_gp

    def observe(self, estimate: Tensor, step: int) -> None:
        """Take the estimate of a step, over all ranks; at the end of a window, decide.

        Args:
            estimate: on the device; NaN if no event had muons.
            step: number of steps done, which all ranks agree on.
        """
        value = estimate.detach().double()
        self._sums += torch.stack([torch.ones_like(value), value, value**2]).nan_to_num() * value.isfinite()
        if step < self.first_step or (step - self.first_step) % self.settings.every:
            return
        number, total, squares = distributed.from_rank_zero(self._sums.tolist(), self._sums.device)  # device sync
        self._sums.zero_()
        if number >= 2:
            mean = total / number
            variance = max(squares / number - mean**2, 0.0) * number / (number - 1)
            error = math.sqrt(variance / number)
            # If one step jumps, the mean is one standard error; with three jumps it is 1.7. Such a mean must not become
            # the peak: in a run that ran away, a peak of 8e5 hid all later estimates below the floor.
            if abs(mean) >= OF_MANY_STEPS * error:
                self.state.peak = max(self.state.peak, abs(mean))
            self._decide(mean, error, step)

    def _decide(self, mean: float, error: float, step: int) -> None:
        """Compare the mean of a window with the mean at the last change; make the next change if they differ enough."""
        state = self.state
        noise = NOISE * math.hypot(error, state.reference_error)
        if math.isnan(state.reference):
            state.reference, state.reference_error = mean, error
            return
        direction = 1 if mean < state.reference else -1
        if direction > 0 and state.direction == 0:  # No rise yet: the training converges.
            state.reference, state.reference_error = mean, error
            return
        is_turn = direction == -state.direction
        band = math.log1p(self.settings.band) * (2 ** (state.turns + 1) if is_turn else 1)
        # An estimate of zero or less means that the critic cannot distinguish the events. Its size below zero means
        # nothing.
        least = max(noise, LEAST_ESTIMATE, FLOOR * state.peak)
        larger, smaller = max(mean, state.reference, least), max(min(mean, state.reference), least)
        if larger - smaller <= noise or math.log(larger / smaller) <= band:
            return
        before, reference = (state.n_critic, state.lambda_gp), state.reference
        state.reference, state.reference_error = mean, error
        if direction < 0:
            state.before_rise = reference if math.isnan(state.before_rise) else min(reference, state.before_rise)
        # While the estimate is above its value before the rise, a fall only undoes the changes that the rise made.
        # Without this limit, runs that had run away fell by factors of two for hundreds of steps, and their critic
        # became stronger than at the start.
        self._move(direction, at_most_back=direction > 0 and mean - state.before_rise > noise)
        if (
            state.n_critic,
            state.lambda_gp,
        ) == before:  # Both are at their bounds. The reference follows, so a small change leads back.
            return
        state.direction, state.turns = direction, state.turns + is_turn
        if distributed.rank() == 0:
            logger.info(
                "step %d: train.adapt: the Wasserstein estimate %s from %.3g to %.3g: n_critic %d (was %d), "
                "lambda_gp %.3g (was %.3g)",
                step,
                "fell" if direction > 0 else "rose",
                reference,
                mean,
                state.n_critic,
                before[0],
                state.lambda_gp,
                before[1],
            )

    def _move(self, direction: int, *, at_most_back: bool) -> None:
        """Make the critic stronger (1) or weaker (-1) by one notch, within the bounds.

        With `at_most_back`, it becomes at most as strong as at the start.
        """
        least, most = self.settings.n_critic_bounds
        lightest, heaviest = self.settings.lambda_gp_bounds
        if at_most_back:
            most, lightest = (
                max(self.state.n_critic, self.state.start[0]),
                min(self.state.lambda_gp, self.state.start[1]),
            )
        self.state.n_critic = min(max(self.state.n_critic + direction, least), most)
        if self.has_penalty:
            self.state.lambda_gp = min(max(self.state.lambda_gp / WEIGHT_FACTOR**direction, lightest), heaviest)

    def state_dict(self) -> dict[str, Any]:
        """Return the state, and the sums of the window that has begun."""
        return asdict(self.state) | {"sums": self._sums.clone()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a saved state. If a trial of a sweep continues with other settings, it begins at these."""
        numbers = {name: value for name, value in state.items() if name != "sums"}
        loaded = _State(**numbers | {"start": tuple(numbers["start"])})
        if loaded.start == self.state.start:
            self.state = loaded
        self._sums.copy_(state["sums"])
