"""Generate muon bundles for primaries with a saved model."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float32, Float64, Int64, UInt64

from crmuons.data import schema
from crmuons.data.arrow import are_legal_primaries, to_table
from crmuons.data.events import NO_EVENTS, EventArrays
from crmuons.data.features import MuonFeature
from crmuons.generation.host_copies import on_host
from crmuons.models import blocks, formulas
from crmuons.models.bundle_model import BundleModel, Ensemble
from crmuons.models.ensemble import StandaloneEnsemble, network_of

MAX_MUONS_PER_EVENT = 2**21  # An event is generated in one piece; 2 million muons need 2 GB for hidden numbers.


@dataclass(frozen=True)
class DeviceBlock:
    """Consecutive events whose muons are on the device that generated them.

    Attributes:
        rows: the rows of their primaries.
        counts: number of muons of each event, on the host.
        muons: numbers of the muons of all events in order, energy_gev, x_m, y_m first.
    """

    rows: slice
    counts: Int64[np.ndarray, " events"]
    muons: Float32[torch.Tensor, "muons features"]


@dataclass(frozen=True)
class GeneratedBlock:
    """Consecutive events.

    Attributes:
        events: the generated events.
        drawn: N of each event before the cap; larger than `events.counts` for capped events.
    """

    events: EventArrays
    drawn: Int64[np.ndarray, " events"]


class ModelNotFiniteError(ValueError):
    """A model has weights that are NaN or infinite, or its network overflows."""


class BundleGenerator:
    """A trained model, or an ensemble of models, that draws events.

    Attributes:
        device: the device on which it draws.
        model: features, multiplicity and generator; for an ensemble, of each member.
        metadata: content of model.json: settings, step, data, versions.
        network: the model's weights in the form that is fast in generation.
    """

    def __init__(
        self, model: BundleModel | Ensemble, metadata: dict[str, Any], device: torch.device | str = "cpu"
    ) -> None:
        self.device = torch.device(device)
        self.model = model.to(self.device)
        for name, weights in self.model.named_parameters():
            if not weights.isfinite().all():
                msg = f"the model's weights are NaN or infinite ({name}); take an earlier checkpoint"
                raise ModelNotFiniteError(msg)
        self.network = network_of(self.model.state_dict())
        self.metadata = metadata

    def to(self, device: torch.device | str) -> "BundleGenerator":
        """Return the same model on a device."""
        return self if self.device == torch.device(device) else BundleGenerator(self.model, self.metadata, device)

    @property
    def events_per_block(self) -> int:
        """Number of events that are generated together. Calls that begin at its multiples do not change the events."""
        return blocks.EVENTS_PER_BLOCK[self.device.type] * blocks.BLOCKS_PER_PASS[self.device.type]

    @property
    def muon_features(self) -> tuple[MuonFeature, ...]:
        """The numbers of a muon."""
        return self.model.features.muon_features

    @property
    def training_ranges(self) -> dict[str, tuple[float, float]]:
        """Lowest and highest value of each quantity of the primaries in a sample of the training data."""
        low, high = self.network.primary_range.tolist()
        return dict(zip(schema.PRIMARY_FEATURES, zip(low, high, strict=True), strict=True))

    def outside_training(self, primaries: Float32[np.ndarray, "events 4"]) -> Bool[np.ndarray, " events"]:
        """Return which primaries lie outside the training ranges, which `formulas.outside_ranges` widens."""
        return formulas.outside_ranges(primaries, self.network.primary_range.cpu().numpy())

    @property
    def members(self) -> list["BundleGenerator"]:
        """The members of an ensemble, each as a separate generator; empty for a single model."""
        if not isinstance(self.model, Ensemble):
            return []
        about = self.metadata.get("members", [{}] * len(self.model.members))
        return [BundleGenerator(*one, self.device) for one in zip(self.model.each(), about, strict=True)]

    def members_of(self, events: int, *, seed: int, first_event: int = 0) -> Int64[np.ndarray, " events"] | None:
        """Return which member of an ensemble draws each event in `generate`; None for a single model."""
        network = self.network
        return network.members_of(events, seed, first_event) if isinstance(network, StandaloneEnsemble) else None

    def spread_log_num_muons(self, primaries: Float32[np.ndarray, "events 4"]) -> Float64[np.ndarray, " events"] | None:
        """Return the standard deviation over an ensemble's members of log10 of the mean N; None for a single model."""
        network = self.network
        return network.spread_log_num_muons(primaries) if isinstance(network, StandaloneEnsemble) else None

    def draw_counts(self, primaries: Float32[np.ndarray, "events 4"], *, seed: int) -> Int64[np.ndarray, " events"]:
        """Draw only N for each primary, the same N as in `generate`."""
        return self._drawn(primaries, seed, 0)

    def generate(
        self,
        primaries: Float32[np.ndarray, "events 4"],
        *,
        seed: int,
        ids: UInt64[np.ndarray, "events 2"] | None = None,
        counts: Int64[np.ndarray, " events"] | None = None,
        max_muons: int | None = None,
        first_event: int = 0,
    ) -> EventArrays:
        """Draw one event for each primary. `generate_blocks` describes the arguments and errors."""
        _, kept = self._numbers(primaries, seed, counts, max_muons, first_event)
        muons = torch.empty((int(kept.sum()), self.network.width), dtype=torch.float32)
        made = self.network.draw_muons(primaries, kept, seed, first_event)
        first = 0
        for _, part in on_host(made, self.device):
            muons[first : first + len(part)].copy_(part)
            first += len(part)
        return EventArrays(_ids(ids, len(primaries), first_event), primaries, kept, muons.numpy())

    def generate_on_device(
        self,
        primaries: Float32[np.ndarray, "events 4"],
        *,
        seed: int,
        counts: Int64[np.ndarray, " events"] | None = None,
        max_muons: int | None = None,
        first_event: int = 0,
    ) -> Iterator[DeviceBlock]:
        """Draw the events of `generate_blocks`, and leave their muons on the device.

        The host waits for the device only once, for N. The blocks then follow without a wait, so a caller who keeps all of
        them needs memory for all muons, 4 bytes for each of their numbers. `generate_blocks` describes the arguments and
        errors.
        """
        _, kept = self._numbers(primaries, seed, counts, max_muons, first_event)
        for rows, muons in self.network.draw_muons(primaries, kept, seed, first_event):
            yield DeviceBlock(rows, kept[rows], muons)

    def generate_blocks(
        self,
        primaries: Float32[np.ndarray, "events 4"],
        *,
        seed: int,
        ids: UInt64[np.ndarray, "events 2"] | None = None,
        counts: Int64[np.ndarray, " events"] | None = None,
        max_muons: int | None = None,
        first_event: int = 0,
    ) -> Iterator[GeneratedBlock]:
        """Draw one event for each primary, and yield the events block by block.

        A GPU computes and copies the next block while the caller uses the last one. `generate_on_device` does not copy.

        Args:
            primaries: energy_gev, zenith_rad, mass_gev, depth_m (slant).
            seed: seed of the random numbers. The seed, the event's number and the N of its block determine an event. The
                events stay the same if calls are cut at multiples of `events_per_block`.
            ids: shower ids; None numbers the events.
            counts: N of each event; None draws it.
            max_muons: cap on the muons of an event.
            first_event: number of the first event.

        Raises:
            ValueError: if a primary or N is out of range, or first_event is not a multiple of `events_per_block`.
        """
        drawn, kept = self._numbers(primaries, seed, counts, max_muons, first_event)
        ids = _ids(ids, len(primaries), first_event)
        for rows, muons in on_host(self.network.draw_muons(primaries, kept, seed, first_event), self.device):
            own = muons if self.device.type == "cpu" else muons.clone()  # The buffer is used again.
            yield GeneratedBlock(EventArrays(ids[rows], primaries[rows], kept[rows], own.numpy()), drawn[rows])

    def _numbers(
        self,
        primaries: Float32[np.ndarray, "events 4"],
        seed: int,
        counts: Int64[np.ndarray, " events"] | None,
        max_muons: int | None,
        first_event: int,
    ) -> tuple[Int64[np.ndarray, " events"], Int64[np.ndarray, " events"]]:
        """Check the primaries. Return N of each event before the cap (drawn or given), and after it."""
        check_primaries(primaries)
        drawn = self._drawn(primaries, seed, first_event) if counts is None else counts
        kept = drawn if max_muons is None else np.minimum(drawn, max_muons)
        check_counts(kept, primaries)
        return drawn, kept

    def _drawn(
        self, primaries: Float32[np.ndarray, "events 4"], seed: int, first_event: int
    ) -> Int64[np.ndarray, " events"]:
        """Draw N. If its mean is NaN, torch raises an error on a CPU; on a GPU, and with the regressor, N is meaningless."""
        try:
            drawn = self.network.draw_counts(primaries, seed, first_event)
        except RuntimeError as error:
            if "Poisson" not in str(error):
                raise
            drawn = np.full(1, -1)
        if (drawn < 0).any():
            msg = "the multiplicity model gives NaN as the mean of N: its weights are too large; take an earlier checkpoint"
            raise ModelNotFiniteError(msg)
        return drawn


