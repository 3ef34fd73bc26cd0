"""Propose the settings of the next trial from the seed, the trial's number and the trials before it.

No state is kept between two proposals, so a sweep that was killed continues with the same proposals. `propose` chooses
the method; docs/architecture.md, "How to add a search algorithm", says how to add one.
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

STARTUP_TRIALS = 6  # Random trials before the estimator has enough to learn from; Optuna's default is 10.
MIN_TRIALS_TO_EXPLAIN = 4


@dataclass(frozen=True)
class Observation:
    """What the search knows about a trial.

    Attributes:
        values: its settings in the dimensions of the space.
        score: its best score; infinite if it diverged, None while there is no score.
    """

    values: SettingValues
    score: float | None


def propose(method: Method, space: Space, seed: int, number: int, observations: Sequence[Observation]) -> SettingValues:
    """Return the values of the next trial.

    Args:
        method: the search algorithm.
        space: the settings that vary.
        seed: seed of the sweep.
        number: number of the trial, counted from 0.
        observations: observations of the trials before it.
    """
    random = random_of(seed, number)
    match method:
        case "grid":
            return _from_grid(space, seed, number)
        case "random":
            return space.sample(random)
        case "tpe":
            if number < STARTUP_TRIALS:
                return space.sample(random)
            return _tpe(space, observations, int(random.integers(2**31)))


def random_of(seed: int, *numbers: int) -> np.random.Generator:
    """Return a random generator that depends only on the seed and on these numbers."""
    return np.random.default_rng([seed, *numbers])


def grid_size(space: Space) -> int:
    """Return the number of combinations in a grid.

    Raises:
        ValueError: if a dimension is a range instead of a list of values.
    """
    for dimension in space.dimensions:
        if not dimension.is_list:
            msg = f"a grid needs lists, and {dimension.path} is a range ({dimension.kind}); write it as grid = [...]"
            raise ValueError(msg)
    return math.prod(len(dimension.values) for dimension in space.dimensions)


def _from_grid(space: Space, seed: int, number: int) -> SettingValues:
    """Return one combination. The order is random, so that the first trials are spread over the grid."""
    place = np.random.default_rng(seed).permutation(grid_size(space))[number]
    places = np.unravel_index(place, [len(dimension.values) for dimension in space.dimensions])
    return {dimension.path: dimension.values[i] for dimension, i in zip(space.dimensions, places, strict=True)}


def importance(space: Space, observations: Sequence[Observation], seed: int = 0) -> dict[str, float]:
    """Return the share of the score's variance that each dimension explains (fANOVA, Hutter et al. 2014).

    Trials without a finite score are left out.

    Returns:
        path -> share, from the highest; empty for fewer than MIN_TRIALS_TO_EXPLAIN trials or trials that do not differ.
    """
    scored = [each for each in observations if each.score is not None and math.isfinite(each.score)]
    differ = len({each.score for each in scored}) > 1 and any(each.values != scored[0].values for each in scored)
    if len(scored) < MIN_TRIALS_TO_EXPLAIN or not differ:
        return {}
    study = _study(space, scored, seed)
    evaluator = optuna.importance.FanovaImportanceEvaluator(seed=seed)
    return optuna.importance.get_param_importances(study, evaluator=evaluator)


def _tpe(space: Space, observations: Sequence[Observation], seed: int) -> SettingValues:
    """Propose with a tree-structured Parzen estimator (Bergstra et al. 2011); running trials count as bad trials."""
    study = _study(space, observations, seed)
    proposed = study.ask(_distributions(space)).params
    return {dimension.path: _decode(dimension, proposed[dimension.path]) for dimension in space.dimensions}


def _study(space: Space, observations: Sequence[Observation], seed: int) -> optuna.Study:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    sampler = optuna.samplers.TPESampler(seed=seed, multivariate=True, constant_liar=True, n_startup_trials=0)
    study = optuna.create_study(sampler=sampler)
    study.add_trials([_frozen(space, observation) for observation in observations])
    return study


def _frozen(space: Space, observation: Observation) -> FrozenTrial:
    params = {each.path: _encode(each, observation.values[each.path]) for each in space.dimensions}
    state = TrialState.RUNNING if observation.score is None else TrialState.COMPLETE
    return create_trial(params=params, distributions=_distributions(space), value=observation.score, state=state)


def _distributions(space: Space) -> dict[str, BaseDistribution]:
    return {dimension.path: _distribution(dimension) for dimension in space.dimensions}


def _distribution(dimension: Dimension) -> BaseDistribution:
    if dimension.is_list:  # Optuna gets indices, because it refuses lists, such as Adam's betas, as values.
        return CategoricalDistribution(range(len(dimension.values)))
    low, high = dimension.values
    if dimension.kind == "randint":
        return IntDistribution(low, high)
    return FloatDistribution(low, high, log=dimension.kind == "loguniform")


def _encode(dimension: Dimension, value: Any) -> Any:
    return dimension.values.index(value) if dimension.is_list else value


def _decode(dimension: Dimension, value: Any) -> Any:
    return dimension.values[value] if dimension.is_list else value
