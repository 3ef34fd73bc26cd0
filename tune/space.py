"""The space of a sweep: which settings vary, and over which values.

A space is a TOML file with lines `PATH = { KIND = [...] }`, PATH as in a preset:

    uniform = [low, high]      a number between low and high
    loguniform = [low, high]   a number between low and high, uniform in its logarithm
    randint = [low, high]      whole numbers, both ends included
    choice = [...]             one of these values
    grid = [...]               one of these values; a grid search tries each of them, and each value of `choice`
"""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from crmuons import config

RANGES, LISTS = ("uniform", "loguniform", "randint"), ("choice", "grid")
KINDS = RANGES + LISTS

SettingValues = dict[str, Any]  # dotted path -> value

# These cannot vary: all trials share data, validation events and machine, and the sweep names and tracks the runs.
SHARED = re.compile(
    r"run\.(?!seed$).*|scaling\..*|tracking\..*|data\.(train|validation|depth|fold|validation_share|test_share)"
    r"|train\.(validation_events|validate_every|log_every)"
)


@dataclass(frozen=True)
class Dimension:
    """One setting that varies.

    Attributes:
        path: dotted path of the setting, as in a preset.
        kind: one of KINDS.
        values: low and high, or the values to choose from.
    """

    path: str
    kind: str
    values: tuple[Any, ...]

    @property
    def is_list(self) -> bool:
        """Whether the dimension is a list of values."""
        return self.kind in LISTS

    def sample(self, random: np.random.Generator) -> Any:
        """Draw a value."""
        if self.is_list:
            return self.values[random.integers(len(self.values))]
        low, high = self.values
        if self.kind == "randint":
            return int(random.integers(low, high, endpoint=True))
        if self.kind == "uniform":
            return float(random.uniform(low, high))
        return min(max(math.exp(random.uniform(math.log(low), math.log(high))), low), high)  # exp(log(x)) rounds.

    def non_integers(self) -> tuple[float, ...]:
        """Return a non-integer inside a range of real numbers: settings of integers refuse it in `Space.check`."""
        if self.kind not in ("uniform", "loguniform"):
            return ()
        low, high = self.values
        return (low + (high - low) / math.pi,)

    def perturb(self, value: Any, random: np.random.Generator) -> Any:
        """Return a value near another value: 0.8 or 1.25 times it, within the range, or a neighbour in the list.

        Jaderberg et al. 2017 (arXiv:1711.09846), sec. 4.1.
        """
        up = bool(random.integers(2))
        if self.is_list:
            place = self.values.index(value) + (1 if up else -1)
            return self.values[min(max(place, 0), len(self.values) - 1)]
        low, high = self.values
        moved = value * (1.25 if up else 0.8)
        if self.kind == "randint":
            moved = value + max(1, round(abs(moved - value))) * (1 if up else -1)
        return min(max(moved, low), high)

    def coordinate(self, value: Any) -> float:
        """Return where a value lies in the dimension, from 0 (low) to 1 (high)."""
        if self.is_list:
            return self.values.index(value) / max(len(self.values) - 1, 1)
        low, high = self.values
        if self.kind == "loguniform":
            return math.log(value / low) / math.log(high / low)
        return float((value - low) / (high - low))