def _ids(ids: UInt64[np.ndarray, "events 2"] | None, events: int, first_event: int) -> UInt64[np.ndarray, "events 2"]:
    """Return ids, by default the numbers of the events."""
    if ids is None:
        ids = np.zeros((events, 2), np.uint64)
        ids[:, 0] = np.arange(first_event, first_event + events)
    return ids


def concat_blocks(blocks: Sequence[GeneratedBlock]) -> GeneratedBlock:
    """Join the events of several blocks, in order."""
    events = [block.events for block in blocks]
    together = EventArrays(
        ids=np.concatenate([np.empty((0, 2), np.uint64), *(part.ids for part in events)]),
        primaries=np.concatenate([np.empty((0, 4), np.float32), *(part.primaries for part in events)]),
        counts=np.concatenate([np.empty(0, np.int64), *(part.counts for part in events)]),
        muons=np.concatenate([part.muons for part in events or [NO_EVENTS]]),
    )
    return GeneratedBlock(together, np.concatenate([np.empty(0, np.int64), *(block.drawn for block in blocks)]))


def check_primaries(primaries: Float32[np.ndarray, "events 4"]) -> None:
    """Check primaries against the data contract.

    Raises:
        ValueError: with the first bad primary, its value and the reason.
    """
    if primaries.ndim != 2 or primaries.shape[1] != len(schema.PRIMARY_FEATURES):
        msg = f"primaries have shape {primaries.shape}, expected (events, 4): {', '.join(schema.PRIMARY_FEATURES)}"
        raise ValueError(msg)
    if are_legal_primaries(primaries):  # The check of each row, which finds the wrong row, takes ten times longer.
        return
    none = np.zeros(len(primaries), np.int64)
    table = to_table(
        EventArrays(np.zeros((len(primaries), 2), np.uint64), primaries, none, np.empty((0, 3), np.float32))
    )
    fault = schema.faults(table)
    if fault.any():
        row = int(np.flatnonzero(fault)[0])
        msg = f"primary {row} is {primaries[row].tolist()}: {schema.FAULTS[fault[row]]}"
        raise ValueError(msg)


def check_counts(counts: Int64[np.ndarray, " events"], primaries: Float32[np.ndarray, "events 4"]) -> None:
    """Check that numbers of muons can be generated.

    Raises:
        ValueError: with the first event out of range.
    """
    bad = np.flatnonzero((counts < 0) | (counts > MAX_MUONS_PER_EVENT))
    if bad.size:
        msg = (
            f"event {bad[0]} with primary {primaries[bad[0]].tolist()} has {counts[bad[0]]} muons, expected 0 to "
            f"{MAX_MUONS_PER_EVENT}: limit them (--max-muons-per-event), or leave the event out"
        )
        raise ValueError(msg)
