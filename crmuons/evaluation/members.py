"""The members of an ensemble in an evaluation: the band of their distributions, its coverage, and their figures."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from crmuons.evaluation.candidates import generated_events
from crmuons.evaluation.comparison import Numbers, marginal_numbers
from crmuons.evaluation.datasets import EventSet
from crmuons.evaluation.headers import EventHeaders
from crmuons.evaluation.metrics.bands import BandBin, bands, coverage, variance_factor
from crmuons.evaluation.metrics.distances import Estimate
from crmuons.evaluation.reference import Reference, event_sample
from crmuons.evaluation.tasks import Executor
from crmuons.generation.generator import BundleGenerator

ALL = "all events"


@dataclass(frozen=True)
class Members:
    """Figures that an ensemble has because of its members.

    Attributes:
        number: number of members.
        bins: bins of the distributions, with the band.
        figures: mean of each figure over the members, with the standard deviation over the members as its error.
    """

    number: int
    bins: list[BandBin]
    figures: dict[str, Estimate]

    def coverages(self) -> dict[str, tuple[int, int]]:
        """Return the number of covered bins and of bins: for all events, for each hard case, and together."""
        places = list(dict.fromkeys(one.where for one in self.bins))
        parts = {place: coverage([one for one in self.bins if one.where == place]) for place in places}
        hard = coverage([one for one in self.bins if one.where != ALL])
        return parts | {"hard cases together": hard, "together": coverage(self.bins)}

    def flat(self) -> dict[str, float]:
        """Return coverages and spreads by name, for the tracking server."""
        shares = {
            f"members/coverage_{_word(place)}": covered / number
            for place, (covered, number) in self.coverages().items()
            if number
        }
        spreads = {f"members/spread_{name}": figure.error for name, figure in self.figures.items()}
        return shares | {name: value for name, value in spreads.items() if value is not None}


def evaluate_members(executor: Executor, reference: Reference, generator: BundleGenerator) -> Members | None:
    """Compare the members of an ensemble with true events of the same primaries; None for a single model."""
    members = generator.members
    if not members:
        return None
    control = reference.control.event_set.headers
    showers = executor.get(reference.control.sample).showers
    samples = []
    for member in members:
        # All members have the same seed, so that they differ less by chance and more by their weights.
        events = generated_events(executor, executor.put(member), control, reference.plan.seed)
        headers = EventHeaders(control.ids, control.primaries, control.counts)
        samples.append(event_sample(executor, EventSet(headers, events), showers).sample)
    outside = generator.outside_training(control.primaries)
    folds = {str(member.metadata.get("config", {}).get("data", {}).get("fold")) for member in members}
    all_folds = {str([number, len(members)]) for number in range(len(members))}
    factor = variance_factor(len(members), folds=folds == all_folds)
    found = executor.submit(bands, reference.control.sample, reference.plan.hard_cases, outside, factor, *samples)
    numbers = [executor.get(executor.submit(marginal_numbers, reference.truth.sample, sample)) for sample in samples]
    return Members(len(members), executor.get(found), _figures(numbers))


def _figures(numbers: Sequence[Numbers]) -> dict[str, Estimate]:
    figures = {}
    for name in numbers[0]:
        values = [number.value for of_member in numbers if isinstance(number := of_member[name], Estimate)]
        if len(values) == len(numbers) and np.isfinite(values).all():
            figures[name] = Estimate(float(np.mean(values)), float(np.std(values, ddof=1)))
    return figures


def _word(place: str) -> str:
    return "_".join("".join(letter if letter.isalnum() and letter.isascii() else " " for letter in place).split())
