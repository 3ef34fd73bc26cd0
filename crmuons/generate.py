"""Primaries in, muon bundles out: a saved model as a generator."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float32, Int64, UInt64

from crmuons import checkpoint, schema
from crmuons.model import BundleModel
from crmuons.schema import EventArrays

EVENTS_PER_BLOCK = 1024  # Events that share a random stream: what is drawn does not depend on how calls are cut.
MUONS_PER_PIECE = 2**14  # Muons made at once: their 64 hidden numbers (4 MB) stay near the CPU's second-level cache.
RANGE_MARGIN = 0.01


@dataclass(frozen=True)
class Piece:
    """Some consecutive events of a block.

    Attributes:
        events: as generated.
        drawn: N of each event before the cap; larger than `events.counts` where the cap took muons away.
    """

    events: EventArrays
    drawn: Int64[np.ndarray, " events"]


class BundleGenerator:
    """A trained model that draws events.

    Attributes:
        model: features, multiplicity and generator.
        about: what the model directory says of it: settings, step, data, versions.
    """

    def __init__(self, model: BundleModel, about: dict[str, Any], device: torch.device | str = "cpu") -> None:
        self.device = torch.device(device)
        self.model = model.to(self.device)
        self.about = about

    @property
    def training_ranges(self) -> dict[str, tuple[float, float]]:
        """Lowest and highest value of each quantity of the primaries in a sample of the training data."""
        low, high = self.model.features.primary_range.tolist()
        return dict(zip(schema.PRIMARY_FEATURES, zip(low, high, strict=True), strict=True))

    def outside_training(self, primaries: Float32[np.ndarray, "events 4"]) -> Bool[np.ndarray, " events"]:
        """Which primaries lie outside the training ranges.

        The ranges are those of a sample, so they are taken RANGE_MARGIN of their widths wider, in log10 of energy and mass, in
        zenith angle and in depth.
        """
        low, high = _linear(self.model.features.primary_range.cpu().numpy())
        slack = RANGE_MARGIN * (high - low) + 1e-6 * np.maximum(np.abs(low), np.abs(high))  # Single precision rounds.
        values = _linear(primaries)
        outside: np.ndarray = ((values < low - slack) | (values > high + slack)).any(axis=1)
        return outside

    def draw_counts(self, primaries: Float32[np.ndarray, "events 4"], *, seed: int) -> Int64[np.ndarray, " events"]:
        """Draw N alone, for each primary; not the N of `bundles`, which come from their blocks' random streams."""
        given = torch.from_numpy(np.array(primaries)).to(self.device)
        return self.model.sample_counts(given, _source(seed, 0, self.device)).cpu().numpy()

    def bundles(
        self,
        primaries: Float32[np.ndarray, "events 4"],
        *,
        seed: int,
        ids: UInt64[np.ndarray, "events 2"] | None = None,
        counts: Int64[np.ndarray, " events"] | None = None,
        first_event: int = 0,
    ) -> EventArrays:
        """Draw one event for each primary; arguments and errors are those of `pieces`."""
        pieces = self.pieces(primaries, seed=seed, ids=ids, counts=counts, first_event=first_event)
        events = [piece.events for piece in pieces]
        return EventArrays(
            ids=np.concatenate([np.empty((0, 2), np.uint64), *(part.ids for part in events)]),
            primaries=np.concatenate([np.empty((0, 4), np.float32), *(part.primaries for part in events)]),
            counts=np.concatenate([np.empty(0, np.int64), *(part.counts for part in events)]),
            muons=np.concatenate([np.empty((0, 3), np.float32), *(part.muons for part in events)]),
        )

    def pieces(
        self,
        primaries: Float32[np.ndarray, "events 4"],
        *,
        seed: int,
        ids: UInt64[np.ndarray, "events 2"] | None = None,
        counts: Int64[np.ndarray, " events"] | None = None,
        max_muons: int | None = None,
        first_event: int = 0,
    ) -> Iterator[Piece]:
        """Draw one event for each primary, a piece of at most MUONS_PER_PIECE muons (or one event) at a time.

        Args:
            primaries: energy_gev, zenith_rad, mass_gev, depth_m (slant).
            seed: of the random numbers. Seed and an event's number fix the event, however calls are cut, as long as they are
                cut at multiples of EVENTS_PER_BLOCK.
            ids: shower ids; the event's number where they are not given.
            counts: N of each event; drawn where it is not given.
            max_muons: events with more get this many.
            first_event: the number of the first event.

        Raises:
            ValueError: if a primary is not legal, or first_event is no multiple of EVENTS_PER_BLOCK.
        """
        if first_event % EVENTS_PER_BLOCK:
            msg = f"first_event {first_event} is not a multiple of {EVENTS_PER_BLOCK}"
            raise ValueError(msg)
        check_primaries(primaries)
        if ids is None:
            numbers = np.arange(first_event, first_event + len(primaries), dtype=np.uint64)
            ids = np.stack([numbers, np.zeros_like(numbers)], axis=1)
        for start in range(0, len(primaries), EVENTS_PER_BLOCK):
            rows = slice(start, min(start + EVENTS_PER_BLOCK, len(primaries)))
            source = _source(seed, (first_event + start) // EVENTS_PER_BLOCK, self.device)
            given = None if counts is None else counts[rows]
            yield from self._block(primaries[rows], ids[rows], given, max_muons, source)

    @torch.inference_mode()
    def _block(
        self,
        primaries: np.ndarray,
        ids: np.ndarray,
        counts: np.ndarray | None,
        max_muons: int | None,
        source: torch.Generator,
    ) -> Iterator[Piece]:
        given = torch.from_numpy(np.array(primaries)).to(self.device)
        if counts is None:
            drawn = self.model.sample_counts(given, source)
        else:
            drawn = torch.from_numpy(np.array(counts)).to(self.device)
        kept = drawn if max_muons is None else drawn.clamp(max=max_muons)
        host, drawn_host = kept.cpu().numpy(), drawn.cpu().numpy()
        for rows in _pieces(host):
            muons = self.model.sample_muons(given[rows], kept[rows], source).cpu().numpy()
            yield Piece(EventArrays(ids[rows], np.array(primaries[rows]), host[rows], muons), drawn_host[rows])


def load_generator(path: str | Path, device: torch.device | str = "cpu") -> BundleGenerator:
    """Load a run (its selected checkpoint), a checkpoint or a model directory.

    Raises:
        FileNotFoundError: if there is no model.
        ValueError: if the model is of another format.
    """
    directory = Path(path)
    for candidate in (directory, checkpoint.best(directory / "checkpoints")):
        if candidate is not None and (candidate / checkpoint.SETTINGS_FILE).is_file():
            return BundleGenerator(*checkpoint.load_model(candidate), device)
    return BundleGenerator(*checkpoint.load_model(directory), device)  # Says what is missing.


def check_primaries(primaries: Float32[np.ndarray, "events 4"]) -> None:
    """Refuse primaries that the contract does not allow.

    Raises:
        ValueError: naming the first one, its value and the reason.
    """
    if primaries.ndim != 2 or primaries.shape[1] != len(schema.PRIMARY_FEATURES):
        msg = f"primaries have shape {primaries.shape}, wanted (events, 4): {', '.join(schema.PRIMARY_FEATURES)}"
        raise ValueError(msg)
    none = np.zeros(len(primaries), np.int64)
    table = EventArrays(
        np.zeros((len(primaries), 2), np.uint64), primaries, none, np.empty((0, 3), np.float32)
    ).to_table()
    fault = schema.faults(table)
    if fault.any():
        row = int(np.flatnonzero(fault)[0])
        msg = f"primary {row} is {primaries[row].tolist()}: {schema.FAULTS[fault[row]]}"
        raise ValueError(msg)


def _linear(primaries: np.ndarray) -> np.ndarray:
    """Primaries with energy and mass by their decimal logarithms."""
    values = primaries.astype(np.float64)
    values[:, [0, 2]] = np.log10(values[:, [0, 2]])
    return values


def _source(seed: int, block: int, device: torch.device) -> torch.Generator:
    state = np.random.SeedSequence([seed, block]).generate_state(1, np.uint64)[0]
    return torch.Generator(device).manual_seed(int(state >> np.uint64(1)))


def _pieces(counts: Int64[np.ndarray, " events"]) -> Iterator[slice]:
    """Cut events into runs of about MUONS_PER_PIECE muons, an event being never cut."""
    piece = (np.cumsum(counts) - counts) // MUONS_PER_PIECE
    bounds = [0, *(np.flatnonzero(np.diff(piece)) + 1).tolist(), len(piece)]
    for start, stop in pairwise(bounds):
        yield slice(start, stop)
