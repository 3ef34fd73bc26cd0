"""Primaries in, muon bundles out: a saved model as a generator. Torch and numpy alone."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float32, Int64, UInt64
from torch import Tensor

from crmuons import checkpoint, schema
from crmuons.model import BundleModel
from crmuons.schema import EventArrays

EVENTS_PER_BLOCK = 1024  # Events that share a random stream: what is drawn does not depend on how calls are cut.
MUONS_PER_PIECE = 2**18  # Muons made at once: bounds the memory of an event-rich or a muon-rich block alike.


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
        """Which primaries lie outside the training ranges (by more than the rounding of single precision)."""
        low, high = self.model.features.primary_range.cpu().numpy()
        slack = 1e-5 * np.maximum(np.abs(low), np.abs(high))
        outside: np.ndarray = ((primaries < low - slack) | (primaries > high + slack)).any(axis=1)
        return outside

    def bundles(
        self,
        primaries: Float32[np.ndarray, "events 4"],
        *,
        seed: int,
        ids: UInt64[np.ndarray, "events 2"] | None = None,
        counts: Int64[np.ndarray, " events"] | None = None,
        first_event: int = 0,
    ) -> EventArrays:
        """Draw one event for each primary.

        Args:
            primaries: energy_gev, zenith_rad, mass_gev, depth_m (slant).
            seed: of the random numbers. Seed and an event's number fix the event, however calls are cut, as long as they are
                cut at multiples of EVENTS_PER_BLOCK.
            ids: shower ids; the event's number where they are not given.
            counts: N of each event; drawn where it is not given.
            first_event: the number of the first event.

        Raises:
            ValueError: if a primary is not legal, or first_event is no multiple of EVENTS_PER_BLOCK.
        """
        if first_event % EVENTS_PER_BLOCK:
            msg = f"first_event {first_event} is not a multiple of {EVENTS_PER_BLOCK}"
            raise ValueError(msg)
        check_primaries(primaries)
        drawn: list[Tensor] = []
        muons: list[Tensor] = []
        for start in range(0, len(primaries), EVENTS_PER_BLOCK):
            block = torch.from_numpy(np.array(primaries[start : start + EVENTS_PER_BLOCK])).to(self.device)
            source = _source(seed, (first_event + start) // EVENTS_PER_BLOCK, self.device)
            if counts is None:
                number = self.model.sample_counts(block, source)
            else:
                number = torch.from_numpy(np.array(counts[start : start + EVENTS_PER_BLOCK])).to(self.device)
            drawn.append(number.cpu())
            muons += [self._muons(block[piece], number[piece], source) for piece in _pieces(number)]
        if ids is None:
            numbers = np.arange(first_event, first_event + len(primaries), dtype=np.uint64)
            ids = np.stack([numbers, np.zeros_like(numbers)], axis=1)
        return EventArrays(
            ids=ids,
            primaries=np.array(primaries),
            counts=torch.cat(drawn).numpy() if drawn else np.empty(0, np.int64),
            muons=torch.cat(muons).numpy() if muons else np.empty((0, 3), np.float32),
        )

    def _muons(self, primaries: Tensor, counts: Tensor, source: torch.Generator) -> Tensor:
        return self.model.sample_muons(primaries, counts, source).cpu()


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


def _source(seed: int, block: int, device: torch.device) -> torch.Generator:
    state = np.random.SeedSequence([seed, block]).generate_state(1, np.uint64)[0]
    return torch.Generator(device).manual_seed(int(state >> np.uint64(1)))


def _pieces(counts: Tensor) -> Iterator[slice]:
    """Cut events into runs of about MUONS_PER_PIECE muons, an event being never cut."""
    piece = ((counts.cumsum(0) - counts) // MUONS_PER_PIECE).cpu().numpy()
    bounds = [0, *(np.flatnonzero(np.diff(piece)) + 1).tolist(), len(piece)]
    for start, stop in zip(bounds[:-1], bounds[1:], strict=True):
        yield slice(start, stop)
