"""What to try next, as a function of what is known: the seed, the number of the trial and the trials before it.

Nothing is kept between two proposals, so that a sweep that was killed goes on with what it would have tried.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import FrozenTrial, TrialState, create_trial

from tune.space import Dimension, SettingValues, Space

Method = Literal["random", "tpe", "grid"]

STARTUP_TRIALS = 6  # Random ones before the estimator has something to learn from; Optuna's default is 10.
MIN_TRIALS_TO_EXPLAIN = 4


@dataclass(frozen=True)
class Observation:
    """A trial and what is known of it: its best score, infinite where it diverged, None before the first."""

    values: SettingValues
    score: float | None


def propose(method: Method, space: Space, seed: int, number: int, tried: Sequence[Observation]) -> SettingValues:
    """Values of the trial with a number, counted from 0."""
    if method == "grid":
        return _from_grid(space, seed, number)
    random = random_of(seed, number)
    if method == "random" or number < STARTUP_TRIALS:
        return space.sample(random)
    return _tpe(space, tried, int(random.integers(2**31)))


def random_of(seed: int, *numbers: int) -> np.random.Generator:
    """Random numbers that depend on the seed and what they are for alone."""
    return np.random.default_rng([seed, *numbers])


def grid_size(space: Space) -> int:
    """How many combinations there are.

    Raises:
        ValueError: if a dimension has no list of values.
    """
    for each in space.dimensions:
        if not each.is_list:
            msg = f"a grid needs lists, and {each.path} is a range ({each.kind}); write it as grid = [...]"
            raise ValueError(msg)
    return math.prod(len(each.values) for each in space.dimensions)


def _from_grid(space: Space, seed: int, number: int) -> SettingValues:
    """A combination. Their order is random: the first ones are spread over the grid."""
    place = np.random.default_rng(seed).permutation(grid_size(space))[number]
    places = np.unravel_index(place, [len(each.values) for each in space.dimensions])
    return {each.path: each.values[i] for each, i in zip(space.dimensions, places, strict=True)}


def importance(space: Space, tried: Sequence[Observation], seed: int = 0) -> dict[str, float]:
    """Share of the variance of the score that each dimension explains, from the highest (Hutter et al. 2014, fANOVA).

    Trials without a finite score are left out. Empty where there is nothing to explain: few trials, or none that differ.
    """
    scored = [each for each in tried if each.score is not None and math.isfinite(each.score)]
    differ = len({each.score for each in scored}) > 1 and any(each.values != scored[0].values for each in scored)
    if len(scored) < MIN_TRIALS_TO_EXPLAIN or not differ:
        return {}
    study = _study(space, scored, seed)
    evaluator = optuna.importance.FanovaImportanceEvaluator(seed=seed)
    return optuna.importance.get_param_importances(study, evaluator=evaluator)


def _tpe(space: Space, tried: Sequence[Observation], seed: int) -> SettingValues:
    """Tree-structured Parzen estimator (Bergstra et al. 2011), which takes running trials for bad ones."""
    study = _study(space, tried, seed)
    proposed = study.ask(_distributions(space)).params
    return {each.path: _decode(each, proposed[each.path]) for each in space.dimensions}


def _study(space: Space, tried: Sequence[Observation], seed: int) -> optuna.Study:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    sampler = optuna.samplers.TPESampler(seed=seed, multivariate=True, constant_liar=True, n_startup_trials=0)
    study = optuna.create_study(sampler=sampler)
    study.add_trials([_frozen(space, each) for each in tried])
    return study


def _frozen(space: Space, tried: Observation) -> FrozenTrial:
    params = {each.path: _encode(each, tried.values[each.path]) for each in space.dimensions}
    state = TrialState.RUNNING if tried.score is None else TrialState.COMPLETE
    return create_trial(params=params, distributions=_distributions(space), value=tried.score, state=state)


def _distributions(space: Space) -> dict[str, BaseDistribution]:
    return {each.path: _distribution(each) for each in space.dimensions}


def _distribution(dimension: Dimension) -> BaseDistribution:
    if dimension.is_list:  # By their places: Optuna takes no lists, such as Adam's betas, for values.
        return CategoricalDistribution(range(len(dimension.values)))
    low, high = dimension.values
    if dimension.kind == "randint":
        return IntDistribution(low, high)
    return FloatDistribution(low, high, log=dimension.kind == "loguniform")


def _encode(dimension: Dimension, value: Any) -> Any:
    return dimension.values.index(value) if dimension.is_list else value


def _decode(dimension: Dimension, value: Any) -> Any:
    return dimension.values[value] if dimension.is_list else value
