"""Which rows of the files are used: split, bounds, staging."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float64, UInt64

from crmuons import config
from crmuons.storage.staging.download import Staging

Split = Literal["train", "validation", "test", "all"]


@dataclass(frozen=True)
class Selection:
    """Which events are wanted, and where those that cannot be used go.

    Attributes:
        split: of the showers, by a hash of their ids.
        validation_share, test_share: shares of the showers.
        vertical_depth: the files' depth_m is the vertical depth.
        max_muons: events with more go to `outliers`.
        quarantine, outliers: directories; None to count without keeping.
        muons_per_event: so many muons of an event that has more are drawn at random and come first. None: the file's order.
        staging: where remote files are copied to before they are read; None to read them where they lie.
    """

    split: Split = "all"
    validation_share: float = 0.0
    test_share: float = 0.0
    vertical_depth: bool = False
    max_muons: int | None = None
    quarantine: str | None = None
    outliers: str | None = None
    muons_per_event: int | None = None
    staging: Staging | None = None

    @property
    def bounds(self) -> tuple[float, float]:
        """The places of the split's showers, from the lower up to but not including the upper; see `split_coordinates`."""
        test, held_out = self.test_share, self.test_share + self.validation_share
        return {"test": (0.0, test), "validation": (test, held_out), "train": (held_out, 1.0), "all": (0.0, 1.0)}[
            self.split
        ]


def in_split(ids: UInt64[np.ndarray, "events 2"], selection: Selection) -> Bool[np.ndarray, " events"]:
    """Which events belong to the split: by shower, the same on every machine and in every order of the files."""
    return within_bounds(ids, selection.bounds, (0.0, 1.0))


def within_bounds(
    ids: UInt64[np.ndarray, "events 2"], bounds: tuple[float, float], places_between: tuple[float, float]
) -> Bool[np.ndarray, " events"]:
    """Which showers have their places within bounds; they need not be computed where those of all lie in or outside."""
    (first, last), (low, high) = bounds, places_between
    if first <= low and high <= last:
        return np.ones(len(ids), bool)
    if high <= first or last <= low:
        return np.zeros(len(ids), bool)
    place = split_coordinates(ids)
    return (place >= first) & (place < last)


def split_coordinates(ids: UInt64[np.ndarray, "events 2"]) -> Float64[np.ndarray, " events"]:
    """The places of showers, uniform on [0, 1): from 0 up come those to test with, then to validate, then to train."""
    return (_mix(_mix(ids[:, 0]) ^ ids[:, 1]) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _mix(values: UInt64[np.ndarray, " n"]) -> UInt64[np.ndarray, " n"]:
    """The finaliser of SplitMix64: 64 bits to 64 bits, every input bit moves every output bit (Steele et al. 2014)."""
    with np.errstate(over="ignore"):
        values = values + np.uint64(0x9E3779B97F4A7C15)
        values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def training_selection(data: config.Data, run_directory: str | None, muons_per_event: int | None = None) -> Selection:
    """The events to train on."""
    caps = [cap for cap in (data.max_muons_per_event, data.max_muons_per_batch) if cap is not None]
    return Selection(
        split="train",
        # Where validation data are given, every shower of the training files may be trained on.
        validation_share=0.0 if data.validation else data.validation_share,
        test_share=data.test_share,
        vertical_depth=data.depth == "vertical",
        max_muons=min(caps, default=None),
        quarantine=None if run_directory is None else f"{run_directory}/quarantine",
        outliers=None if run_directory is None else f"{run_directory}/outliers",
        muons_per_event=muons_per_event,
        staging=Staging.of(data.staging),
    )