@dataclass(frozen=True)
class Space:
    """The dimensions of a sweep, in the order of the file."""

    dimensions: tuple[Dimension, ...]

    @classmethod
    def load(cls, path: Path) -> "Space":
        """Read a space.

        Raises:
            FileNotFoundError: if there is no such file.
            ValueError: names the line that is not a dimension, or the range that is empty.
        """
        if not path.is_file():
            msg = f"no space at {path}; it is a TOML file with lines such as train.n_critic = {{ randint = [1, 5] }}"
            raise FileNotFoundError(msg)
        tree = config.read_toml(path)
        try:
            return cls.from_dict(tree)
        except (ValueError, RecursionError) as error:
            reason = "it is nested too deeply" if isinstance(error, RecursionError) else error
            msg = f"{path}: {reason}"
            raise ValueError(msg) from error

    @classmethod
    def default(cls, settings: config.Config) -> "Space":
        """Return the default space: learning rates, momentum or betas, critic steps, penalty and batch size."""
        return cls.load(Path(__file__).parent / "configs" / f"{settings.train.optimizer.kind}.toml")

    @classmethod
    def from_dict(cls, tree: Mapping[str, Any]) -> "Space":
        """Return the space that a nested dictionary describes; raise ValueError if it has no dimension."""
        dimensions = tuple(_dimensions(tree))
        if not dimensions:
            msg = "nothing to vary; write a line such as train.n_critic = { randint = [1, 5] }"
            raise ValueError(msg)
        return cls(dimensions)

    def to_dict(self) -> dict[str, Any]:
        """Return a dictionary of JSON values that `from_dict` reads."""
        return {each.path: {each.kind: list(each.values)} for each in self.dimensions}

    def sample(self, random: np.random.Generator) -> SettingValues:
        """Draw a value for each dimension."""
        return {dimension.path: dimension.sample(random) for dimension in self.dimensions}

    def perturb(self, values: SettingValues, random: np.random.Generator) -> SettingValues:
        """Return values near other values, as `Dimension.perturb` does."""
        return {each.path: each.perturb(values[each.path], random) for each in self.dimensions}

    def values_of(self, settings: config.Config) -> SettingValues:
        """Return the values of a run's settings in the dimensions."""
        flat = settings.flat()
        return {each.path: flat[each.path] for each in self.dimensions}

    def check(self, settings: config.Config) -> None:
        """Pass both ends of every range and every value of every list through the settings' own checks.

        Raises:
            ValueError: names the path, and the nearest valid path if no setting has that path.
        """
        for dimension in self.dimensions:
            for value in (*dimension.values, *dimension.non_integers()):
                config.changed(settings, {dimension.path: value})
            if SHARED.fullmatch(dimension.path):
                msg = (
                    f"'{dimension.path}' cannot be swept: all trials share data, validation events and machine; vary what "
                    "shapes the model"
                )
                raise ValueError(msg)
            if settings.train.init_from is not None and dimension.path.startswith("model."):
                msg = (
                    f"'{dimension.path}' cannot be swept with train.init_from, whose weights fit one architecture; leave "
                    "one of them out"
                )
                raise ValueError(msg)


def _dimensions(tree: Mapping[str, Any], prefix: str = "") -> Iterator[Dimension]:
    for key, value in tree.items():
        path = f"{prefix}{key}"
        if isinstance(value, Mapping) and len(value) == 1 and (kind := next(iter(value))) in KINDS:
            yield Dimension(path, kind, _checked(path, kind, value[kind]))
        elif isinstance(value, Mapping):
            yield from _dimensions(value, f"{path}.")
        else:
            msg = (
                f"'{path} = {value}' is not a dimension; write PATH = {{ KIND = [...] }} with one of {', '.join(KINDS)}"
            )
            raise ValueError(msg)


def _checked(path: str, kind: str, values: Any) -> tuple[Any, ...]:
    what = f"{path} = {{ {kind} = {values} }}"
    if not isinstance(values, Sequence) or isinstance(values, str) or not values:
        msg = f"{what} is empty; give a list of values"
        raise ValueError(msg)
    if kind in RANGES:
        _check_range(what, kind, values)
    elif any(value in values[:place] for place, value in enumerate(values)):
        msg = f"{what} names a value twice; give each value once"
        raise ValueError(msg)
    return tuple(values)


def _check_range(what: str, kind: str, values: Sequence[Any]) -> None:
    types = (int,) if kind == "randint" else (int, float)
    if len(values) != 2 or not all(isinstance(value, types) and not isinstance(value, bool) for value in values):
        msg = f"{what} is not a range; give the lowest and the highest {'whole ' if kind == 'randint' else ''}number"
        raise ValueError(msg)
    low, high = values
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        msg = f"{what} is empty: {low} is not below {high}"
        raise ValueError(msg)
    if kind == "randint" and high >= 2**63:
        msg = f"{what} reaches beyond {2**63 - 1}, the highest number that can be drawn"
        raise ValueError(msg)
    if kind == "loguniform" and low <= 0:
        msg = f"{what} has no logarithm at {low}; give a lowest value above 0"
        raise ValueError(msg)
