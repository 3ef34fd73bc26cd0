"""An ensemble of trained models as one: each event is drawn from one member. A part of bundles.py, see exported.py.

It needs only Python 3.8, torch and numpy.
"""

import math
import re
from typing import Iterator  # noqa: UP035  # for Python 3.8

import numpy as np
import torch
from torch import Tensor

from crmuons.models.blocks import COUNTS, MEMBERS, MUONS, blocks, pieces, random_stream
from crmuons.models.standalone import StandaloneModel

MEMBER = re.compile(r"members\.(\d+)\.(.*)")  # The name of a weight: the number of its member, and its name there.


class StandaloneEnsemble:
    """Several trained models that draw events as one, with the methods of a StandaloneModel.

    Args:
        members: models of the same further features, on one device.
    """

    def __init__(self, members: "list[StandaloneModel]") -> None:
        self.members = members
        self.device, self.width, self.extra = members[0].device, members[0].width, members[0].extra

    @property
    def primary_range(self) -> Tensor:
        """Return the smallest range [2, 4] that includes the ranges of the primaries of all members."""
        ranges = torch.stack([member.primary_range for member in self.members])
        return torch.stack([ranges[:, 0].amin(0), ranges[:, 1].amax(0)])

    def members_of(self, events: int, seed: int, first_event: int = 0) -> np.ndarray:
        """Return the member that draws each event [events]. It depends only on the seed and the number of the event."""
        # A hash chooses: if members took turns, member k would make all events of one depth in files with K depths.
        key = np.random.SeedSequence([seed, 0, MEMBERS]).generate_state(1, np.uint64)[0]
        number = np.arange(first_event, first_event + events, dtype=np.uint64)
        values = _mix(_mix(number) ^ key) >> np.uint64(32)
        chosen: np.ndarray = ((values * np.uint64(len(self.members))) >> np.uint64(32)).astype(np.int64)
        return chosen

    @torch.inference_mode()
    def draw_counts(self, primaries: np.ndarray, seed: int, first_event: int = 0) -> np.ndarray:
        """Draw N of each event [events] from the multiplicity model of its member."""
        chosen, drawn = self.members_of(len(primaries), seed, first_event), np.empty(len(primaries), np.int64)
        for block, rows in blocks(len(primaries), first_event, self.device):
            for number, member in enumerate(self.members):
                own = rows.start + np.flatnonzero(chosen[rows] == number)
                if len(own):
                    source = random_stream(seed, block, COUNTS, self.device, number)
                    given = torch.from_numpy(np.ascontiguousarray(primaries[own])).to(self.device)
                    drawn[own] = member.sample_counts(given, source).cpu().numpy()
        return drawn

    @torch.inference_mode()
    def draw_muons(
        self, primaries: np.ndarray, counts: np.ndarray, seed: int, first_event: int = 0
    ) -> "Iterator[tuple[slice, Tensor]]":
        """Draw the muons of events. Yield the rows and the muons [muons, width] of each piece of events in order."""
        chosen, sources, current = self.members_of(len(counts), seed, first_event), [], -1
        for block, rows in pieces(counts, first_event, self.device):
            if block != current:  # The pieces of a block continue its streams.
                sources = [
                    random_stream(seed, block, MUONS, self.device, number) for number in range(len(self.members))
                ]
                current = block
            number, owner = counts[rows], chosen[rows]
            parts = [
                member.draw_piece(primaries[rows], np.where(owner == own, number, 0), sources[own])
                for own, member in enumerate(self.members)
            ]
            place = torch.from_numpy(np.argsort(np.repeat(owner, number), kind="stable")).to(self.device)
            muons = torch.empty((len(place), self.width), device=self.device)
            muons[place] = torch.cat(parts)
            yield rows, muons

    @torch.inference_mode()
    def spread_log_num_muons(self, primaries: np.ndarray) -> np.ndarray:
        """Return the standard deviation over the members of log10 of the mean N of each primary [events]."""
        given = torch.from_numpy(np.array(primaries, np.float32)).to(self.device)
        means: np.ndarray = torch.stack([_log_mean(member, given) for member in self.members]).std(0).cpu().numpy()
        return means


def network_of(weights: "dict[str, Tensor]") -> "StandaloneModel | StandaloneEnsemble":
    """Return the networks of a model or of an ensemble, whose weights are named `members.NUMBER.NAME`."""
    members: dict[int, dict[str, Tensor]] = {}  # Python does not evaluate this annotation, so 3.8 accepts it.
    for name, values in weights.items():
        found = MEMBER.fullmatch(name)
        if found is None:
            return StandaloneModel(weights)
        members.setdefault(int(found[1]), {})[found[2]] = values
    return StandaloneEnsemble([StandaloneModel(members[number]) for number in sorted(members)])


def _log_mean(member: StandaloneModel, primaries: Tensor) -> Tensor:
    """Return log10 of a member's mean N [events]; for a regression, log10(N + 1)."""
    if not member.components:
        return member.log_counts(primaries).double()
    log_weights, log_means, _ = member.mixture(primaries)
    return torch.logsumexp(log_weights + log_means, dim=1) / math.log(10)


def _mix(values: np.ndarray) -> np.ndarray:
    """Apply the finaliser of SplitMix64 (Steele et al. 2014): every input bit changes every output bit."""
    with np.errstate(over="ignore"):
        values = values + np.uint64(0x9E3779B97F4A7C15)
        values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
